"""POST /complete: the rest of a picture, drawn given the part that is known."""

from typing import Annotated, Any, Self

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidRequestError, UnsupportedMediaTypeError
from service.images import ImageArray
from service.manifest import Image
from service.routes.answers import SampleAnswer
from service.routes.documentation import BINARY, answers, reference
from service.routes.endpoint import (
    JSON_TYPES,
    Endpoint,
    deadline,
    header,
    media_type_of,
    read_body,
    read_json,
    refuse_query,
    service_of,
    timeout_s,
    validate_fields,
)
from service.routes.fields import IMAGE_SCHEMA
from service.routes.forms import FORM, form_schema, parse_form
from service.routes.sample import SAMPLE_HEADERS, SampleQuery, answer_sampling, plan
from service.routes.sheets import FORMATS
from service.routes.uploads import JSON, decode_one

router = APIRouter(route_class=Endpoint, tags=["generate"])

MAX_SIDE = 1024
# More than is possible, so that what is wrong can be said.
MAX_FILES = 8

FloatArray = NDArray[np.float32]
Bit = Annotated[int, Field(ge=0, le=1)]
MaskRow = Annotated[list[Bit], Field(max_length=MAX_SIDE)]


def _rows_from_text(value: Any, info: ValidationInfo) -> Any:
    # In a form, all values are text.
    return from_json(value) if isinstance(value, str) and info.mode == "python" else value


class CompleteOptions(SampleQuery):
    """What is known of a picture, and how many ways to complete it."""

    # The validator below, in the words of a schema.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["known_rows"],
                    "properties": {"known_rows": {"type": "integer"}, "mask": {"type": "null"}},
                },
                {
                    "required": ["mask"],
                    "properties": {"known_rows": {"type": "null"}, "mask": {"type": "array"}},
                },
            ]
        }
    )

    known_rows: int | None = Field(
        default=None, ge=0, le=MAX_SIDE, description="So many rows from the top are known."
    )
    mask: Annotated[list[MaskRow] | None, BeforeValidator(_rows_from_text)] = Field(
        default=None,
        max_length=MAX_SIDE,
        description="Instead of known_rows: 1 where a pixel is known, (H, W). The known pixels "
        "must come first in raster order, row by row from the top.",
    )
    resize: bool = Field(default=False, description="Scale a picture of another size.")
    convert: bool = Field(default=False, description="Turn colour to grey or grey to colour.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.known_rows is None) == (self.mask is None):
            raise ValueError("give either known_rows or a mask")
        return self


class CompleteRequest(CompleteOptions):
    """What is known of which picture, and how many ways to complete it."""

    image: Annotated[list[Any] | str, WithJsonSchema(IMAGE_SCHEMA)] = Field(
        description="Nested integers 0…255, (H, W) or (H, W, C), or a picture in base64. What it "
        "holds where it is not known does not matter."
    )


def _document_body() -> dict[str, Any]:
    form = form_schema(
        CompleteOptions, "image", BINARY | {"description": "PNG, JPEG or WebP, one file."}
    )
    mask = form["properties"]["mask"]["description"]
    form["properties"]["mask"] = {"type": "string", "description": f"{mask} As JSON."}
    form["oneOf"] = [{"required": ["known_rows"]}, {"required": ["mask"]}]
    content = {JSON: {"schema": reference(CompleteRequest)}, FORM: {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/complete",
    response_class=Response,
    responses=answers(
        SampleAnswer,
        *(400, 404, 406, 408, 413, 415, 422, 503, 504),
        formats=FORMATS[1:],
        headers=SAMPLE_HEADERS,
    ),
    openapi_extra=_document_body(),
    summary="Complete an image",
)
async def create_completion(request: Request) -> Response:
    """Draw the unknown pixels from their distribution given the known ones.

    Binary models see the image thresholded at one half.
    """
    service = service_of(request)
    body, item = await _read(request)
    accept = header(request, b"accept")
    sampling = plan(service, body, None, accept, default="json", operation="complete")
    image = sampling.model.manifest.image
    known_mask = _mask_of(body, image)
    async with deadline(timeout_s(request, body.timeout_ms)):
        known = await service.workers.run(lambda: _decode(item, image, body))
        rows = {
            name: np.repeat(values, sampling.num_images, axis=0)
            for name, values in (("known", known), ("known_mask", known_mask))
        }
        completion = sampling._replace(rows={**sampling.rows, **rows})
        return await answer_sampling(request, completion, body)


async def _read(request: Request) -> tuple[CompleteOptions, list[Any] | str | bytes]:
    """Return the fields of a request, and its image, not decoded yet."""
    service = service_of(request)
    service.require_serving()
    media_type = media_type_of(request)
    if media_type not in {*JSON_TYPES, FORM} and not media_type.endswith("+json"):
        raise UnsupportedMediaTypeError(media_type, [JSON, FORM])
    refuse_query(request)
    if media_type != FORM:
        body = await read_json(request, CompleteRequest)
        return body, body.image
    fields, files = await parse_form(request, await read_body(request), "image", MAX_FILES)
    options = validate_fields(fields, CompleteOptions)
    if len(files) > 1:
        raise InvalidRequestError.of_field("image", "send one file: each request completes one")
    return options, files[0]


def _mask_of(body: CompleteOptions, image: Image) -> FloatArray:
    """Return which values are known, (1, C, H, W).

    Raises:
        InvalidRequestError: It has another shape, or a known pixel follows an unknown one. The
            model draws along the raster, so what it drew before would not know of that pixel.
    """
    channels, height, width = image.shape
    if body.mask is None:
        if body.known_rows is None or body.known_rows > height:
            raise InvalidRequestError.of_field("known_rows", f"the images have {height} rows")
        pixels = np.repeat(np.arange(height) < body.known_rows, width)
    else:
        if len(body.mask) != height or any(len(row) != width for row in body.mask):
            raise InvalidRequestError.of_field("mask", f"must have shape ({height}, {width})")
        pixels = np.array(body.mask, dtype=bool).reshape(-1)
        if (np.diff(pixels.astype(np.int8)) > 0).any():
            raise InvalidRequestError.of_field(
                "mask",
                "known pixels must come before all unknown ones in raster order, row by row from "
                "the top; others cannot be taken into account exactly",
            )
    mask = np.broadcast_to(pixels.reshape(1, 1, height, width), (1, channels, height, width))
    return mask.astype(np.float32)


def _decode(item: list[Any] | str | bytes, image: Image, body: CompleteOptions) -> ImageArray:
    try:
        return decode_one(item, image, resize=body.resize, convert=body.convert)
    except ValueError as error:
        raise InvalidRequestError.of_field("image", str(error)) from error
