"""Several images as one answer: one picture with columns, or an array."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.images import (
    check_size,
    encode_npy,
    encode_picture,
    enlarge,
    grid,
    near_square_columns,
)
from service.manifest import Image
from service.routes.negotiation import one_of

FORMATS = ("json", "png", "webp", "jpeg", "npy")
SheetFormat = Annotated[str, one_of(FORMATS)]

Columns = Annotated[
    int | None,
    Field(ge=1, le=1024, description="Of the one picture; else near-square."),
]


def check_sheet(
    image: Image, num_images: int, columns: int | None, scale: int, answer_format: str
) -> None:
    """Refuse what would be too large, before anything is drawn.

    Args:
        image: Of the model.
        num_images: How many there will be.
        columns: Of the one picture.
        scale: Enlargement.
        answer_format: One of `FORMATS`; JSON holds a picture of each image.

    Raises:
        InvalidRequestError: It would be too large.
    """
    _, height, width = image.shape
    height, width = scale * height, scale * width
    if answer_format == "json":
        check_size("png", width, height, num_images)
    elif answer_format != "npy":
        chosen = columns or near_square_columns(num_images)
        check_size(answer_format, chosen * width, -(-num_images // chosen) * height)


def encode_sheet(
    pixels: NDArray[np.uint8], columns: int | None, scale: int, answer_format: str
) -> bytes:
    """Encode images, (N, H, W[, C]), in any of `FORMATS` but JSON."""
    if answer_format == "npy":
        return encode_npy(pixels)
    chosen = columns or near_square_columns(len(pixels))
    sheet = pixels[0] if len(pixels) == 1 == chosen else grid(pixels, chosen)
    return encode_picture(enlarge(sheet, scale), answer_format)  # type: ignore[arg-type]
