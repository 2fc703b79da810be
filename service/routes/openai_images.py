"""POST /v1/images/generations and GET /v1/models: for clients of OpenAI's images."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from service.batcher import Rows
from service.errors import InvalidRequestError, ProblemError
from service.graph import LABEL
from service.images import PictureFormat, check_size, encode_base64, encode_picture, resize_nearest
from service.manifest import Image, Manifest
from service.model import Model
from service.routes.answers import Name, UsedSeed, Version
from service.routes.documentation import MODEL_HEADERS, OpenAIError, answers
from service.routes.endpoint import (
    Answer,
    Endpoint,
    json_bytes,
    server_timing,
    service_of,
    timeout_s,
)
from service.routes.fields import MODEL, RequestModel, Seed, TimeoutMs, Truncation, seed_for_json
from service.routes.labels import require_classes
from service.routes.negotiation import MEDIA_TYPES
from service.routes.sample import SampleQuery, Sampling, plan
from service.service import Service

router = APIRouter(route_class=Endpoint, tags=["openai"])

PREFIX = "/v1/"

_MAX_SHOWN_CLASSES = 30


def _no(value: bool) -> bool:
    if value:
        raise ValueError("is not offered here: leave it out")
    return value


# A Literal of False would take 0 as well, and one of 0 False: they are equal in Python.
No = Annotated[bool, AfterValidator(_no), WithJsonSchema({"type": "boolean", "const": False})]


class ImageGenerationRequest(RequestModel):
    """What to generate, in OpenAI's words.

    What would change nothing here (`user`, `quality="auto"`) is taken and ignored; what a client
    could expect to change the picture is refused.
    """

    prompt: str = Field(
        max_length=32_000,
        description="Name or number of a class; empty for any, or for a model without classes.",
    )
    model: str | None = Field(default=None, max_length=80, description=MODEL)
    n: int | None = Field(default=None, ge=1, le=65_536, description="Number of images.")
    size: str | None = Field(
        default=None,
        pattern="^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$",
        description="Width x height in pixels, nearest-neighbour enlarged; auto is the model's.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None, description="b64_json: nothing is stored here that a URL could lead to."
    )
    output_format: PictureFormat | None = Field(default=None, description="By default png.")
    output_compression: Annotated[int, Field(ge=100, le=100)] | None = Field(
        default=None, description="100: pictures lose nothing that they need not."
    )
    quality: Literal["auto", "standard"] | None = Field(default=None, description="Ignored.")
    background: Literal["auto", "opaque"] | None = Field(default=None, description="Ignored.")
    moderation: Literal["auto", "low"] | None = Field(default=None, description="Ignored.")
    stream: No | None = Field(default=None, description="Not offered.")
    partial_images: Annotated[int, Field(ge=0, le=0)] | None = Field(
        default=None, description="Not offered."
    )
    user: str | None = Field(default=None, description="Ignored.")
    safety_identifier: str | None = Field(default=None, description="Ignored.")
    seed: Seed | None = Field(default=None, description="Beyond OpenAI: as of /sample.")
    temperature: float = Field(default=1.0, gt=0, le=10, description="Beyond OpenAI.")
    truncation: Truncation = 1.0
    timeout_ms: TimeoutMs | None = None


class OpenAIModel(TypedDict):
    """A model, in OpenAI's words."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Field(description="Seconds since 1970.")]
    owned_by: str


class OpenAIModelList(TypedDict):
    """All models, in OpenAI's words."""

    object: Literal["list"]
    data: list[OpenAIModel]


class OpenAIImage(TypedDict):
    """An image, in OpenAI's words."""

    b64_json: Annotated[
        str,
        Field(description="A picture in base64.", json_schema_extra={"format": "byte"}),
    ]
    revised_prompt: NotRequired[Annotated[str, Field(description="The class that was drawn.")]]


class OpenAIImages(TypedDict):
    """Images, in OpenAI's words."""

    created: Annotated[int, Field(description="Seconds since 1970.")]
    data: list[OpenAIImage]
    background: Literal["opaque"]
    output_format: PictureFormat
    size: Annotated[str, Field(pattern="^[0-9]+x[0-9]+$", description="Width x height.")]
    model: Name
    version: Version
    seed: UsedSeed


@router.post(
    "/v1/images/generations",
    response_class=Response,
    responses=answers(OpenAIImages, 400, 404, 408, 413, 415, 422, 503, 504, headers=MODEL_HEADERS),
    summary="Generate images, OpenAI's way",
)
async def generate_images(request: Request, body: ImageGenerationRequest) -> Response:
    """Generate images of a class, each as a picture in base64."""
    service = service_of(request)
    model = service.find(body.model, "sample")
    if body.response_format == "url":
        raise InvalidRequestError.of_field(
            "response_format", "nothing is stored here to link to; ask for b64_json"
        )
    picture_format = body.output_format or "png"
    labels = _labels(service, model, body.prompt)
    query = SampleQuery(
        model=model.reference,
        n=body.n or 1,
        seed=body.seed,
        labels=labels,
        temperature=body.temperature,
        truncation=body.truncation,
    )
    sampling = plan(service, query, None, None, default="json")
    width, height = _size(body.size, model.manifest.image)
    check_size(picture_format, width, height, sampling.num_images, field="size")
    outcome = await model.generate(
        sampling.rows,
        _encoder(sampling, picture_format, width, height),
        wanted=("pixels",),
        timeout_s=timeout_s(request, body.timeout_ms),
    )
    headers = {"x-model": model.reference, "server-timing": server_timing(outcome)}
    return Answer(outcome.value, MEDIA_TYPES["json"], headers)


@router.get(
    "/v1/models",
    response_class=Response,
    responses=answers(OpenAIModelList, 503),
    summary="List models, OpenAI's way",
)
async def list_openai_models(request: Request) -> Response:
    """List the newest version of every model."""
    service = service_of(request)
    service.require_serving()
    models = [_describe(model.manifest.name, model) for model in service.newest()]
    return _json({"object": "list", "data": models})


@router.get(
    "/v1/models/{name}",
    response_class=Response,
    responses=answers(OpenAIModel, 404, 503),
    summary="Describe a model, OpenAI's way",
)
async def show_openai_model(request: Request, name: str) -> Response:
    """Describe a model; `name@version` for one of its versions."""
    return _json(_describe(name, service_of(request).find(name)))


def describe_error(error: ProblemError) -> dict[str, Any]:
    """Tell an error in the shape that OpenAI's clients show the text of."""
    fields = error.extensions.get("errors") or [{"pointer": ""}]
    kind: Literal["invalid_request_error", "server_error"] = (
        "server_error" if error.status >= 500 else "invalid_request_error"
    )
    param = fields[0]["pointer"].strip("/").partition("/")[0]
    return OpenAIError(
        message=error.detail, type=kind, param=param or None, code=error.slug
    ).model_dump()


def _labels(service: Service, model: Model, prompt: str) -> tuple[int] | None:
    """Return the number of the class that a prompt names; None for an empty one.

    Raises:
        InvalidRequestError: There is no such class.
        UnsupportedOperationError: There are no classes at all; tells which models have some.
    """
    wanted = prompt.strip()
    if not wanted:
        return None
    require_classes(service, model, "the prompt must be empty")
    classes = model.manifest.labels
    folded = [name.casefold() for name in classes]
    if wanted in classes:
        return (classes.index(wanted),)
    if folded.count(wanted.casefold()) == 1:
        return (folded.index(wanted.casefold()),)
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 9 and int(wanted) < len(classes):
        return (int(wanted),)
    more = ", …" if len(classes) > _MAX_SHOWN_CLASSES else ""
    raise InvalidRequestError.of_field(
        "prompt",
        f"{model.reference} draws classes, not texts; say one of: "
        f"{', '.join(classes[:_MAX_SHOWN_CLASSES])}{more}; or nothing, for any of them",
    )


def _size(size: str | None, image: Image) -> tuple[int, int]:
    """Return the width and height of the pictures.

    Raises:
        InvalidRequestError: They are of another shape than the model's images, or smaller.
    """
    _, height, width = image.shape
    if size in {None, "auto"}:
        return width, height
    wanted_width, wanted_height = map(int, str(size).split("x"))
    if wanted_width * height != wanted_height * width or wanted_width < width:
        raise InvalidRequestError.of_field(
            "size",
            f"the model draws {width}x{height}; ask for that, or for larger of the same "
            f"proportions, such as {8 * width}x{8 * height}",
        )
    return wanted_width, wanted_height


def _encoder(
    sampling: Sampling, picture_format: PictureFormat, width: int, height: int
) -> Callable[[Rows], bytes]:
    manifest = sampling.model.manifest
    created = int(time.time())

    def describe(pixels: NDArray[np.uint8], label: int | None) -> dict[str, Any]:
        picture = encode_picture(resize_nearest(pixels, width, height), picture_format)
        described = {"b64_json": encode_base64(picture)}
        if label is not None:
            described["revised_prompt"] = manifest.labels[label]
        return described

    def encode(made: Rows) -> bytes:
        labels = made[LABEL].tolist() if manifest.labels else [None] * sampling.num_images
        return json_bytes(
            {
                "created": created,
                "data": list(map(describe, made["pixels"], labels)),
                "background": "opaque",
                "output_format": picture_format,
                "size": f"{width}x{height}",
                "model": manifest.name,
                "version": manifest.version,
                "seed": seed_for_json(sampling.seed or 0),
            }
        )

    return encode


def _describe(name: str, model: Model) -> dict[str, Any]:
    created = _created(model.manifest)
    return {"id": name, "object": "model", "created": created, "owned_by": "ptheta"}


def _created(manifest: Manifest) -> int:
    try:
        return int(datetime.fromisoformat(manifest.training.created).timestamp())
    except ValueError:  # the manifest does not say how to write it
        return 0


def _json(content: dict[str, Any]) -> Response:
    return Response(json_bytes(content), media_type=MEDIA_TYPES["json"])
