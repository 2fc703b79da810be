"""GET /models: what can be served."""

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotFoundError, UnknownModelError
from service.manifest import CARD_FILE, FILM_FILE, PREVIEW_FILE
from service.model import Model
from service.routes.answers import ModelDescription, ModelList
from service.routes.documentation import CACHE_HEADERS, answers
from service.routes.endpoint import PUBLIC, Endpoint, json_bytes, service_of
from service.routes.negotiation import MEDIA_TYPES
from service.routes.sample import is_known_to_client
from service.service import Service

router = APIRouter(route_class=Endpoint, tags=["models"])

_FILES = {
    "card": (CARD_FILE, "text/markdown; charset=utf-8"),
    "preview": (PREVIEW_FILE, "image/png"),
    "film": (FILM_FILE, "image/webp"),
}


@router.get(
    "/models", response_class=Response, responses=answers(ModelList, 503), summary="List models"
)
async def list_models(request: Request) -> Response:
    """List the newest version of every model, which versions there are, and the default model."""
    service = service_of(request)
    service.require_serving()
    return _json(
        {
            "models": [describe(service, model) for model in service.newest()],
            "default": _default_name(service),
        }
    )


@router.get(
    "/models/{name}",
    response_class=Response,
    responses=answers(ModelDescription, 404, 503),
    summary="Describe a model",
)
async def show_model(request: Request, name: str) -> Response:
    """Describe the newest version of a model."""
    service = service_of(request)
    return _json(describe(service, service.find(_unversioned(service, name))))


@router.get(
    "/models/{name}/versions/{version}",
    response_class=Response,
    responses=answers(ModelDescription, 404, 503),
    summary="Describe a version",
)
async def show_version(request: Request, name: str, version: str) -> Response:
    """Describe one version of a model."""
    service = service_of(request)
    return _json(describe(service, service.find(f"{name}@{version}")))


@router.get(
    "/models/{name}/{file}",
    response_class=Response,
    responses=answers(
        {"text/markdown": {"schema": {"type": "string"}}},
        *(304, 404, 503),
        formats=("png", "webp"),
        headers=CACHE_HEADERS,
    ),
    summary="Card, preview or film of a model",
)
async def show_file(request: Request, name: str, file: str) -> Response:
    """Answer the newest version's model card, preview picture or training film."""
    service = service_of(request)
    return await _file(request, service.find(_unversioned(service, name)), file)


@router.get(
    "/models/{name}/versions/{version}/{file}",
    response_class=Response,
    responses=answers(
        {"text/markdown": {"schema": {"type": "string"}}},
        *(304, 404, 503),
        formats=("png", "webp"),
        headers=CACHE_HEADERS,
    ),
    summary="Card, preview or film of a version",
)
async def show_version_file(request: Request, name: str, version: str, file: str) -> Response:
    """Answer a version's model card, preview picture or training film."""
    return await _file(request, service_of(request).find(f"{name}@{version}"), file)


def describe(service: Service, model: Model) -> dict[str, Any]:
    """Say all that a client may want to know of a model."""
    manifest = model.manifest
    settings = service.settings
    base = f"/models/{manifest.name}/versions/{manifest.version}"
    limits = {
        "max_rows": settings.max_rows,
        "max_body_bytes": settings.max_body_bytes,
        "max_timeout_ms": round(1000 * settings.max_timeout_s),
    }
    if model.is_bound:
        limits["max_importance_samples"] = settings.max_importance_samples
    links = {name: f"{base}/{name}" for name, (file, _) in _FILES.items() if file in manifest.files}
    return {
        **manifest.model_dump(mode="json", exclude={"schema_version"}),
        "operations": manifest.operations,
        "options": _options(model),
        "versions": service.catalog.versions(manifest.name),
        "limits": limits,
        "links": links,
    }


def _default_name(service: Service) -> str | None:
    """Name the model of requests that name none, as the operator chose it."""
    chosen = service.settings.default_model
    usable = service.newest()
    if chosen is None and usable:
        name = service.catalog.find(None).manifest.name
        # Whoever may not use it has to name a model in every request.
        return name if any(model.manifest.name == name for model in usable) else None
    return chosen


def _options(model: Model) -> list[str]:
    """Name the fields of requests that not every model takes."""
    possible = {
        "labels": bool(model.manifest.labels),
        "temperature": model.has_temperature,
        "truncation": model.manifest.noise.latent,
        "per_dim": model.has_conditionals,
        "num_importance_samples": model.is_bound,
    }
    return [name for name, is_possible in possible.items() if is_possible]


def _unversioned(service: Service, name: str) -> str:
    if "@" in name:
        service.require_serving()
        raise UnknownModelError(name, service.catalog.references())
    return name


async def _file(request: Request, model: Model, name: str) -> Response:
    file, media_type = _FILES.get(name, ("", ""))
    sha256 = model.manifest.files.get(file)
    if sha256 is None:
        raise NotFoundError(f"{model.reference} has no {name!r}; it has: {', '.join(_FILES)}")
    headers = {"etag": f'"{sha256[:32]}"', "cache-control": "no-cache", **PUBLIC}
    if is_known_to_client(request, headers):
        return Response(status_code=304, headers=headers)
    content = await asyncio.to_thread((model.folder / file).read_bytes)
    return Response(content, headers=headers, media_type=media_type)


def _json(content: dict[str, Any]) -> Response:
    return Response(json_bytes(content), media_type=MEDIA_TYPES["json"], headers=PUBLIC)
