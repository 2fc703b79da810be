"""Images in requests: JSON, multipart files or a .npy array, and the options that go with them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, WithJsonSchema
from starlette.requests import Request

from service.errors import InvalidRequestError, UnsupportedMediaTypeError
from service.images import (
    ImageArray,
    decode_base64,
    decode_npy,
    decode_picture,
    from_pixels,
    require_shape,
)
from service.manifest import Image, Operation, Role
from service.model import Model
from service.routes.documentation import BINARY, reference, without_null
from service.routes.endpoint import (
    JSON_TYPES,
    media_type_of,
    read_body,
    refuse_query,
    service_of,
    validate_fields,
    validate_json,
    validate_query,
)
from service.routes.fields import IMAGE_SCHEMA, MODEL, ModelReference, RequestModel, Seed, TimeoutMs
from service.routes.forms import FORM, form_schema, parse_form
from service.routes.labels import Labels
from service.routes.negotiation import one_of
from service.scoring import Binarize, binarize

JSON, NPY = "application/json", "application/x-npy"

FloatArray = NDArray[np.float32]

# Images of a large array that are prepared at once: more would fill memory that nothing else needs.
_PREPARED_AT_ONCE = 64


class ImageOptions(RequestModel):
    """Which model gets images, and how they are prepared for it."""

    model: ModelReference | None = Field(default=None, description=MODEL)
    labels: Labels | None = Field(
        default=None,
        description="Class-conditional models: the class of the images; one label, or one each.",
    )
    binarize: Binarize | None = Field(
        default=None, description="Binary models only: threshold at one half, or stochastic."
    )
    seed: Seed = Field(default=0, description="Of all that is random: here, of binarization.")
    resize: bool = Field(default=False, description="Scale pictures of another size.")
    convert: bool = Field(default=False, description="Turn colour to grey or grey to colour.")
    format: Annotated[str, one_of(("json", "npy"))] | None = Field(
        default=None, description="Of the answer; left out, `Accept` decides."
    )
    timeout_ms: TimeoutMs | None = None


class ImageList(RequestModel):
    """The images of a JSON request."""

    images: list[Annotated[Any, WithJsonSchema(IMAGE_SCHEMA)]] = Field(
        min_length=1,
        max_length=65_536,
        description="Nested integers 0…255, (H, W) or (H, W, C), or pictures in base64.",
    )


OptionsT = TypeVar("OptionsT", bound=ImageOptions)


@dataclass(frozen=True)
class Upload(Generic[OptionsT]):
    """A request with images that are not decoded yet.

    Attributes:
        options: All fields but the images.
        model: The model that is asked for.
        decode: Decodes and prepares the images.
    """

    options: OptionsT
    model: Model
    decode: Callable[[], ImageArray]


async def read_upload(
    request: Request,
    options_type: type[OptionsT],
    json_type: type[OptionsT],
    operation: Operation,
    role: Role,
) -> Upload[OptionsT]:
    """Read a request with images.

    Args:
        request: The request.
        options_type: Its fields but the images.
        json_type: Its fields with the images, as JSON has them.
        operation: What the model must be able to do.
        role: The graph whose queue must have room, or nothing is even read.

    Raises:
        ProblemError: The model, a field, the body or its media type is not possible.
    """
    service_of(request).require_serving()
    media_type = media_type_of(request)
    if media_type not in {*JSON_TYPES, FORM, NPY}:
        raise UnsupportedMediaTypeError(media_type, [JSON, FORM, NPY])

    def admit(options: OptionsT) -> Model:
        model = service_of(request).find(options.model, operation)
        model.graphs[role].batcher.admit(num_rows=1)
        _check_binarize(model, options)
        return model

    if media_type == NPY:
        options = validate_query(request, options_type)
        admit(options)  # all is known but the images: do not even read them
        body = await read_body(request)
        model = admit(options)
        image = model.manifest.image
        return Upload(options, model, lambda: _decode_array(body, image, options))
    refuse_query(request)
    body = await read_body(request)
    if media_type == FORM:
        max_files = service_of(request).settings.max_rows
        fields, files = await parse_form(request, body, "images", max_files)
        options = validate_fields(fields, options_type)
        model = admit(options)
        image = model.manifest.image
        return Upload(options, model, lambda: _decode_pictures(files, image, options))
    asked = await asyncio.to_thread(validate_json, body or b"{}", json_type)
    model = admit(asked)
    image = model.manifest.image
    images: list[Any] = asked.images  # type: ignore[attr-defined]
    return Upload(asked, model, lambda: _decode_json(images, image, asked))


async def decode_upload(request: Request, upload: Upload[OptionsT]) -> ImageArray:
    """Decode the images of a request in a worker thread.

    Raises:
        InvalidRequestError: An image is not one of the model's, or there are too many.
    """
    service = service_of(request)
    images = await service.workers.run(upload.decode)
    if len(images) > service.settings.max_rows:
        raise InvalidRequestError.of_field(
            "images", f"at most {service.settings.max_rows} per request, not {len(images)}"
        )
    return images


def _check_binarize(model: Model, options: ImageOptions) -> None:
    if options.binarize is not None and model.manifest.image.values != "binary":
        raise InvalidRequestError.of_field(
            "binarize", f"{model.reference} takes grey levels as they are"
        )


def decode_one(
    item: list[Any] | str | bytes, image: Image, *, resize: bool = False, convert: bool = False
) -> ImageArray:
    """Decode one image of a request, (1, C, H, W), at one half for a binary model.

    Args:
        item: Nested integers, a picture in base64, or the bytes of a picture.
        image: What the model takes.
        resize: Scale a picture of another size.
        convert: Turn colour to grey or grey to colour.

    Raises:
        ValueError: It is no image of the model's.
    """
    options = ImageOptions(resize=resize, convert=convert)
    return _prepare(from_pixels(_decode_item(item, image, options)[None], image), image, options)


def document_body(options_type: type[BaseModel], json_type: type[BaseModel]) -> dict[str, Any]:
    """Describe such a request for the OpenAPI document.

    Args:
        options_type: Its fields but the images.
        json_type: Its fields with the images, as JSON has them.
    """
    options = without_null(options_type.model_json_schema()["properties"])
    parameters = [
        {
            "name": name,
            "in": "query",
            "schema": schema,
            "description": f"Only of {NPY}: else a field of the body. {schema['description']}",
        }
        for name, schema in options.items()
    ]
    files = {"type": "array", "items": BINARY, "minItems": 1, "description": "PNG, JPEG or WebP."}
    array = BINARY | {"description": "uint8 or float32, (N, H, W) or (N, H, W, C), 0 to 255."}
    content = {
        JSON: {"schema": reference(json_type)},
        FORM: {"schema": form_schema(options_type, "images", files)},
        NPY: {"schema": array},
    }
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


def _decode_array(body: bytes, image: Image, options: ImageOptions) -> ImageArray:
    try:
        pixels = decode_npy(body)
        if pixels.dtype not in (np.uint8, np.float32):
            raise ValueError(f"the array must be uint8 or float32, not {pixels.dtype}")
        require_shape(pixels, image)
        if not len(pixels):
            raise ValueError("the array holds no image")
        parts = [
            _prepare(from_pixels(pixels[i : i + _PREPARED_AT_ONCE], image), image, options, i)
            for i in range(0, len(pixels), _PREPARED_AT_ONCE)
        ]
    except ValueError as error:
        raise InvalidRequestError.of_field("images", str(error)) from error
    return np.concatenate(parts)


def _decode_pictures(files: list[bytes], image: Image, options: ImageOptions) -> ImageArray:
    return _decode_each(files, lambda file: _decode_file(file, image, options), image, options)


def _decode_json(images: list[Any], image: Image, options: ImageOptions) -> ImageArray:
    return _decode_each(images, lambda item: _decode_item(item, image, options), image, options)


def _decode_item(item: Any, image: Image, options: ImageOptions) -> NDArray[np.generic]:
    if isinstance(item, str | bytes):
        file = item if isinstance(item, bytes) else decode_base64(item)
        return _decode_file(file, image, options)
    try:
        pixels = np.array(item)
    except (ValueError, OverflowError) as error:
        raise ValueError("must be a full (H, W) or (H, W, C) array") from error
    if pixels.dtype.kind not in "iu":
        raise ValueError("must be integers from 0 to 255, or a picture in base64")
    return pixels


def _decode_file(file: bytes, image: Image, options: ImageOptions) -> NDArray[np.uint8]:
    return decode_picture(file, image, resize=options.resize, convert=options.convert)


def _decode_each(
    items: list[Any],
    decode: Callable[[Any], NDArray[np.generic]],
    image: Image,
    options: ImageOptions,
) -> ImageArray:
    decoded = []
    for position, item in enumerate(items):
        try:
            decoded.append(from_pixels(decode(item)[None], image))
        except ValueError as error:
            raise InvalidRequestError(
                f"image {position}: {error}", [(f"/images/{position}", str(error))]
            ) from error
    return _prepare(np.concatenate(decoded), image, options)


def _prepare(
    images: FloatArray, image: Image, options: ImageOptions, first_index: int = 0
) -> ImageArray:
    if image.values != "binary":
        return images
    method = options.binarize or "threshold"
    return binarize(images, method, options.seed, first_index).astype(np.bool_)
