"""POST /complete: the rest of a picture, drawn given the part that is known."""

from dataclasses import replace
from typing import Annotated, Any, Self

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, WithJsonSchema, model_validator
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidRequestError
from service.manifest import Image
from service.routes.answers import SampleAnswer
from service.routes.documentation import answers
from service.routes.endpoint import Endpoint, deadline, header, service_of, timeout_s
from service.routes.fields import IMAGE_SCHEMA
from service.routes.sample import SAMPLE_HEADERS, SampleQuery, answer_sampling, plan
from service.routes.sheets import FORMATS
from service.routes.uploads import decode_one

router = APIRouter(route_class=Endpoint, tags=["generate"])

MAX_SIDE = 1024

FloatArray = NDArray[np.float32]
Bit = Annotated[int, Field(ge=0, le=1)]
MaskRow = Annotated[list[Bit], Field(max_length=MAX_SIDE)]


class CompleteRequest(SampleQuery):
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

    image: Annotated[list[Any] | str, WithJsonSchema(IMAGE_SCHEMA)] = Field(
        description="Nested integers 0…255, (H, W) or (H, W, C), or a picture in base64. What it "
        "holds where it is not known does not matter."
    )
    known_rows: int | None = Field(
        default=None, ge=0, le=MAX_SIDE, description="So many rows from the top are known."
    )
    mask: list[MaskRow] | None = Field(
        default=None,
        max_length=MAX_SIDE,
        description="Instead of known_rows: 1 where a pixel is known, (H, W). The known pixels "
        "must come first in raster order, row by row from the top.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.known_rows is None) == (self.mask is None):
            raise ValueError("give either known_rows or a mask")
        return self


@router.post(
    "/complete",
    response_class=Response,
    responses=answers(
        SampleAnswer,
        *(400, 404, 406, 408, 413, 415, 422, 503, 504),
        formats=FORMATS[1:],
        headers=SAMPLE_HEADERS,
    ),
    summary="Complete an image",
)
async def create_completion(request: Request, body: CompleteRequest) -> Response:
    """Draw the unknown pixels from their distribution given the known ones.

    Binary models see the image thresholded at one half.
    """
    service = service_of(request)
    accept = header(request, b"accept")
    sampling = plan(service, body, None, accept, default="json", operation="complete")
    image = sampling.model.manifest.image
    known_mask = _mask_of(body, image)
    async with deadline(timeout_s(request, body.timeout_ms)):
        known = await service.workers.run(lambda: _decode(body.image, image))
        rows = {
            name: np.repeat(values, sampling.num_images, axis=0)
            for name, values in (("known", known), ("known_mask", known_mask))
        }
        completion = replace(sampling, rows={**sampling.rows, **rows})
        return await answer_sampling(request, completion, body)


def _mask_of(body: CompleteRequest, image: Image) -> FloatArray:
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


def _decode(item: list[Any] | str, image: Image) -> FloatArray:
    try:
        return decode_one(item, image)
    except ValueError as error:
        raise InvalidRequestError.of_field("image", str(error)) from error
