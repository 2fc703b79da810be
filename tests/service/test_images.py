"""Pictures keep every pixel on the way out, and strange ones are refused on the way in."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from service.errors import InvalidRequestError
from service.images import (
    MAX_PICTURE_PIXELS,
    AnimationFormat,
    PictureFormat,
    check_size,
    decode_base64,
    decode_npy,
    decode_picture,
    encode_animation,
    encode_npy,
    encode_picture,
    enlarge,
    from_pixels,
    grid,
    near_square_columns,
    to_pixels,
)
from service.manifest import Image

HEIGHT, WIDTH = 6, 9
GREY = Image(shape=(1, HEIGHT, WIDTH), values="8-bit")
COLOUR = Image(shape=(3, HEIGHT, WIDTH), values="8-bit")

LOSSLESS: tuple[PictureFormat, ...] = ("png", "webp")
ANIMATIONS: tuple[AnimationFormat, ...] = ("gif", "webp", "apng")


def random_pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def opened(content: bytes) -> PillowImage.Image:
    return PillowImage.open(io.BytesIO(content))


def saved(picture: PillowImage.Image, picture_format: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, picture_format, **options)
    return buffer.getvalue()


def claimed_png(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds nothing of it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


class TestPixels:
    def test_every_grey_level_survives_the_round_trip(self) -> None:
        levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
        image = Image(shape=(1, 16, 16), values="8-bit")
        np.testing.assert_array_equal(to_pixels(from_pixels(levels, image)), levels)

    def test_colour_survives_the_round_trip(self) -> None:
        pixels = random_pixels(4, HEIGHT, WIDTH, 3)
        scaled = from_pixels(pixels, COLOUR)
        assert scaled.shape == (4, 3, HEIGHT, WIDTH)
        assert scaled.dtype == np.float32
        np.testing.assert_array_equal(to_pixels(scaled), pixels)

    def test_grey_may_have_a_channel_axis(self) -> None:
        pixels = random_pixels(4, HEIGHT, WIDTH)
        np.testing.assert_array_equal(
            from_pixels(pixels[..., None], GREY), from_pixels(pixels, GREY)
        )

    def test_levels_are_rounded_and_clipped(self) -> None:
        image = np.array([-0.1, 0.49 / 255, 0.51 / 255, 1.1], dtype=np.float32)
        assert to_pixels(image.reshape(1, 1, 1, 4)).ravel().tolist() == [0, 0, 1, 255]

    @pytest.mark.parametrize("bad", [-1.0, 255.5, np.nan, np.inf])
    def test_a_level_outside_0_to_255_is_refused(self, bad: float) -> None:
        pixels = np.zeros((1, HEIGHT, WIDTH), dtype=np.float32)
        pixels[0, 2, 3] = bad
        with pytest.raises(ValueError, match="from 0 to 255"):
            from_pixels(pixels, GREY)

    @pytest.mark.parametrize(
        "shape", [(), (5,), (HEIGHT, WIDTH), (2, WIDTH, HEIGHT), (1, HEIGHT, WIDTH, 3)]
    )
    def test_another_shape_is_refused_and_the_right_one_named(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=rf"\(N, {HEIGHT}, {WIDTH}\)"):
            from_pixels(np.zeros(shape, dtype=np.uint8), GREY)


class TestGrid:
    def test_images_lie_row_by_row_and_missing_ones_are_black(self) -> None:
        pixels = random_pixels(5, HEIGHT, WIDTH)
        sheet = grid(pixels, 3)
        assert sheet.shape == (2 * HEIGHT, 3 * WIDTH)
        for position, image in enumerate([*pixels, np.zeros_like(pixels[0])]):
            row, column = divmod(position, 3)
            cell = sheet[row * HEIGHT : (row + 1) * HEIGHT, column * WIDTH : (column + 1) * WIDTH]
            np.testing.assert_array_equal(cell, image)

    def test_colour_is_laid_out_like_each_of_its_channels(self) -> None:
        pixels = random_pixels(5, HEIGHT, WIDTH, 3)
        for channel in range(3):
            np.testing.assert_array_equal(
                grid(pixels, 2)[..., channel], grid(pixels[..., channel], 2)
            )

    @pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (64, 8)])
    def test_the_default_is_near_a_square(self, count: int, columns: int) -> None:
        assert near_square_columns(count) == columns

    def test_enlarging_repeats_pixels(self) -> None:
        pixels = random_pixels(HEIGHT, WIDTH, 3)
        large = enlarge(pixels, 4)
        assert large.shape == (4 * HEIGHT, 4 * WIDTH, 3)
        for row, column in np.ndindex(4, 4):
            np.testing.assert_array_equal(large[row::4, column::4], pixels)
        np.testing.assert_array_equal(enlarge(pixels, 1), pixels)


class TestEncodedPictures:
    @pytest.mark.parametrize("picture_format", LOSSLESS)
    @pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3), (1, 1)])
    def test_png_and_webp_keep_every_pixel(
        self, picture_format: PictureFormat, shape: tuple[int, ...]
    ) -> None:
        pixels = random_pixels(*shape)
        picture = opened(encode_picture(pixels, picture_format))
        assert picture.format == picture_format.upper()
        decoded = np.asarray(picture.convert("L" if len(shape) == 2 else "RGB"))
        np.testing.assert_array_equal(decoded, pixels)

    def test_jpeg_is_near(self) -> None:
        ramp = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
        picture = opened(encode_picture(ramp, "jpeg"))
        assert (picture.format, picture.mode) == ("JPEG", "L")
        # At quality 95 smooth pictures change by a few grey levels.
        assert np.abs(np.asarray(picture).astype(int) - ramp).max() <= 4

    @pytest.mark.parametrize("picture_format", [*LOSSLESS, "jpeg"])
    def test_the_same_pixels_give_the_same_bytes(self, picture_format: PictureFormat) -> None:
        pixels = random_pixels(HEIGHT, WIDTH)
        assert encode_picture(pixels, picture_format) == encode_picture(pixels, picture_format)

    def test_a_strided_view_is_encoded_as_its_pixels(self) -> None:
        pixels = random_pixels(HEIGHT, 2 * WIDTH)[:, ::2]
        np.testing.assert_array_equal(np.asarray(opened(encode_picture(pixels, "png"))), pixels)


class TestSize:
    @pytest.mark.parametrize(
        ("picture_format", "possible", "too_large"),
        [
            ("png", (4096, 4096), (4096, 4097)),
            ("png", (MAX_PICTURE_PIXELS, 1), (MAX_PICTURE_PIXELS + 1, 1)),
            ("webp", (16_383, 1), (16_384, 1)),
            ("jpeg", (1, 65_500), (1, 65_501)),
            ("gif", (64, 64, 4096), (64, 64, 4097)),
        ],
    )
    def test_the_limits_are_sharp(
        self, picture_format: str, possible: tuple[int, ...], too_large: tuple[int, ...]
    ) -> None:
        check_size(picture_format, *possible)
        with pytest.raises(InvalidRequestError, match="too large"):
            check_size(picture_format, *too_large)

    @pytest.mark.parametrize("picture_format", ["webp", "jpeg"])
    @pytest.mark.parametrize("axis", [0, 1])
    def test_the_longest_side_that_is_allowed_can_be_encoded(
        self, picture_format: PictureFormat, axis: int
    ) -> None:
        shape = [1, 1]
        shape[axis] = {"webp": 16_383, "jpeg": 65_500}[picture_format]
        pixels = np.zeros(shape, dtype=np.uint8)
        assert opened(encode_picture(pixels, picture_format)).size == tuple(shape[::-1])


class TestAnimations:
    @pytest.mark.parametrize("animation_format", ANIMATIONS)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_frame_is_there_with_its_duration(
        self, animation_format: AnimationFormat, channels: int
    ) -> None:
        # Few colours, so that a GIF's palette holds them all.
        levels = 32 * (random_pixels(5, HEIGHT, WIDTH) // 32)
        frames = levels if channels == 1 else np.stack([levels, levels, 0 * levels], axis=-1)
        durations_s = [0.1, 0.2, 0.1, 0.5, 0.04]
        animation = opened(encode_animation(list(frames), animation_format, durations_s))
        assert getattr(animation, "n_frames", 1) == 5
        assert animation.info.get("loop") == 0
        for position, (frame, duration_s) in enumerate(zip(frames, durations_s, strict=True)):
            animation.seek(position)
            shown = np.asarray(animation.convert("L" if channels == 1 else "RGB"))
            np.testing.assert_array_equal(shown, frame)
            assert animation.info["duration"] == pytest.approx(1000 * duration_s)

    @pytest.mark.parametrize("animation_format", ANIMATIONS)
    def test_frames_that_do_not_move_are_still_shown_as_long(
        self, animation_format: AnimationFormat
    ) -> None:
        """Encoders merge equal frames; the time that they take must not change."""
        still, other = random_pixels(2, HEIGHT, WIDTH)
        frames = [still, still, still, other]
        animation = opened(encode_animation(frames, animation_format, [0.1] * 4))
        shown_ms = 0
        for position in range(getattr(animation, "n_frames", 1)):
            animation.seek(position)
            animation.load()
            shown_ms += animation.info["duration"]
        assert shown_ms == 400

    @pytest.mark.parametrize("animation_format", ANIMATIONS)
    def test_one_frame_is_a_still_picture(self, animation_format: AnimationFormat) -> None:
        frame = random_pixels(HEIGHT, WIDTH)
        animation = opened(encode_animation([frame], animation_format, [0.1]))
        assert getattr(animation, "n_frames", 1) == 1
        np.testing.assert_array_equal(np.asarray(animation.convert("L")), frame)


def npy_with_header(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header.encode() + data


class TestNpy:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_an_array_survives_the_round_trip(self, dtype: Any, order: Any) -> None:
        array = np.asarray(random_pixels(2, 3, 4), dtype=dtype, order=order)
        decoded = decode_npy(encode_npy(array))
        assert decoded.dtype == dtype
        np.testing.assert_array_equal(decoded, array)

    def test_version_2_is_read(self) -> None:
        array = random_pixels(2, 3)
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, version=(2, 0))
        np.testing.assert_array_equal(decode_npy(buffer.getvalue()), array)

    def test_objects_are_never_unpickled(self) -> None:
        class Bomb:
            def __reduce__(self) -> Any:
                return pytest.fail, ("unpickled",)

        buffer = io.BytesIO()
        np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match="header claims object"):
            decode_npy(buffer.getvalue())

    @pytest.mark.parametrize(
        "header",
        [
            "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -28, 28)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 10000000000000000000000)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (1.5,)}",
            "{'descr': '|u1', 'fortran_order': False}",
            "{'descr': '|V0', 'fortran_order': False, 'shape': (5,)}",
            "{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}",
            "{'descr': '|O', 'fortran_order': False, 'shape': ()}",
            "__import__('os').abort()",
            "(" * 300,
            " " * 20_000,
            "",
        ],
    )
    @pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"])
    def test_a_header_that_lies_is_refused_without_allocating(
        self, header: str, version: bytes
    ) -> None:
        with pytest.raises(ValueError, match="npy"):
            decode_npy(npy_with_header(header, version=version))

    def test_every_truncation_is_refused(self) -> None:
        content = encode_npy(random_pixels(2, 3))
        for length in range(len(content)):
            with pytest.raises(ValueError, match="npy"):
                decode_npy(content[:length])

    def test_data_after_the_array_is_refused(self) -> None:
        with pytest.raises(ValueError, match="does not hold"):
            decode_npy(encode_npy(random_pixels(2, 3)) + b"\0")


class TestUploads:
    @pytest.mark.parametrize("picture_format", ["png", "webp", "gif"])
    def test_a_grey_picture_gives_its_pixels(self, picture_format: str) -> None:
        pixels = random_pixels(HEIGHT, WIDTH)
        options: dict[str, Any] = {"lossless": True} if picture_format == "webp" else {}
        content = saved(PillowImage.fromarray(pixels), picture_format, **options)
        # WebP knows no grey, so it comes as colour.
        convert = picture_format == "webp"
        np.testing.assert_array_equal(decode_picture(content, GREY, convert=convert), pixels)

    def test_a_colour_picture_gives_its_pixels(self) -> None:
        pixels = random_pixels(HEIGHT, WIDTH, 3)
        np.testing.assert_array_equal(
            decode_picture(saved(PillowImage.fromarray(pixels)), COLOUR), pixels
        )

    def test_one_bit_per_pixel_is_grey(self) -> None:
        pixels = 255 * (random_pixels(HEIGHT, WIDTH) % 2)
        content = saved(PillowImage.fromarray(pixels).convert("1"))
        np.testing.assert_array_equal(decode_picture(content, GREY), pixels)

    def test_a_palette_is_what_its_colours_are(self) -> None:
        levels = 32 * (random_pixels(HEIGHT, WIDTH) // 32)
        grey = PillowImage.fromarray(levels).convert("P")
        np.testing.assert_array_equal(decode_picture(saved(grey), GREY), levels)
        coloured = np.stack([levels, 0 * levels, levels], axis=-1)
        palette = PillowImage.fromarray(coloured).convert("P", palette=PillowImage.Palette.ADAPTIVE)
        assert decode_picture(saved(palette), COLOUR).shape == coloured.shape
        with pytest.raises(ValueError, match="convert=true"):
            decode_picture(saved(palette), GREY)

    def test_another_size_is_refused_unless_it_may_be_scaled(self) -> None:
        content = saved(PillowImage.new("L", (WIDTH * 2, HEIGHT * 2), 77))
        with pytest.raises(ValueError, match=r"18×12.*9×6.*resize=true"):
            decode_picture(content, GREY)
        np.testing.assert_array_equal(
            decode_picture(content, GREY, resize=True), np.full((HEIGHT, WIDTH), 77)
        )

    @pytest.mark.parametrize(
        ("mode", "image"), [("RGB", GREY), ("RGBA", GREY), ("LA", GREY), ("L", COLOUR)]
    )
    def test_another_kind_of_colour_is_refused_unless_it_may_be_converted(
        self, mode: str, image: Image
    ) -> None:
        content = saved(PillowImage.new("L", (WIDTH, HEIGHT), 100).convert(mode))
        with pytest.raises(ValueError, match="convert=true"):
            decode_picture(content, image)
        assert (decode_picture(content, image, convert=True) == 100).all()

    @pytest.mark.parametrize("alpha", [0, 51, 255])
    def test_transparent_pixels_are_seen_on_white(self, alpha: int) -> None:
        content = saved(PillowImage.new("LA", (WIDTH, HEIGHT), (100, alpha)))
        expected = round((alpha * 100 + (255 - alpha) * 255) / 255)
        assert (decode_picture(content, GREY, convert=True) == expected).all()

    def test_sixteen_bits_are_refused_or_brought_to_eight(self) -> None:
        levels = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
        content = saved(PillowImage.fromarray(levels))
        with pytest.raises(ValueError, match="convert=true"):
            decode_picture(content, GREY)
        converted = decode_picture(content, GREY, convert=True)
        # Either way of rounding 16 bits to 8.
        assert np.abs(converted.astype(int) - levels / 257).max() <= 1

    @pytest.mark.parametrize(
        "content", [b"", b"GIF89a", b"hello", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"<svg/>"]
    )
    def test_what_is_no_picture_is_refused(self, content: bytes) -> None:
        with pytest.raises(ValueError, match="not a readable picture"):
            decode_picture(content, GREY)

    @pytest.mark.parametrize("picture_format", ["tiff", "bmp", "ico", "ppm"])
    def test_formats_that_nobody_needs_are_not_parsed(self, picture_format: str) -> None:
        content = saved(PillowImage.new("L", (WIDTH, HEIGHT)), picture_format)
        with pytest.raises(ValueError, match="send one of PNG, JPEG, WEBP, GIF"):
            decode_picture(content, GREY, convert=True, resize=True)

    @pytest.mark.parametrize("picture_format", ["png", "jpeg", "webp", "gif"])
    def test_damage_anywhere_gives_a_picture_or_a_clear_refusal(self, picture_format: str) -> None:
        content = saved(PillowImage.fromarray(random_pixels(HEIGHT, WIDTH)), picture_format)
        rng = np.random.default_rng(0)
        damaged = [content[:length] for length in range(0, len(content), 3)]
        for _ in range(150):
            flipped = bytearray(content)
            flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
            damaged.append(bytes(flipped))
        outcomes = set()
        for version in damaged:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow tells of damage that it can live with
                try:
                    pixels = decode_picture(version, GREY, resize=True, convert=True)
                except ValueError:
                    outcomes.add("refused")
                else:
                    assert pixels.shape == (HEIGHT, WIDTH)
                    outcomes.add("read")
        assert outcomes == {"refused", "read"}

    @pytest.mark.parametrize("side", [4097, 9000, 40_000])
    def test_a_picture_that_claims_to_be_huge_is_refused_unread(self, side: int) -> None:
        with warnings.catch_warnings():
            # Pillow warns from 9,459² on, and refuses from 13,377² on.
            warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)
            with pytest.raises(ValueError, match=f"more than {MAX_PICTURE_PIXELS}"):
                decode_picture(claimed_png(side, side), GREY, resize=True)


class TestBase64:
    @pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:;base64,"])
    def test_a_data_url_is_base64_too(self, prefix: str) -> None:
        assert decode_base64(f"{prefix}+/8=") == b"\xfb\xff"

    @pytest.mark.parametrize("text", ["-_8=", "+/8", "é", "a b=", "data:image/png,xx"])
    def test_what_is_no_base64_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="base64"):
            decode_base64(text)


NPY_IN_THREADS = """
import gc
import sys
from io import BytesIO
from threading import Thread
import numpy as np
from service.images import decode_npy

class Garbage:  # whose end is Python, so that another thread may have its turn there
    def __del__(self):
        sum(range(50))

def decode():
    for _ in range(8000):
        garbage = Garbage()
        garbage.itself = garbage
        try:
            decode_npy(body)
        except ValueError as error:
            failures.append(error.__cause__)

sys.setswitchinterval(1e-6)
gc.set_threshold(3)
file, failures = BytesIO(), []
np.save(file, np.zeros((2, 3)))
body = file.getvalue()
threads = [Thread(target=decode) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(failures), failures[:1])
"""


def test_arrays_are_decoded_in_several_threads_at_once() -> None:
    """Python 3.11 cannot evaluate their headers so."""
    command = [sys.executable, "-c", NPY_IN_THREADS]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.split()[0] == "0", told
