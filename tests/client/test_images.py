"""What a caller calls images, as the service reads them."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from ptheta_client.images import picture_file, upload_of
from tests.service.answers import pixels_of


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 2, 2)), "float64"),
        (np.zeros((1, 2, 2), bool), "bool"),
        (np.full((1, 2, 2), 256), "from 0 to 255"),
        (np.full((1, 2, 2), -1), "from 0 to 255"),
        ([], "no images"),
        ([np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)], "differ in shape"),
        (["digit.png"], "str is no image"),
        ([PillowImage.new("L", (2, 2)), np.zeros((2, 2), np.float32)], "integers"),
    ],
)
def test_what_is_no_image_is_refused_before_anything_is_sent(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upload_of(images)


def test_arrays_go_as_npy_and_keep_their_order() -> None:
    flipped = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, :, ::-1]
    sent = upload_of(flipped).npy
    assert sent is not None
    assert (np.load(io.BytesIO(sent)) == flipped).all()


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 3)])
def test_a_picture_file_keeps_every_pixel(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert (pixels_of(picture_file(pixels)) == pixels.squeeze()).all()
