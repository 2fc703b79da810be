"""Arrays to and from pictures: PNG, WebP, JPEG, GIF, APNG and npy; grids and strips."""

import base64
import io
import math
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from service.errors import InvalidRequestError
from service.manifest import Image

UInt8Array = NDArray[np.uint8]
FloatArray = NDArray[np.float32]

# Images as models take them, (N, C, H, W) in [0, 1]; 0 and 1 of a binary model may be a byte each
# until they are run.
ImageArray = NDArray[np.float32 | np.bool_]
PictureFormat = Literal["png", "webp", "jpeg"]
AnimationFormat = Literal["gif", "webp", "apng"]

# A picture that claims more pixels is refused before a single one is decoded, and one that would
# have more before a single one is made.
MAX_PICTURE_PIXELS = 4096 * 4096

# What the formats themselves can hold; JPEG's encoder stops a little earlier than JPEG.
_MAX_SIDE = {"webp": 16_383, "jpeg": 65_500, "gif": 65_535}

_READABLE = ("PNG", "JPEG", "WEBP", "GIF")

# NumPy evaluates the header of an array as Python. Python 3.11 counts for all threads together how
# deep such an expression is, and two that are evaluated at the same time may both fail.
_headers = threading.Lock()


def to_pixels(images: ImageArray) -> UInt8Array:
    """Round images in [0, 1] to grey levels.

    Args:
        images: Shape (N, C, H, W).

    Returns:
        0…255, shape (N, H, W) for one channel, else (N, H, W, C).
    """
    with np.errstate(invalid="ignore"):  # what is not a number has no grey level, whoever asks
        levels: UInt8Array = np.rint(images * np.float32(255)).clip(0, 255).astype(np.uint8)
    return levels[:, 0] if levels.shape[1] == 1 else levels.transpose(0, 2, 3, 1)


def from_pixels(pixels: NDArray[np.generic], image: Image) -> FloatArray:
    """Turn grey levels 0…255 into what graphs take, shape (N, C, H, W) in [0, 1].

    Args:
        pixels: Shape (N, H, W) or (N, H, W, C), integers or floats in 0…255.
        image: The shape to fit.

    Raises:
        ValueError: The shape or a value does not fit; the text says what would.
    """
    require_shape(pixels, image)
    channels, height, width = image.shape
    levels = pixels.astype(np.float32)
    if not ((levels >= 0) & (levels <= 255)).all():  # NaN fails both
        raise ValueError("pixels must be numbers from 0 to 255")
    scaled = levels.reshape(-1, height, width, channels) / np.float32(255)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def require_shape(pixels: NDArray[np.generic], image: Image) -> None:
    """Check that an array holds images of a model.

    Raises:
        ValueError: It does not; the text says what would fit.
    """
    channels, height, width = image.shape
    shapes = [(height, width, channels)] + ([(height, width)] if channels == 1 else [])
    if pixels.ndim < 2 or pixels.shape[1:] not in shapes:
        expected = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in shapes)
        raise ValueError(f"images must have shape {expected}, got {pixels.shape}")


def near_square_columns(num_images: int) -> int:
    """Return the number of columns of the grid nearest to a square."""
    return math.ceil(math.sqrt(num_images))


def grid(pixels: UInt8Array, columns: int) -> UInt8Array:
    """Lay images out row by row without gaps; missing ones are black.

    Args:
        pixels: Shape (N, H, W) or (N, H, W, C).
        columns: Images per row.

    Returns:
        Shape (rows·H, columns·W) or (rows·H, columns·W, C).
    """
    num_images, height, width, *channels = pixels.shape
    rows = -(-num_images // columns)
    cells = np.zeros((rows * columns, height, width, *channels), dtype=np.uint8)
    cells[:num_images] = pixels
    cells = cells.reshape(rows, columns, height, width, *channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, *channels)


def enlarge(pixels: UInt8Array, scale: int) -> UInt8Array:
    """Repeat each pixel `scale` times along the first two axes."""
    return pixels if scale == 1 else pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def resize_nearest(pixels: UInt8Array, width: int, height: int) -> UInt8Array:
    """Enlarge a picture, (H, W) or (H, W, 3), by repeating its pixels, as evenly as can be."""
    rows = np.arange(height) * pixels.shape[0] // height
    columns = np.arange(width) * pixels.shape[1] // width
    resized: UInt8Array = pixels[rows[:, None], columns]
    return resized


def check_size(
    answer_format: str, width: int, height: int, num_pictures: int = 1, *, field: str = "scale"
) -> None:
    """Refuse pictures that nobody should ask for, before they are made.

    Args:
        answer_format: What they will be encoded as.
        width: Of each, in pixels.
        height: Of each, in pixels.
        num_pictures: How many pictures, or frames of an animation.
        field: What to blame.

    Raises:
        InvalidRequestError: There are too many pixels, or the format cannot hold them.
    """
    side = _MAX_SIDE.get(answer_format, MAX_PICTURE_PIXELS)
    if max(width, height) > side or width * height * num_pictures > MAX_PICTURE_PIXELS:
        count = f"{num_pictures} pictures" if num_pictures > 1 else "a picture"
        raise InvalidRequestError.of_field(
            field,
            f"{count} of {width}×{height} pixels would be too large: {MAX_PICTURE_PIXELS} pixels "
            f"and sides of {side} are possible as {answer_format}; lower the {field}, or ask for "
            + ("fewer images or columns, or for npy" if field == "scale" else "fewer images"),
        )


def encode_picture(pixels: UInt8Array, picture_format: PictureFormat) -> bytes:
    """Encode one picture, shape (H, W) or (H, W, 3); PNG and WebP keep every pixel exactly."""
    if picture_format == "png":
        return _encode_png(pixels)
    buffer = io.BytesIO()
    picture = PillowImage.fromarray(np.ascontiguousarray(pixels))
    match picture_format:
        case "webp":
            picture.save(buffer, "webp", lossless=True, quality=50, method=2)
        case "jpeg":
            picture.save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def _encode_png(pixels: UInt8Array) -> bytes:
    """Encode a grey or RGB picture as PNG: one header, one compressed chunk, unfiltered rows.

    Pillow takes nearly twice as long for a small picture, most of it holding the GIL, and its
    wheels bring a compressor whose bytes depend on the processor.
    """
    height, width, *channels = pixels.shape
    rows = np.zeros((height, 1 + width * math.prod(channels)), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    colour_type = 2 if channels else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    data = zlib.compress(rows.data, 1)
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _PNG_END


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"%b%b%b%b" % (
        len(data).to_bytes(4, "big"),
        kind,
        data,
        zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big"),
    )


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = _chunk(b"IEND", b"")


def encode_animation(
    frames: Sequence[UInt8Array], animation_format: AnimationFormat, durations_s: Sequence[float]
) -> bytes:
    """Encode an endless animation; WebP and APNG keep every pixel exactly, GIF 256 colours.

    Args:
        frames: Pictures of one shape, (H, W) or (H, W, 3).
        animation_format: How to encode.
        durations_s: How long each frame is shown; GIF rounds to hundredths.
    """
    buffer = io.BytesIO()
    first, *rest = (PillowImage.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    milliseconds = [max(10, round(1000 * duration)) for duration in durations_s]
    options: dict[str, object] = {"save_all": True, "append_images": rest, "loop": 0}
    options["duration"] = milliseconds if rest else milliseconds[0]
    match animation_format:
        case "gif":
            first.save(buffer, "gif", **options)
        case "webp":
            first.save(buffer, "webp", lossless=True, quality=50, method=2, **options)
        case "apng":
            first.save(buffer, "png", **options)
    return buffer.getvalue()


def encode_npy(array: NDArray[np.generic]) -> bytes:
    """Encode an array in NumPy's own format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def decode_npy(content: bytes) -> NDArray[np.generic]:
    """Decode an array in NumPy's own format, without ever unpickling.

    Raises:
        ValueError: The content is damaged, holds objects, or claims more data than it has.
    """
    buffer = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(buffer)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with _headers:
            shape, fortran_order, dtype = read_header(buffer)
    except Exception as error:  # NumPy evaluates the header, which fails in many ways
        raise ValueError("the body is no .npy array") from error
    data = memoryview(content)[buffer.tell() :]
    # Checked by hand, so that a short body cannot ask for a huge allocation.
    is_possible = all(0 <= size < 2**31 for size in shape) and dtype.itemsize > 0
    is_whole = len(data) == dtype.itemsize * math.prod(shape)
    if dtype.hasobject or not (is_possible and is_whole):
        raise ValueError(f"the .npy header claims {dtype} {shape}, which the body does not hold")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a file in NumPy's archive format, without ever unpickling.

    Raises:
        Exception: It cannot be read; NumPy and its archive share no better base.
    """
    with _headers, path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def decode_picture(
    content: bytes, image: Image, *, resize: bool = False, convert: bool = False
) -> UInt8Array:
    """Decode an uploaded picture into pixels of a model's shape.

    Args:
        content: PNG, JPEG, WebP or GIF.
        image: The shape to fit.
        resize: Scale a picture of another size instead of refusing it.
        convert: Turn colour into grey or grey into colour instead of refusing it.

    Returns:
        Shape (H, W) or (H, W, 3).

    Raises:
        ValueError: It is no picture, too large, or of another size or colour; the text says what
            to do.
    """
    channels, height, width = image.shape
    try:
        with PillowImage.open(io.BytesIO(content), formats=_READABLE) as picture:
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                raise ValueError(
                    f"the picture has {picture.width}×{picture.height} pixels, more than "
                    f"{MAX_PICTURE_PIXELS}"
                )
            if picture.size != (width, height) and not resize:
                raise ValueError(
                    f"the picture is {picture.width}×{picture.height}, the model takes "
                    f"{width}×{height}: scale it, or send resize=true"
                )
            mode = "L" if channels == 1 else "RGB"
            if picture.mode != mode and not convert:
                _refuse_mode(picture, mode)
            opaque = on_white(_with_eight_bits(picture)).convert(mode)
            if opaque.size != (width, height):
                opaque = opaque.resize((width, height), PillowImage.Resampling.LANCZOS)
            return np.asarray(opaque, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"not a readable picture; send one of {', '.join(_READABLE)}") from error
    except PillowImage.DecompressionBombError as error:
        raise ValueError(f"the picture has more than {MAX_PICTURE_PIXELS} pixels") from error


def _refuse_mode(picture: PillowImage.Image, mode: str) -> None:
    # A palette or one bit per pixel is only another way to store grey or colour.
    grey = picture.mode in {"1", "L", "I;16"}
    if picture.mode == "P":
        palette = np.asarray(picture.convert("RGB"))
        grey = bool((palette == palette[..., :1]).all())
    stored_otherwise = picture.mode in {"1", "P"} and grey == (mode == "L")
    if not stored_otherwise:
        kinds = {"L": "grey", "RGB": "colour"}
        raise ValueError(
            f"the picture's mode is {picture.mode}, the model takes {kinds[mode]} ({mode}): "
            "convert it, or send convert=true"
        )


def _with_eight_bits(picture: PillowImage.Image) -> PillowImage.Image:
    if not picture.mode.startswith("I;16"):
        return picture
    # Pillow's own conversion turns every level above 255 into white.
    return PillowImage.fromarray((np.asarray(picture) >> 8).astype(np.uint8))


def on_white(picture: PillowImage.Image) -> PillowImage.Image:
    """Lay a picture with transparent parts on white; others are returned as they are."""
    if not picture.has_transparency_data:
        return picture
    rgba = picture.convert("RGBA")
    white = PillowImage.new("RGBA", rgba.size, "white")
    return PillowImage.alpha_composite(white, rgba)


def encode_base64(content: bytes) -> str:
    """Encode bytes in base64 with the standard alphabet, as data URLs want it."""
    return base64.b64encode(content).decode("ascii")


def decode_base64(text: str) -> bytes:
    """Decode base64, with or without the `data:` prefix of a data URL.

    Raises:
        ValueError: The text is no base64.
    """
    _, _, payload = text.rpartition("base64,")
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise ValueError("not base64") from error
