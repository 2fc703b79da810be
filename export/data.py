"""Data sets: IDX files, .npz archives and folders of images, verified and split."""

import gzip
import hashlib
import os
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from export.recipe import DataConfig
from service.images import on_white
from service.manifest import Source
from service.noise import draw

UInt8Array = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Part = Literal["train", "validation", "test"]

# The draws of `mnist-fixed`: image i of a part takes the uniforms of (seed of the part, i).
BINARIZATION_SEEDS: dict[str, int] = {"train": 1, "test": 2}
# Those of dequantization, where it is fixed.
_DEQUANTIZATION_SEEDS: dict[str, int] = {"validation": 3, "test": 4}
# Those of mutation: which pixels, and what they become.
_MUTATION_SEEDS = (5, 6)

_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


@dataclass(frozen=True)
class File:
    """One file of a known data set; the hash is of its unpacked content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """A data set that this project knows by name.

    Attributes:
        files: Train images, train labels, test images, test labels; or one .npz.
        base_urls: Where `data fetch` finds the files; empty when a user must make them.
        how: How to get the data where nothing can be fetched.
    """

    name: str
    classes: tuple[str, ...]
    licence: str
    origin: str
    files: tuple[File, ...]
    base_urls: tuple[str, ...] = ()
    how: str = ""


@dataclass(frozen=True)
class Images:
    """Labelled images in memory.

    Attributes:
        pixels: Shape (N, C, H, W), 0…255.
        labels: Shape (N,), indices into the classes; all zero without labels.
        dequantization_seed: Of the noise within the grey levels; None for none.
        first_index: Which image of its part the first one is; it names the noise.
    """

    pixels: UInt8Array
    labels: IntArray
    dequantization_seed: int | None = None
    first_index: int = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice) -> "Images":
        start, _, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("images are cut into runs, not into every so-manieth")
        return replace(
            self,
            pixels=self.pixels[rows],
            labels=self.labels[rows],
            first_index=self.first_index + start,
        )

    @property
    def values(self) -> FloatArray:
        """Pixels as graphs take them, in [0, 1] or dequantized, shape (N, C, H, W)."""
        if self.dequantization_seed is None:
            return (self.pixels / np.float32(255)).astype(np.float32, copy=False)
        indices = self.first_index + np.arange(len(self), dtype=np.uint64)
        return dequantized(self.pixels, np.full_like(indices, self.dequantization_seed), indices)


@dataclass(frozen=True)
class Split:
    """The three parts of a data set, prepared as the recipe says.

    Attributes:
        train_pixels_are_grey: Whether training still has to draw 0 and 1 in every epoch.
        train_is_dequantized: Whether training still has to add noise in every epoch.
    """

    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    source: Source
    train_pixels_are_grey: bool
    train_is_dequantized: bool = False


def _idx_files(*hashes: str) -> tuple[File, ...]:
    names = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    return tuple(File(name, sha256) for name, sha256 in zip(names, hashes, strict=True))


DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            name="mnist",
            classes=tuple("0123456789"),
            licence="CC BY-SA 3.0",
            origin="LeCun, Cortes, Burges: The MNIST database of handwritten digits",
            files=_idx_files(
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            base_urls=(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
        ),
        DataSet(
            name="fashion-mnist",
            classes=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
            licence="MIT",
            origin="Xiao, Rasul, Vollgraf: Fashion-MNIST (Zalando Research), arXiv:1708.07747",
            files=_idx_files(
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            base_urls=(
                "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            ),
        ),
        DataSet(
            name="emoji32",
            classes=(),
            licence="Noto Emoji: Apache-2.0; Twemoji: CC BY 4.0",
            origin="Noto Emoji and Twemoji, 64×64 PNGs scaled to 32×32 with Lanczos, on white",
            files=(
                File(
                    "emoji32.npz",
                    "338cc66ed416e68e426842b294786da8585c4a052f2350db05259aa5694de782",
                ),
            ),
            how="put emoji32.npz there, with arrays train_images (uint8, N×32×32×3), train_labels, "
            "test_images, test_labels and classes, made from the 64×64 PNGs of Noto Emoji and "
            "Twemoji",
        ),
    )
}


def data_folder() -> Path:
    """Return the folder of the data sets, `$PTHETA_DATA` or `data/`."""
    return Path(os.environ.get("PTHETA_DATA", "data"))


def load_split(config: DataConfig) -> Split:
    """Load, verify, binarize and split the images of a recipe.

    Raises:
        FileNotFoundError: The data is missing; the text says how to get it.
        ValueError: A checksum, a shape or a count is wrong.
    """
    train, test, classes, licence, origin = _load(config)
    train, test = pooled(train, config.pool), pooled(test, config.pool)
    if config.num_validation >= len(train):
        raise ValueError(
            f"data.num_validation is {config.num_validation}, but there are only "
            f"{len(train)} training images"
        )
    dynamic = config.binarization == "dynamic"
    num_train = len(train) - config.num_validation
    # Validation takes the fixed draw even where training draws anew.
    fixed_train = binarized(train, config.binarization, "train")
    fixed_test = binarized(test, config.binarization, "test")
    shown = (train if dynamic else fixed_train)[:num_train]
    return Split(
        train=cropped(mutated(shown, config.mutation), config.crop),
        validation=_held_out(fixed_train[num_train:], config, "validation"),
        test=_held_out(fixed_test, config, "test"),
        classes=classes,
        source=Source(
            name=Path(config.source).name,
            licence=licence,
            origin=origin,
            num_train=num_train,
            num_validation=config.num_validation,
            num_test=len(test),
        ),
        train_pixels_are_grey=dynamic,
        train_is_dequantized=config.dequantize,
    )


def _held_out(images: Images, config: DataConfig, part: Part) -> Images:
    seed = _DEQUANTIZATION_SEEDS[part] if config.dequantize else None
    return replace(cropped(images, config.crop), dequantization_seed=seed, first_index=0)


def pooled(images: Images, size: int) -> Images:
    """Replace each block of size × size pixels by its mean, rounded to a grey level.

    Raises:
        ValueError: The images are no whole number of blocks.
    """
    num_images, channels, height, width = images.pixels.shape
    if size == 1:
        return images
    if height % size or width % size:
        raise ValueError(f"data.pool is {size}, which does not divide {width}×{height}")
    shape = (num_images, channels, height // size, size, width // size, size)
    sums = images.pixels.reshape(shape).sum(axis=(3, 5), dtype=np.uint32)
    means = (sums + size * size // 2) // (size * size)
    return replace(images, pixels=means.astype(np.uint8))


def cropped(images: Images, size: int | None) -> Images:
    """Keep the size × size pixels around the centre.

    Raises:
        ValueError: The images are smaller than that.
    """
    if size is None:
        return images
    height, width = images.pixels.shape[2:]
    if min(height, width) < size:
        raise ValueError(f"data.crop is {size}, but the images are {width}×{height}")
    top, left = (height - size) // 2, (width - size) // 2
    part = images.pixels[:, :, top : top + size, left : left + size]
    return replace(images, pixels=np.ascontiguousarray(part))


def dequantized(
    pixels: UInt8Array, seeds: NDArray[np.uint64], indices: NDArray[np.uint64]
) -> FloatArray:
    """Spread each grey level evenly over its 1/256 of [0, 1).

    Graphs take 255 for white as 1, so that y = (g + u) / 256 is told as (256 y - ½) / 255: a grey
    level without noise is the middle of its interval.

    Args:
        pixels: g, shape (N, C, H, W).
        seeds: Shape (N,).
        indices: Shape (N,).

    Returns:
        (g + u - ½) / 255 with u uniform in (0, 1), shape (N, C, H, W).
    """
    uniforms = draw("uniform", seeds, indices, pixels.shape[1:])
    values = (pixels + (uniforms - np.float32(0.5))) / np.float32(255)
    return values.astype(np.float32, copy=False)


def binarized(images: Images, binarization: str, part: Literal["train", "test"]) -> Images:
    """Turn grey levels into 0 and 255.

    A `fixed` draw is one Bernoulli draw with probability g/255 per pixel from published seeds, so
    that everyone who binarizes MNIST with this function gets the same bits.
    """
    if binarization == "none":
        return images
    pixels = images.pixels
    if binarization == "threshold":
        ones = pixels >= 128
    else:
        ones = np.empty(pixels.shape, dtype=bool)
        for start in range(0, len(pixels), 1000):
            chunk = pixels[start : start + 1000]
            indices = np.arange(start, start + len(chunk), dtype=np.uint64)
            seeds = np.full(len(chunk), BINARIZATION_SEEDS[part], dtype=np.uint64)
            uniforms = draw("uniform", seeds, indices, chunk.shape[1:])
            ones[start : start + 1000] = uniforms < chunk / np.float32(255)
    return Images(np.where(ones, np.uint8(255), np.uint8(0)), images.labels)


def mutated(images: Images, rate: float) -> Images:
    """Replace a share of the pixels by grey levels that are drawn evenly, once for all epochs.

    Args:
        images: What to change.
        rate: Probability that a value is replaced.

    Source:
        Ren et al., "Likelihood Ratios for Out-of-Distribution Detection", 2019, arXiv:1906.02845,
        section 3.
    """
    if not rate:
        return images
    indices = np.arange(len(images), dtype=np.uint64)
    shape = images.pixels.shape[1:]
    replaces, levels = (
        draw("uniform", np.full_like(indices, seed), indices, shape) for seed in _MUTATION_SEEDS
    )
    grey = (256 * levels).astype(np.uint8)
    return replace(images, pixels=np.where(replaces < rate, grey, images.pixels))


def fetch(
    name: str, folder: Path, base_urls: tuple[str, ...] = (), report: Callable[[str], None] = print
) -> None:
    """Download a known data set, verify it and put it in place.

    Args:
        name: Name of the data set.
        folder: Folder of all data sets.
        base_urls: Mirrors to try instead of the known ones.
        report: Called with one line per file.

    Raises:
        ValueError: The data set cannot be downloaded, or a download has the wrong content.
        OSError: No mirror answers.
    """
    data_set = _known(name)
    mirrors = base_urls or data_set.base_urls
    if not mirrors:
        raise ValueError(f"{name} cannot be downloaded: {data_set.how}")
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    for file in data_set.files:
        path = target / f"{file.name}.gz"
        if path.is_file() and _unpacked_sha256(path) == file.sha256:
            report(f"{path} is there")
            continue
        _download(file, path, mirrors)
        report(f"{path} fetched and verified")


def _download(file: File, path: Path, mirrors: tuple[str, ...]) -> None:
    reasons = []
    for mirror in mirrors:
        partial = path.with_suffix(".partial")
        try:
            with (
                urllib.request.urlopen(f"{mirror}{path.name}", timeout=60) as answer,
                partial.open("wb") as out,
            ):
                shutil.copyfileobj(answer, out)
        except OSError as error:
            reasons.append(f"{mirror}: {error}")
            continue
        if _unpacked_sha256(partial) != file.sha256:
            partial.unlink()
            raise ValueError(f"{mirror}{path.name} has not the expected content")
        partial.replace(path)
        return
    raise OSError(f"no mirror gave {path.name}: {'; '.join(reasons)}")


def state_of(data_set: DataSet) -> str:
    """Tell whether the files of a data set are there and have the right content."""
    try:
        for file in data_set.files:
            _verified(data_set, file)
    except FileNotFoundError:
        return "missing" if data_set.how else f"missing: data fetch {data_set.name}"
    except ValueError as error:
        return f"damaged: {error}"
    return "present and verified"


def _known(name: str) -> DataSet:
    if name not in DATA_SETS:
        raise ValueError(f"no data set {name!r}; known: {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def _load(config: DataConfig) -> tuple[Images, Images, tuple[str, ...], str, str]:
    if config.source in DATA_SETS:
        data_set = DATA_SETS[config.source]
        paths = [_verified(data_set, file) for file in data_set.files]
        if paths[0].suffix == ".npz":
            train, test, classes = _read_npz(paths[0], config)
        else:
            train = Images(_read_idx(paths[0])[:, None], _read_idx(paths[1]).astype(np.int64))
            test = Images(_read_idx(paths[2])[:, None], _read_idx(paths[3]).astype(np.int64))
            classes = data_set.classes
        return train, test, classes, data_set.licence, data_set.origin
    path = Path(config.source)
    if path.is_file() and path.suffix == ".npz":
        train, test, classes = _read_npz(path, config)
    elif path.is_dir():
        train, test, classes = _read_folder(path, config)
    else:
        raise FileNotFoundError(
            f"data.source {config.source!r} is neither a known data set "
            f"({', '.join(DATA_SETS)}) nor an .npz file nor a folder of images"
        )
    return train, test, classes, "the owner's", f"{len(train) + len(test)} images of the user's own"


def _verified(data_set: DataSet, file: File) -> Path:
    folder = data_folder() / data_set.name
    for path in (folder / file.name, folder / f"{file.name}.gz"):
        if path.is_file():
            if _unpacked_sha256(path) != file.sha256:
                raise ValueError(f"{path} has not the content of {data_set.name}; fetch it again")
            return path
    how = data_set.how or f"run `python -m export data fetch {data_set.name}`"
    raise FileNotFoundError(
        f"{folder / file.name} is missing: {how}, or point PTHETA_DATA at the folder that "
        f"holds {data_set.name}/"
    )


def _unpacked_sha256(path: Path) -> str:
    return hashlib.sha256(_unpacked(path)).hexdigest()


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _read_idx(path: Path) -> UInt8Array:
    content = _unpacked(path)
    magic = int.from_bytes(content[:4], "big")
    if magic not in {_IDX_IMAGES, _IDX_LABELS}:
        raise ValueError(f"{path} is no IDX file of bytes: it begins with {magic}")
    num_axes = magic % 256
    shape = [int.from_bytes(content[4 * i + 4 : 4 * i + 8], "big") for i in range(num_axes)]
    values = np.frombuffer(content, dtype=np.uint8, offset=4 * num_axes + 4)
    return values.reshape(shape).copy()  # a view of bytes is read-only, which torch dislikes


def _read_npz(path: Path, config: DataConfig) -> tuple[Images, Images, tuple[str, ...]]:
    with np.load(path, allow_pickle=False) as arrays:
        if "train_images" not in arrays:
            raise ValueError(f"{path} holds {sorted(arrays)}, but no train_images")
        train = _as_images(path, arrays["train_images"], arrays.get("train_labels"))
        classes = tuple(str(c) for c in arrays["classes"]) if "classes" in arrays else ()
        if "test_images" in arrays:
            test = _as_images(path, arrays["test_images"], arrays.get("test_labels"))
            return train, test, classes
    return *_hold_out(train, config.test_fraction), classes


def _as_images(path: Path, pixels: NDArray[np.generic], labels: object) -> Images:
    if pixels.dtype != np.uint8 or pixels.ndim not in {3, 4}:
        raise ValueError(
            f"{path}: images must be uint8 of shape (N, H, W) or (N, H, W, C), got "
            f"{pixels.dtype} {pixels.shape}"
        )
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    numbers = np.zeros(len(pixels)) if labels is None else np.asarray(labels)
    return Images(np.ascontiguousarray(pixels, dtype=np.uint8), numbers.astype(np.int64))


def _read_folder(folder: Path, config: DataConfig) -> tuple[Images, Images, tuple[str, ...]]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES)
    if len(paths) < 2:
        raise ValueError(f"{folder} holds {len(paths)} pictures; at least 2 are needed")
    classes = sorted({path.parent.name for path in paths if path.parent != folder})
    pixels = np.stack([_read_picture(path, config) for path in paths])
    labels = [classes.index(path.parent.name) if path.parent != folder else 0 for path in paths]
    images = Images(pixels, np.array(labels, dtype=np.int64))
    return *_hold_out(images, config.test_fraction), tuple(classes)


def _read_picture(path: Path, config: DataConfig) -> UInt8Array:
    with PillowImage.open(path) as picture:
        mode = "L" if config.channels == 1 else "RGB"
        size = (config.size, config.size)
        scaled = on_white(picture).convert(mode).resize(size, PillowImage.Resampling.LANCZOS)
        pixels = np.asarray(scaled, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _hold_out(images: Images, fraction: float) -> tuple[Images, Images]:
    # A fixed shuffle, so that a folder sorted by class gives both parts every class.
    order = np.random.default_rng(0).permutation(len(images))
    num_test = max(1, round(fraction * len(images)))
    test, train = np.sort(order[:num_test]), np.sort(order[num_test:])
    return (
        Images(images.pixels[train], images.labels[train]),
        Images(images.pixels[test], images.labels[test]),
    )
