"""Images of the caller, as requests carry them, and pictures in answers."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

UInt8Array = NDArray[np.uint8]

ImageInput = (
    NDArray[np.generic]
    | PillowImage.Image
    | bytes
    | Sequence[NDArray[np.generic] | PillowImage.Image | bytes]
)
"""Images: an array (n, H, W[, C]) or one image (H, W), of grey levels 0…255 as uint8, float32 or
other integers; a PIL image; the bytes of a picture file; or a sequence of any of these."""


@dataclass(frozen=True)
class Upload:
    """Images as one request body carries them: exactly one of the two.

    Attributes:
        npy: An array in NumPy's own format.
        files: Picture files.
    """

    npy: bytes | None = None
    files: tuple[bytes, ...] = ()


def upload_of(images: ImageInput) -> Upload:
    """Choose how to send images: arrays as .npy, which is small and quick to read, others as files.

    Raises:
        ValueError: They are no images.
    """
    if isinstance(images, np.ndarray):
        return Upload(npy=encode_npy(_levels(images[None] if images.ndim == 2 else images)))
    items = [images] if isinstance(images, PillowImage.Image | bytes) else list(images)
    if not items:
        raise ValueError("there are no images")
    arrays = [item for item in items if isinstance(item, np.ndarray)]
    if len(arrays) == len(items):
        if len({array.shape for array in arrays}) > 1:
            raise ValueError("the arrays differ in shape")
        return Upload(npy=encode_npy(_levels(np.stack(arrays))))
    return Upload(files=tuple(map(picture_file, items)))


def picture_file(image: NDArray[np.generic] | PillowImage.Image | bytes) -> bytes:
    """Encode one image as a picture file that keeps every pixel.

    Args:
        image: Shape (H, W), (H, W, 1) or (H, W, 3); or a PIL image; or a file, left as it is.

    Raises:
        ValueError: It is no image.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        levels = _levels(image)
        if levels.dtype != np.uint8:
            raise ValueError("a single image must hold integers from 0 to 255")
        if levels.ndim == 3 and levels.shape[-1] == 1:
            levels = levels[..., 0]
        if levels.ndim not in {2, 3}:
            raise ValueError(f"an image has shape (H, W) or (H, W, C), not {image.shape}")
        image = PillowImage.fromarray(levels)
    if not isinstance(image, PillowImage.Image):
        raise ValueError(f"{type(image).__name__} is no image: give an array, a PIL image or bytes")
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _levels(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return grey levels in a type that the server reads.

    Raises:
        ValueError: They are none: another type, or out of range.
    """
    if pixels.dtype in (np.uint8, np.float32):
        return pixels
    if pixels.dtype.kind not in "iu":
        raise ValueError(
            f"images hold grey levels 0…255 as integers or float32, not {pixels.dtype}; of values "
            "in [0, 1] give np.rint(255 * images).astype(np.uint8)"
        )
    if pixels.size and not 0 <= int(pixels.min()) <= int(pixels.max()) <= 255:
        raise ValueError("grey levels are from 0 to 255")
    return pixels.astype(np.uint8)


def encode_base64(content: bytes) -> str:
    """Encode bytes as JSON carries them."""
    return base64.b64encode(content).decode("ascii")


def decode_png(text: str) -> UInt8Array:
    """Decode a picture in base64, (H, W) or (H, W, 3)."""
    with PillowImage.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.asarray(picture, dtype=np.uint8)


def encode_npy(array: NDArray[np.generic]) -> bytes:
    """Encode an array in NumPy's own format."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(content: bytes) -> NDArray[Any]:
    """Decode an array in NumPy's own format.

    Raises:
        ValueError: It is none.
    """
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def to_pictures(images: UInt8Array) -> list[PillowImage.Image]:
    """Turn an array, (n, H, W[, 3]), into PIL images."""
    return [PillowImage.fromarray(image) for image in images]
