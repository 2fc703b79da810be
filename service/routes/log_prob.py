"""POST /log_prob: how likely images are."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from service.batcher import Rows
from service.errors import (
    InvalidRequestError,
    MalformedRequestError,
    UnsupportedMediaTypeError,
    UnsupportedOperationError,
)
from service.images import decode_base64, decode_npy, decode_picture, encode_npy, from_pixels
from service.manifest import Image
from service.model import Model
from service.routes.documentation import BINARY, answers, media
from service.routes.endpoint import (
    JSON_TYPES,
    Endpoint,
    deadline,
    json_bytes,
    media_type_of,
    read_body,
    server_timing,
    service_of,
    timeout_s,
    validate_fields,
    validate_json,
    validate_query,
)
from service.routes.fields import ModelReference, RequestModel, Seed, TimeoutMs
from service.routes.labels import Labels, class_numbers, require_classes
from service.routes.negotiation import MEDIA_TYPES, choose_format
from service.scoring import Binarize, binarize, per_dim_maps, result_of
from service.service import Service

router = APIRouter(route_class=Endpoint, tags=["score"])

FORMATS = ("json", "npy")
JSON, FORM, NPY = "application/json", "multipart/form-data", "application/x-npy"

FloatArray = NDArray[np.float32]
Decode = Callable[[], FloatArray]


class LogProbOptions(RequestModel):
    """Which model scores, and how."""

    model: ModelReference | None = None
    binarize: Binarize | None = Field(
        default=None, description="Binary models only: threshold at one half, or stochastic."
    )
    labels: Labels | None = Field(
        default=None,
        description="Class-conditional models: score p(x given label); one label, or one each.",
    )
    seed: Seed = Field(default=0, description="Of stochastic binarization.")
    per_dim: bool = Field(default=False, description="The surprise of every pixel, in nats.")
    resize: bool = Field(default=False, description="Scale pictures of another size.")
    convert: bool = Field(default=False, description="Turn colour to grey or grey to colour.")
    format: str | None = Field(default=None, description=f"One of {', '.join(FORMATS)}.")
    timeout_ms: TimeoutMs | None = None


class LogProbRequest(LogProbOptions):
    """Which model scores which images, and how."""

    images: list[Any] = Field(
        min_length=1,
        max_length=65_536,
        description="Nested integers 0…255, (H, W) or (H, W, C), or pictures in base64.",
    )


_EXAMPLE_IMAGE = [[0] * 28 for _ in range(28)]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": LogProbRequest.model_json_schema(
                    ref_template="#/components/schemas/{model}"
                ),
                "example": {"model": "nade-mnist", "images": [_EXAMPLE_IMAGE]},
            },
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": BINARY}},
                    "additionalProperties": True,
                }
            },
            NPY: {"schema": BINARY},
        },
    }
}


@router.post(
    "/log_prob",
    response_class=Response,
    responses=answers(
        {"application/json": {"schema": {"type": "object"}}} | media("npy"),
        *(400, 404, 406, 413, 415, 422, 503, 504),
    ),
    openapi_extra=_BODY,
    summary="Score images",
)
async def create_log_prob(request: Request) -> Response:
    """Tell the log-likelihood of images in nats: JSON, multipart files or a .npy array."""
    service = service_of(request)
    service.require_serving()
    options, make_decode = await _read(request)
    model = _admit(service, options)
    answer_format = choose_format(options.format, request.headers.get("accept"), FORMATS, "json")
    _check_options(service.catalog.newest(), model, options)
    _check_labels(service, model, options)

    def finish(outputs: Rows) -> bytes:
        if answer_format == "npy":
            return _npy_answer(outputs, options)
        return _json_answer(model, options, outputs)

    limit_s = timeout_s(request, options.timeout_ms)
    async with deadline(limit_s):
        images = await service.workers.run(make_decode(model.manifest.image, options))
        if len(images) > service.settings.max_rows:
            raise InvalidRequestError.of_field(
                "images", f"at most {service.settings.max_rows} per request, not {len(images)}"
            )
        labels = class_numbers(options.labels, model, len(images)) if options.labels else None
        outcome = await model.log_prob(images, finish, labels=labels, timeout_s=limit_s)
    headers = {"X-Model": model.reference, "Server-Timing": server_timing(outcome)}
    return Response(outcome.value, headers=headers, media_type=MEDIA_TYPES[answer_format])


async def _read(
    request: Request,
) -> tuple[LogProbOptions, Callable[[Image, LogProbOptions], Decode]]:
    media_type = media_type_of(request)
    if media_type not in {*JSON_TYPES, FORM, NPY}:
        raise UnsupportedMediaTypeError(media_type, [JSON, FORM, NPY])
    if media_type == NPY:
        options = validate_query(request, LogProbOptions)
        _admit(service_of(request), options)  # all is known but the images: do not even read them
        body = await read_body(request)
        return options, lambda image, chosen: lambda: _decode_array(body, image, chosen)
    body = await read_body(request)
    if media_type == FORM:
        fields, files = await _parse_form(request, body)
        options = validate_fields(fields, LogProbOptions)
        return options, lambda image, chosen: lambda: _decode_pictures(files, image, chosen)
    asked = await asyncio.to_thread(validate_json, body or b"{}", LogProbRequest)
    return asked, lambda image, chosen: lambda: _decode_json(asked.images, image, chosen)


def _admit(service: Service, options: LogProbOptions) -> Model:
    """Find the model, and refuse before any picture is decoded if its queue is full."""
    model = service.find(options.model, "log_prob")
    model.graphs["log_prob"].batcher.admit(num_rows=1)
    return model


async def _parse_form(request: Request, body: bytes) -> tuple[dict[str, Any], list[bytes]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    if not body.rstrip().endswith(b"--"):
        raise MalformedRequestError("the form cannot be read: its end is missing")
    max_rows = service_of(request).settings.max_rows
    parser = MultiPartParser(request.headers, stream(), max_files=max_rows, max_fields=32)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", "is the boundary right?")
        raise MalformedRequestError(f"the form cannot be read: {reason}") from error
    fields: dict[str, Any] = {}
    files: list[bytes] = []
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                if name in fields:
                    raise InvalidRequestError.of_field(name, "is given twice; give it once")
                fields[name] = value
            elif name == "images":
                files.append(await value.read())
            else:
                raise InvalidRequestError.of_field(name, "files are sent as `images`")
    finally:
        await form.close()
    if not files:
        raise InvalidRequestError.of_field("images", "send at least one file")
    return fields, files


def _check_options(newest: list[Model], model: Model, options: LogProbOptions) -> None:
    if options.binarize is not None and model.manifest.image.values != "binary":
        raise InvalidRequestError.of_field(
            "binarize", f"{model.reference} scores grey levels as they are"
        )
    if options.per_dim and not model.has_conditionals:
        raise UnsupportedOperationError(
            f"{model.reference} has no conditionals to show per pixel",
            [other.manifest.name for other in newest if other.has_conditionals],
        )


def _check_labels(service: Service, model: Model, options: LogProbOptions) -> None:
    if options.labels is not None:
        require_classes(service, model)
    elif model.manifest.labels:
        raise InvalidRequestError.of_field(
            "labels", f"{model.reference} scores p(x given label): say of which class"
        )


def _decode_array(body: bytes, image: Image, options: LogProbOptions) -> FloatArray:
    try:
        pixels = decode_npy(body)
        if pixels.dtype not in (np.uint8, np.float32):
            raise ValueError(f"the array must be uint8 or float32, not {pixels.dtype}")
        scaled = from_pixels(pixels, image)
        if not len(scaled):
            raise ValueError("the array holds no image")
    except ValueError as error:
        raise InvalidRequestError.of_field("images", str(error)) from error
    return _prepare(scaled, image, options)


def _decode_pictures(files: list[bytes], image: Image, options: LogProbOptions) -> FloatArray:
    return _decode_each(files, lambda file: _decode_file(file, image, options), image, options)


def _decode_json(images: list[Any], image: Image, options: LogProbOptions) -> FloatArray:
    def decode(item: Any) -> NDArray[np.generic]:
        if isinstance(item, str):
            return _decode_file(decode_base64(item), image, options)
        pixels = _as_array(item)
        if pixels.dtype.kind not in "iu":
            raise ValueError("must be integers from 0 to 255, or a picture in base64")
        return pixels

    return _decode_each(images, decode, image, options)


def _as_array(item: Any) -> NDArray[np.generic]:
    try:
        return np.array(item)
    except (ValueError, OverflowError) as error:
        raise ValueError("must be a full (H, W) or (H, W, C) array") from error


def _decode_file(file: bytes, image: Image, options: LogProbOptions) -> NDArray[np.uint8]:
    return decode_picture(file, image, resize=options.resize, convert=options.convert)


def _decode_each(
    items: list[Any],
    decode: Callable[[Any], NDArray[np.generic]],
    image: Image,
    options: LogProbOptions,
) -> FloatArray:
    decoded = []
    for position, item in enumerate(items):
        try:
            decoded.append(from_pixels(decode(item)[None], image))
        except ValueError as error:
            raise InvalidRequestError(
                f"image {position}: {error}", [(f"/images/{position}", str(error))]
            ) from error
    return _prepare(np.concatenate(decoded), image, options)


def _prepare(images: FloatArray, image: Image, options: LogProbOptions) -> FloatArray:
    if image.values == "binary":
        return binarize(images, options.binarize or "threshold", options.seed)
    return images


def _npy_answer(outputs: Rows, options: LogProbOptions) -> bytes:
    if options.per_dim:
        return encode_npy(per_dim_maps(outputs["conditional_log_prob"]))
    return encode_npy(outputs["log_prob"].astype(np.float64))


def _json_answer(model: Model, options: LogProbOptions, outputs: Rows) -> bytes:
    manifest = model.manifest
    results = [
        result_of(index, float(log_prob), manifest.image)
        for index, log_prob in enumerate(outputs["log_prob"])
    ]
    if options.per_dim:
        for result, surprise in zip(
            results, per_dim_maps(outputs["conditional_log_prob"]), strict=True
        ):
            result["per_dim"] = surprise.tolist()
    is_binary = manifest.image.values == "binary"
    return json_bytes(
        {
            "model": manifest.name,
            "version": manifest.version,
            "density": manifest.density,
            "estimator": "exact",
            "num_dims": manifest.image.num_dims,
            "preprocess": {"binarize": (options.binarize or "threshold") if is_binary else None},
            "results": results,
        }
    )
