"""POST and GET /sample: images from noise."""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service.batcher import Outcome, Rows
from service.errors import InvalidRequestError, NoLatentSpaceError, UnsupportedOperationError
from service.graph import LABEL, TRUNCATION
from service.images import encode_base64, encode_picture, enlarge
from service.manifest import Manifest, Operation
from service.model import Model, seeded_rows
from service.noise import truncate
from service.routes.answers import SampleAnswer, SampledImage
from service.routes.documentation import CACHE_HEADERS, MODEL_HEADERS, answers
from service.routes.endpoint import (
    PUBLIC,
    Answer,
    Endpoint,
    deadline,
    header,
    json_bytes,
    server_timing,
    service_of,
    timeout_s,
)
from service.routes.fields import (
    MODEL,
    CommaSeparated,
    ModelReference,
    RequestModel,
    Scale,
    Seed,
    TimeoutMs,
    Truncation,
    Unique,
    seed_for_json,
)
from service.routes.labels import Labels, class_numbers, require_classes
from service.routes.negotiation import MEDIA_TYPES, choose_format
from service.routes.sheets import FORMATS, Columns, SheetFormat, check_sheet, encode_sheet
from service.service import Service

router = APIRouter(route_class=Endpoint, tags=["generate"])

MAX_LATENT = 1e6
SAMPLE_HEADERS = (*MODEL_HEADERS, "X-Seed")

FloatArray = NDArray[np.float32]
Coordinate = Annotated[float, Field(ge=-MAX_LATENT, le=MAX_LATENT)]


class SampleQuery(RequestModel):
    """What to generate, and how to show it."""

    model: ModelReference | None = Field(default=None, description=MODEL)
    n: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Number of images; 1, or as many as there are labels or latents.",
    )
    seed: Seed | None = Field(default=None, description="Random, and told in the answer.")
    first_index: int = Field(
        default=0, ge=0, lt=2**63, description="Image i depends on (seed, first_index + i) alone."
    )
    labels: Labels | None = Field(
        default=None,
        description="Class names or numbers, one or n; left out, they are drawn from the seed.",
    )
    truncation: Truncation = 1.0
    temperature: float = Field(default=1.0, gt=0, le=10, description="Logits are divided by it.")
    format: SheetFormat | None = Field(
        default=None, description="Of the answer; left out, `Accept` decides."
    )
    columns: Columns = None
    scale: Scale = 1
    include: Annotated[tuple[Literal["latents", "log_prob"], ...], CommaSeparated, Unique] = Field(
        default=(), description="What else the JSON answer tells of each image."
    )
    timeout_ms: TimeoutMs | None = None


class SampleRequest(SampleQuery):
    """What to generate, and how to show it."""

    latents: list[list[Coordinate]] | None = Field(
        default=None,
        min_length=1,
        max_length=65_536,
        description="Explicit codes, (n, latent_dim), instead of a seed.",
    )


class Sampling(NamedTuple):
    """A sample request that its model can serve.

    Attributes:
        seed: None where latents were given.
    """

    model: Model
    rows: Rows
    seed: int | None
    first_index: int
    num_images: int
    answer_format: str


@router.post(
    "/sample",
    response_class=Response,
    responses=answers(
        SampleAnswer,
        *(400, 404, 406, 408, 413, 415, 422, 503, 504),
        formats=FORMATS[1:],
        headers=SAMPLE_HEADERS,
    ),
    openapi_extra={"requestBody": {"required": False}},  # nothing at all is {}
    summary="Generate images",
)
async def create_sample(request: Request, body: SampleRequest) -> Response:
    """Generate images; the same seed gives the same bytes, whatever else is being served."""
    accept = header(request, b"accept")
    sampling = plan(service_of(request), body, body.latents, accept, default="json")
    return await answer_sampling(request, sampling, body)


@router.get(
    "/sample",
    response_class=Response,
    responses=answers(
        SampleAnswer,
        *(304, 404, 406, 422, 503, 504),
        formats=FORMATS[1:],
        headers=(*SAMPLE_HEADERS, *CACHE_HEADERS),
    ),
    summary="Generate a picture for <img src=…>",
)
async def show_sample(request: Request, query: Annotated[SampleQuery, Query()]) -> Response:
    """Generate images as one picture; cacheable for ever where seed and version are given."""
    accept = header(request, b"accept")
    sampling = plan(service_of(request), query, None, accept, default="png")
    headers = cache_headers(query, sampling.model.manifest, sampling.answer_format)
    if is_known_to_client(request, headers):
        return Response(status_code=304, headers=headers)
    return await answer_sampling(request, sampling, query, headers)


def plan(
    service: Service,
    query: SampleQuery,
    latents: list[list[float]] | None,
    accept: str | None,
    default: str,
    operation: Operation = "sample",
) -> Sampling:
    """Check a request against its model, before anything is queued.

    Args:
        service: Finds the model.
        query: What is asked for.
        latents: Explicit codes instead of a seed.
        accept: The header of that name, which chooses the format where the query does not.
        default: The format where neither does.
        operation: What the model must be able to do.

    Raises:
        ProblemError: The model, a field or the format is not possible.
    """
    model = service.find(query.model, operation)
    answer_format = choose_format(query.format, accept, FORMATS, default)
    _check_options(service, model, query)
    if latents is None:
        num_images = query.n or len(query.labels or ()) or 1
        seed = secrets.randbits(53) if query.seed is None else query.seed
        rows = seeded_rows(seed, query.first_index, num_images)
    else:
        codes = _check_latents(service, model, query, latents)
        num_images, seed, rows = len(codes), None, {"noise": codes}
    if num_images > service.settings.max_rows:
        raise InvalidRequestError.of_field(
            "n", f"at most {service.settings.max_rows} images per request, not {num_images}"
        )
    check_sheet(model.manifest.image, num_images, query.columns, query.scale, answer_format)
    if query.labels is not None:
        rows[LABEL] = class_numbers(query.labels, model, num_images)
    if query.truncation != 1 and latents is not None:
        prior = model.manifest.noise.prior
        rows["noise"] = truncate(rows["noise"], query.truncation, prior)
    elif query.truncation != 1:
        rows[TRUNCATION] = np.full(num_images, query.truncation, dtype=np.float32)
    if query.temperature != 1:
        rows["temperature"] = np.full(num_images, query.temperature, dtype=np.float32)
    return Sampling(model, rows, seed, query.first_index, num_images, answer_format)


def cache_headers(query: RequestModel, manifest: Manifest, answer_format: str) -> dict[str, str]:
    """Say how long an answer to a GET request stays right, and that anyone may use it.

    With seed and version given, for ever; with a seed alone, until a new version comes; without
    a seed, not at all.
    """
    fields = query.model_dump(exclude={"timeout_ms"}, mode="json")
    if fields.get("seed", 0) is None:
        return {"cache-control": "no-store", **PUBLIC}
    identity = (manifest.reference, manifest.graphs["generate"].sha256, answer_format, fields)
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    is_pinned = "@" in (fields["model"] or "")
    lifetime = "public, max-age=31536000, immutable" if is_pinned else "no-cache"
    return {"etag": f'"{digest}"', "cache-control": lifetime, "vary": "Accept", **PUBLIC}


def is_known_to_client(request: Request, headers: dict[str, str]) -> bool:
    """Tell whether `If-None-Match` names the answer that we would give."""
    known = request.headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
    return "etag" in headers and bool(tags & {headers["etag"], "*"})


async def answer_sampling(
    request: Request,
    sampling: Sampling,
    query: SampleQuery,
    more_headers: Mapping[str, str] = MappingProxyType({}),
) -> Response:
    """Draw the images of a plan, and show them as the query asks."""
    limit_s = timeout_s(request, query.timeout_ms)
    model = sampling.model
    outcomes: list[Outcome[Any]] = []
    if "log_prob" in query.include and sampling.answer_format == "json":
        async with deadline(limit_s):
            drawn = await model.generate(sampling.rows, lambda outputs: outputs, timeout_s=limit_s)
            outcomes.append(drawn)
            made = drawn.value
            scored = await model.log_prob(
                made["image"],
                lambda outputs: _json_answer(sampling, query, made, outputs["log_prob"]),
                labels=made.get(LABEL),
                with_conditionals=False,
                timeout_s=limit_s,
            )
        outcomes.append(scored)
        content = scored.value
    else:
        wanted = ("pixels", "noise") if "latents" in query.include else ("pixels",)
        shown = await model.generate(
            sampling.rows, _encoder(sampling, query), wanted=wanted, timeout_s=limit_s
        )
        outcomes.append(shown)
        content = shown.value
    headers = {"x-model": model.reference, "server-timing": server_timing(*outcomes)}
    headers.update(more_headers)
    if sampling.seed is not None:
        headers["x-seed"] = str(sampling.seed)
    return Answer(content, MEDIA_TYPES[sampling.answer_format], headers)


def _encoder(sampling: Sampling, query: SampleQuery) -> Callable[[Rows], bytes]:
    answer_format = sampling.answer_format
    if answer_format == "json":
        return lambda made: _json_answer(sampling, query, made, None)

    def encode(made: Rows) -> bytes:
        return encode_sheet(made["pixels"], query.columns, query.scale, answer_format)

    return encode


def _json_answer(
    sampling: Sampling, query: SampleQuery, made: Rows, log_prob: FloatArray | None
) -> bytes:
    manifest = sampling.model.manifest
    described: list[SampledImage] = []
    for position, pixels in enumerate(made["pixels"]):
        image: SampledImage = {
            "index": sampling.first_index + position,
            "png": encode_base64(encode_picture(enlarge(pixels, query.scale), "png")),
        }
        if manifest.labels:
            image["label"] = manifest.labels[made[LABEL][position]]
        if "latents" in query.include:
            image["latent"] = made["noise"][position].tolist()
        if log_prob is not None:
            image["log_prob"] = float(log_prob[position])
        described.append(image)
    seed = None if sampling.seed is None else seed_for_json(sampling.seed)
    answer: SampleAnswer = {
        "model": manifest.name,
        "version": manifest.version,
        "seed": seed,
        "images": described,
    }
    return json_bytes(answer)


def _check_options(service: Service, model: Model, query: SampleQuery) -> None:
    catalog = service.catalog
    wants_latents = query.truncation != 1 or "latents" in query.include
    if wants_latents and not model.manifest.noise.latent:
        raise NoLatentSpaceError(model.reference, catalog.alternatives(model, "interpolate"))
    if query.temperature != 1 and not model.has_temperature:
        raise UnsupportedOperationError(
            f"{model.reference} has no conditionals whose temperature could be set",
            [other.manifest.name for other in catalog.newest() if other.has_temperature],
        )
    if "log_prob" in query.include:
        service.find(model.reference, "log_prob")
        if model.is_bound:
            raise UnsupportedOperationError(
                f"{model.reference} only bounds its likelihood, of images and not of the means "
                "that it shows: send images to /log_prob, or ask an exact model",
                [m.manifest.name for m in catalog.newest() if m.manifest.density == "exact"],
            )
    if query.labels is not None:
        require_classes(service, model)


def _check_latents(
    service: Service, model: Model, query: SampleQuery, latents: list[list[float]]
) -> FloatArray:
    if not model.manifest.noise.latent:
        alternatives = service.catalog.alternatives(model, "interpolate")
        raise NoLatentSpaceError(model.reference, alternatives)
    if query.seed is not None:
        raise InvalidRequestError.of_field("seed", "give either a seed or latents")
    if query.n not in {None, len(latents)}:
        raise InvalidRequestError.of_field("n", f"{query.n}, but there are {len(latents)} latents")
    if model.manifest.labels and query.labels is None:
        raise InvalidRequestError.of_field(
            "labels", "say of which class; without a seed there is nothing to draw it from"
        )
    (latent_dim,) = model.manifest.noise.shape
    for position, latent in enumerate(latents):
        if len(latent) != latent_dim:
            raise InvalidRequestError(
                f"latents must have shape (n, {latent_dim}); latent {position} has {len(latent)}",
                [(f"/latents/{position}", f"must have {latent_dim} numbers")],
            )
    return np.array(latents, dtype=np.float32)
