"""GET /v2: what the Open Inference Protocol asks of a server: health, and a list of its graphs."""

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.errors import MethodNotAllowedError, NotFoundError
from service.routes.answers_v2 import ListedGraph, ServerLiveness, ServerMetadata, ServerReadiness
from service.routes.documentation import answers
from service.routes.endpoint import Endpoint, allowed_methods, service_of
from service.routes.fields import RequestModel
from service.routes.models_v2 import json_answer, name_of

router = APIRouter(route_class=Endpoint, tags=["open inference protocol"])

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")


class IndexRequest(RequestModel):
    """Which models to list."""

    ready: bool = Field(default=False, description="Only those that can be asked.")


@router.get("/v2/", response_class=Response, include_in_schema=False)
@router.get(
    "/v2", response_class=Response, responses=answers(ServerMetadata), summary="Describe the server"
)
async def show_server(request: Request) -> Response:
    """Tell the server's name, version and extensions."""
    return json_answer({"name": "ptheta", "version": __version__, "extensions": EXTENSIONS})


@router.get(
    "/v2/health/live", response_class=Response, responses=answers(ServerLiveness), summary="Alive?"
)
async def show_live(request: Request) -> Response:
    """Answer as long as the process can."""
    return json_answer({"live": True})


@router.get(
    "/v2/health/ready",
    response_class=Response,
    responses=answers(ServerReadiness)
    | {503: {"description": "Not ready; says why.", "model": ServerReadiness}},
    summary="Ready for traffic?",
)
async def show_ready(request: Request) -> Response:
    """Answer 200 where `/readyz` does."""
    reason = service_of(request).unreadiness()
    if reason is None:
        return json_answer({"ready": True, "live": True})
    return json_answer({"ready": False, "live": True, "error": reason}, status=503)


@router.post(
    "/v2/repository/index",
    response_class=Response,
    responses=answers(list[ListedGraph], 400, 408, 413, 415, 422, 503),
    openapi_extra={"requestBody": {"required": False}},  # nothing at all is {}
    summary="List all graphs",
)
async def list_graphs(request: Request, body: IndexRequest) -> Response:
    """List all graphs of all versions, and the bundles that are broken."""
    service = service_of(request)
    service.require_serving()
    listed = [
        {
            "name": name_of(model, role),
            "version": str(model.manifest.version),
            "state": "READY",
            "reason": "",
        }
        for model in service.models()
        for role in model.graphs
    ]
    if not body.ready:
        for reference, reason in service.catalog.broken.items():
            name, _, version = reference.partition("@")
            # Which graphs it would have had is not known.
            listed.append(
                {"name": name, "version": version, "state": "UNAVAILABLE", "reason": reason}
            )
    return json_answer(listed)


@router.api_route("/v2/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def refuse(request: Request, path: str) -> Response:
    """Refuse what other servers of the protocol offer and this one does not."""
    allowed = [method for method in allowed_methods(request) if method != request.method]
    if allowed:
        raise MethodNotAllowedError(request.url.path, request.method, allowed)
    if path.startswith("repository/models/"):
        raise NotFoundError(
            "models are not loaded or unloaded over HTTP: publish to the model store and restart"
        )
    raise NotFoundError(
        f"/v2/{path[:200]} is not offered, or not with {request.method}; the extensions that are: "
        f"{', '.join(EXTENSIONS)}; see /docs"
    )
