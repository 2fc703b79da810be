"""POST and GET /interpolate: walks through latent space, and squares of it."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service.batcher import Rows
from service.errors import InvalidRequestError
from service.graph import LABEL
from service.images import (
    check_size,
    encode_animation,
    encode_base64,
    encode_npy,
    encode_picture,
    enlarge,
    grid,
)
from service.latents import Method, path_through, square_between
from service.model import Model
from service.noise import truncate
from service.routes.anchors import Anchor, check_anchors, latents_of
from service.routes.answers import InterpolateAnswer
from service.routes.documentation import CACHE_HEADERS, MODEL_HEADERS, answers
from service.routes.endpoint import (
    Endpoint,
    deadline,
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
)
from service.routes.labels import Labels, class_numbers, require_classes
from service.routes.negotiation import MEDIA_TYPES, choose_format, one_of
from service.routes.sample import cache_headers, is_known_to_client
from service.service import Service

router = APIRouter(route_class=Endpoint, tags=["generate"])

FORMATS = ("json", "png", "gif", "webp", "apng", "npy")
ANIMATED = ("gif", "webp", "apng")
SQUARE_FORMATS = ("json", "png", "npy")
MIN_ANCHORS, MAX_ANCHORS = 2, 64

FloatArray = NDArray[np.float32]
GridSide = Annotated[int, Field(ge=2, le=512)]


class Walk(RequestModel):
    """How to walk, and how to show it."""

    model: ModelReference | None = Field(default=None, description=MODEL)
    steps: int = Field(default=8, ge=2, le=512, description="Frames per segment, ends included.")
    method: Method | None = Field(
        default=None, description="slerp for a normal prior, lerp for a uniform one."
    )
    loop: bool = Field(default=False, description="Walk back to the first anchor.")
    grid: Annotated[tuple[GridSide, GridSide] | None, CommaSeparated] = Field(
        default=None,
        description="Rows and columns of the square between four anchors, instead of a path: top "
        "left, top right, bottom left, bottom right.",
    )
    labels: Labels | None = Field(
        default=None,
        description="Name or number of the class that the whole path is in; left out, the class "
        "of the first seed.",
    )
    truncation: Truncation = 1.0
    format: Annotated[str, one_of(FORMATS)] | None = Field(
        default=None,
        description="Of the answer; left out, `Accept` decides. Of a grid: json, png or npy.",
    )
    fps: int = Field(default=12, ge=1, le=60, description="Frames per second of animations.")
    scale: Scale = 1
    timeout_ms: TimeoutMs | None = None


class InterpolateRequest(Walk):
    """Where and how to walk, and how to show it."""

    anchors: list[Anchor] = Field(min_length=MIN_ANCHORS, max_length=MAX_ANCHORS)


class InterpolateQuery(Walk):
    """A walk through the images of some seeds."""

    seeds: Annotated[tuple[Seed, ...], CommaSeparated] = Field(
        min_length=MIN_ANCHORS, max_length=MAX_ANCHORS, description="Seeds joined by commas."
    )


@router.post(
    "/interpolate",
    response_class=Response,
    responses=answers(
        InterpolateAnswer,
        *(400, 404, 406, 408, 413, 415, 422, 503, 504),
        formats=FORMATS[1:],
        headers=MODEL_HEADERS,
    ),
    summary="Walk through latent space",
)
async def create_interpolation(request: Request, body: InterpolateRequest) -> Response:
    """Show the images along a path; its ends are exactly the anchors' own images."""
    model = service_of(request).find(body.model, "interpolate")
    answer_format = _format_of(request, body, "json")
    return await _answer(request, model, body, body.anchors, answer_format)


@router.get(
    "/interpolate",
    response_class=Response,
    responses=answers(
        InterpolateAnswer,
        *(304, 404, 406, 422, 503, 504),
        formats=FORMATS[1:],
        headers=(*MODEL_HEADERS, *CACHE_HEADERS),
    ),
    summary="Animate a walk for <img src=…>",
)
async def show_interpolation(
    request: Request, query: Annotated[InterpolateQuery, Query()]
) -> Response:
    """Animate the path between the images of some seeds; cacheable like GET /sample."""
    model = service_of(request).find(query.model, "interpolate")
    answer_format = _format_of(request, query, "png" if query.grid else "webp")
    headers = cache_headers(query, model.manifest, answer_format)
    if is_known_to_client(request, headers):
        return Response(status_code=304, headers=headers)
    anchors = [Anchor(seed=seed) for seed in query.seeds]
    response = await _answer(request, model, query, anchors, answer_format)
    response.headers.update(headers)
    return response


async def _answer(
    request: Request, model: Model, walk: Walk, anchors: list[Anchor], answer_format: str
) -> Response:
    service = service_of(request)
    method = walk.method or _default_method(model, anchors)
    num_frames = _check_frames(service, walk, len(anchors))
    _check_picture(model, walk, num_frames, answer_format)
    check_anchors(service, model, anchors)
    number = None
    if model.manifest.labels or walk.labels is not None:
        number = _class_of(service, model, walk, anchors)

    def finish(made: Rows) -> bytes:
        if answer_format == "json":
            return _json_answer(model, walk, method, made)
        return _encode(made["pixels"], walk, answer_format)

    limit_s = timeout_s(request, walk.timeout_ms)
    async with deadline(limit_s):
        latents, outcomes = await latents_of(service, model, anchors, number, limit_s)
        if walk.truncation != 1:  # else every bit stays
            latents = truncate(latents, walk.truncation, model.manifest.noise.prior)
        if walk.grid is None:
            path = path_through(latents, walk.steps, method, loop=walk.loop)
        else:
            path = square_between(latents, *walk.grid, method)
        rows: dict[str, NDArray[Any]] = {"noise": path}
        if number is not None:
            rows[LABEL] = np.full(len(path), number, dtype=np.int64)
        wanted = ("pixels", "noise") if answer_format == "json" else ("pixels",)
        outcome = await model.generate(rows, finish, wanted=wanted, timeout_s=limit_s)
    timing = server_timing(*outcomes, outcome)
    headers = {"X-Model": model.reference, "Server-Timing": timing}
    return Response(outcome.value, headers=headers, media_type=MEDIA_TYPES[answer_format])


def _format_of(request: Request, walk: Walk, default: str) -> str:
    possible: tuple[str, ...] = FORMATS if walk.grid is None else SQUARE_FORMATS
    if default in ANIMATED and walk.format is None:
        # A browser that names png and not webp among its pictures still wants to see them move.
        possible = tuple(name for name in possible if name != "png")
    return choose_format(walk.format, request.headers.get("accept"), possible, default)


def _check_frames(service: Service, walk: Walk, num_anchors: int) -> int:
    """Return how many frames a path or a square has.

    Raises:
        InvalidRequestError: They are too many, or a field has no meaning for a square.
    """
    if walk.grid is None:
        num_frames = (num_anchors - (not walk.loop)) * (walk.steps - 1) + (not walk.loop)
        field, what = "steps", "path"
    else:
        if num_anchors != 4:
            raise InvalidRequestError.of_field(
                "grid", f"a square has 4 anchors, its corners, not {num_anchors}"
            )
        for name in ("steps", "loop", "fps"):
            if name in walk.model_fields_set:
                raise InvalidRequestError.of_field(name, "has no meaning for a grid: leave it out")
        num_frames = walk.grid[0] * walk.grid[1]
        field, what = "grid", "square"
    if num_frames > service.settings.max_rows:
        raise InvalidRequestError.of_field(
            field,
            f"the {what} has {num_frames} frames, at most {service.settings.max_rows} are possible",
        )
    return num_frames


def _check_picture(model: Model, walk: Walk, num_frames: int, answer_format: str) -> None:
    _, height, width = (walk.scale * size for size in model.manifest.image.shape)
    if answer_format == "png":
        columns = num_frames if walk.grid is None else walk.grid[1]
        check_size("png", columns * width, num_frames // columns * height)
    elif answer_format != "npy":
        check_size(answer_format, width, height, num_frames)


def _default_method(model: Model, anchors: list[Anchor]) -> Method:
    # The means of encoded images lie inside of the shell that draws from the prior are in.
    if any(anchor.image is not None for anchor in anchors):
        return "lerp"
    return "slerp" if model.manifest.noise.prior == "normal" else "lerp"


def _class_of(service: Service, model: Model, walk: Walk, anchors: list[Anchor]) -> int:
    """Find the one class of a path; graphs take its number, and there is none between two."""
    require_classes(service, model)
    if walk.labels is None:
        for anchor in anchors:
            if anchor.seed is not None:
                return model.label_of(anchor.seed, anchor.index)
        raise InvalidRequestError.of_field(
            "labels", "say of which class; without a seed there is nothing to draw it from"
        )
    numbers = set(class_numbers(walk.labels, model, len(walk.labels)).tolist())
    if len(numbers) > 1:
        raise InvalidRequestError.of_field(
            "labels",
            f"{model.reference} knows nothing between two classes: give one label for the path",
        )
    return int(numbers.pop())


def _encode(pixels: NDArray[np.uint8], walk: Walk, answer_format: str) -> bytes:
    match answer_format:
        case "npy":
            sides = walk.grid or (len(pixels),)
            return encode_npy(pixels.reshape(*sides, *pixels.shape[1:]))
        case "png":
            columns = walk.grid[1] if walk.grid else len(pixels)
            return encode_picture(enlarge(grid(pixels, columns), walk.scale), "png")
    frames = [enlarge(frame, walk.scale) for frame in pixels]
    durations_s = [1 / walk.fps] * len(frames)
    return encode_animation(frames, answer_format, durations_s)  # type: ignore[arg-type]


def _place(walk: Walk, position: int, num_frames: int) -> dict[str, Any]:
    if walk.grid is not None:
        return {"row": position // walk.grid[1], "column": position % walk.grid[1]}
    # A loop ends one frame before t = 1, which is t = 0.
    return {"t": position / (num_frames - (not walk.loop))}


def _json_answer(model: Model, walk: Walk, method: Method, made: Rows) -> bytes:
    labels, num_frames = model.manifest.labels, len(made["pixels"])
    frames: list[dict[str, Any]] = [
        _place(walk, position, num_frames)
        | {
            "png": encode_base64(encode_picture(enlarge(pixels, walk.scale), "png")),
            "latent": made["noise"][position].tolist(),
        }
        | ({"label": labels[made[LABEL][position]]} if labels else {})
        for position, pixels in enumerate(made["pixels"])
    ]
    manifest = model.manifest
    return json_bytes(
        {
            "model": manifest.name,
            "version": manifest.version,
            "method": method,
            "frames": frames,
        }
    )
