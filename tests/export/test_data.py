import gzip
import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy import stats

from export import data
from export.data import DataSet, File, Images, binarized, fetch, load_split, mutated
from export.recipe import DataConfig
from export.train import ImageDataset


def idx(array: NDArray[np.uint8]) -> bytes:
    """Encode as IDX: magic number with the number of axes, sizes, bytes."""
    header = (0x0800 + array.ndim).to_bytes(4, "big")
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


PARTS: dict[str, NDArray[np.uint8]] = {
    "train-images": np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3),
    "train-labels": np.array([0, 1, 0, 1, 1], dtype=np.uint8),
    "test-images": np.arange(200, 200 + 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3),
    "test-labels": np.array([1, 0], dtype=np.uint8),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DataSet:
    """A data set `small` of the known kind, whose files are not there yet."""
    files = tuple(File(name, hashlib.sha256(idx(part)).hexdigest()) for name, part in PARTS.items())
    data_set = DataSet("small", ("a", "b"), "CC0", "made for this test", files)
    monkeypatch.setattr(data, "DATA_SETS", {"small": data_set})
    monkeypatch.setenv("PTHETA_DATA", str(tmp_path / "data"))
    return data_set


def put(folder: Path, *, packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(part)))
        else:
            (folder / name).write_bytes(idx(part))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve tmp_path/www on this machine alone."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read(small: DataSet, packed: bool) -> None:
    put(data.data_folder() / "small", packed=packed)
    split = load_split(DataConfig(source="small", num_validation=2))
    assert split.train.pixels.shape == (3, 1, 2, 3)
    np.testing.assert_array_equal(split.train.pixels[:, 0], PARTS["train-images"][:3])
    np.testing.assert_array_equal(split.validation.pixels[:, 0], PARTS["train-images"][3:])
    np.testing.assert_array_equal(split.test.labels, [1, 0])
    assert split.classes == ("a", "b")
    assert (split.source.num_train, split.source.num_validation, split.source.num_test) == (3, 2, 2)


def test_a_wrong_checksum_is_refused(small: DataSet) -> None:
    folder = data.data_folder() / "small"
    put(folder)
    (folder / "test-labels.gz").write_bytes(gzip.compress(idx(np.array([1, 1], dtype=np.uint8))))
    with pytest.raises(ValueError, match=r"test-labels.gz has not the content of small"):
        load_split(DataConfig(source="small"))


def test_missing_data_says_how_to_get_it(small: DataSet) -> None:
    with pytest.raises(FileNotFoundError, match=r"data fetch small.*PTHETA_DATA"):
        load_split(DataConfig(source="small"))


def test_the_state_of_a_data_set_is_told(small: DataSet) -> None:
    assert data.state_of(small) == "missing: data fetch small"
    put(data.data_folder() / "small")
    assert data.state_of(small) == "present and verified"
    (data.data_folder() / "small" / "test-labels.gz").write_bytes(b"damaged")
    assert data.state_of(small).startswith("damaged")


def test_unknown_sources_are_refused() -> None:
    with pytest.raises(FileNotFoundError, match="neither a known data set"):
        load_split(DataConfig(source="/nowhere"))


def test_a_file_that_is_no_idx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "strange"
    path.write_bytes(b"abcdefgh")
    with pytest.raises(ValueError, match="no IDX file"):
        data._read_idx(path)


def test_too_large_a_validation_part_is_refused(small: DataSet) -> None:
    put(data.data_folder() / "small")
    with pytest.raises(ValueError, match="num_validation is 5, but there are only 5"):
        load_split(DataConfig(source="small", num_validation=5))


def test_a_data_set_is_fetched_and_verified_once(
    small: DataSet, server: str, tmp_path: Path
) -> None:
    put(tmp_path / "www")
    lines: list[str] = []
    fetch("small", data.data_folder(), (server,), lines.append)
    assert len(load_split(DataConfig(source="small")).train) == 5
    assert all("fetched and verified" in line for line in lines)
    lines.clear()
    fetch("small", data.data_folder(), ("http://127.0.0.1:1/",), lines.append)
    assert all("is there" in line for line in lines)


def test_the_next_mirror_is_tried(small: DataSet, server: str, tmp_path: Path) -> None:
    put(tmp_path / "www")
    fetch("small", data.data_folder(), (f"{server}nothing/", server), lambda line: None)
    assert data.state_of(small) == "present and verified"


def test_a_download_with_other_content_is_refused_and_not_kept(
    small: DataSet, server: str, tmp_path: Path
) -> None:
    put(tmp_path / "www")
    (tmp_path / "www" / "train-images.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match=r"train-images.gz has not the expected content"):
        fetch("small", data.data_folder(), (server,), lambda line: None)
    assert not list((data.data_folder() / "small").iterdir())


def test_no_answer_from_any_mirror_is_told(small: DataSet, server: str) -> None:
    with pytest.raises(OSError, match=r"no mirror gave train-images.gz"):
        fetch("small", data.data_folder(), (f"{server}nothing/",), lambda line: None)


def test_data_without_mirrors_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="emoji32 cannot be downloaded: put"):
        fetch("emoji32", tmp_path)
    with pytest.raises(ValueError, match="no data set 'unheard-of'; known: mnist"):
        fetch("unheard-of", tmp_path)


def write_pictures(folder: Path, mode: str) -> None:
    for index in range(10):
        target = folder / ("cats" if index % 2 else "dogs")
        target.mkdir(parents=True, exist_ok=True)
        colour: Any = index * 10 if mode == "L" else (index * 10, 0, 255)
        PillowImage.new(mode, (20, 12), colour).save(target / f"{index:02}.png")
    (folder / "notes.txt").write_text("no picture")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_of_pictures_is_scaled_and_labelled(
    tmp_path: Path, mode: str, channels: Any
) -> None:
    write_pictures(tmp_path / "pets", mode)
    config = DataConfig(source=str(tmp_path / "pets"), size=8, channels=channels, test_fraction=0.2)
    split = load_split(config)
    assert split.train.pixels.shape == (8, channels, 8, 8)
    assert len(split.test) == 2
    assert split.classes == ("cats", "dogs")
    assert split.source.name == "pets"
    if mode == "L":  # even brightness: picture i of 10·i, cats are odd
        brightness = split.train.pixels[:, 0, 0, 0] // 10
        np.testing.assert_array_equal(split.train.labels, 1 - brightness % 2)


def test_a_folder_with_one_picture_is_refused(tmp_path: Path) -> None:
    PillowImage.new("L", (4, 4)).save(tmp_path / "only.png")
    with pytest.raises(ValueError, match="holds 1 pictures"):
        load_split(DataConfig(source=str(tmp_path)))


def test_an_npz_without_a_test_part_gives_one_away(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", train_images=pixels)
    split = load_split(DataConfig(source=str(tmp_path / "x.npz"), test_fraction=0.2))
    assert split.train.pixels.shape == (40, 3, 4, 5)
    assert split.test.pixels.shape == (10, 3, 4, 5)
    everything = np.concatenate([split.train.pixels, split.test.pixels]).transpose(0, 2, 3, 1)
    assert sorted(map(bytes, everything)) == sorted(map(bytes, pixels))
    again = load_split(DataConfig(source=str(tmp_path / "x.npz"), test_fraction=0.2))
    np.testing.assert_array_equal(split.test.pixels, again.test.pixels)


def test_an_npz_with_a_test_part_and_labels_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    np.savez(
        tmp_path / "x.npz",
        train_images=pixels[:4],
        train_labels=[0, 1, 1, 0],
        test_images=pixels[4:],
        test_labels=[1, 0],
        classes=["no", "yes"],
    )
    split = load_split(DataConfig(source=str(tmp_path / "x.npz")))
    np.testing.assert_array_equal(split.train.pixels[:, 0], pixels[:4])
    np.testing.assert_array_equal(split.test.labels, [1, 0])
    assert split.classes == ("no", "yes")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 4, 4), np.uint8)}, "no train_images"),
        ({"train_images": np.zeros((3, 4, 4))}, "must be uint8.*float64"),
        ({"train_images": np.zeros((3, 4), np.uint8)}, r"must be uint8 of shape.*\(3, 4\)"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_split(DataConfig(source=str(tmp_path / "x.npz")))


def grey(level: int, num_images: int = 2000) -> Images:
    pixels = np.full((num_images, 1, 4, 4), level, dtype=np.uint8)
    return Images(pixels, np.zeros(num_images, dtype=np.int64))


def test_a_fixed_draw_is_reproducible_and_another_one_per_part() -> None:
    first = binarized(grey(128), "fixed", "train").pixels
    np.testing.assert_array_equal(first, binarized(grey(128), "fixed", "train").pixels)
    assert (first != binarized(grey(128), "fixed", "test").pixels).any()
    assert set(np.unique(first)) == {0, 255}


def test_a_fixed_draw_of_an_image_depends_on_its_place_alone() -> None:
    few, many = grey(100, 1500), grey(100, 2500)
    np.testing.assert_array_equal(
        binarized(few, "fixed", "train").pixels, binarized(many, "fixed", "train").pixels[:1500]
    )


@pytest.mark.parametrize("level", [26, 128, 230])
def test_a_fixed_draw_has_the_grey_level_as_probability(level: int) -> None:
    share = (binarized(grey(level), "fixed", "train").pixels == 255).mean()
    prob = level / 255
    # 32,000 draws: four standard errors.
    assert share == pytest.approx(prob, abs=4 * np.sqrt(prob * (1 - prob) / 32_000))


@pytest.mark.parametrize("binarization", ["fixed", "threshold"])
def test_black_and_white_stay_what_they_are(binarization: str) -> None:
    assert (binarized(grey(0), binarization, "train").pixels == 0).all()
    assert (binarized(grey(255), binarization, "train").pixels == 255).all()


def test_the_threshold_lies_at_one_half() -> None:
    assert (binarized(grey(127), "threshold", "train").pixels == 0).all()
    assert (binarized(grey(128), "threshold", "train").pixels == 255).all()


def test_a_dynamic_draw_differs_from_epoch_to_epoch_and_is_reproducible() -> None:
    dataset = ImageDataset(grey(128, 50), draw_seed=0)
    epochs = [dataset.__getitems__([(epoch, i) for i in range(50)])[0] for epoch in (0, 1, 0)]
    assert set(np.unique(epochs[0])) == {0, 1}
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] == epochs[2]).all()


def test_a_dynamic_recipe_leaves_training_grey_and_binarizes_the_rest(tmp_path: Path) -> None:
    pixels = np.full((20, 4, 4), 100, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", train_images=pixels)
    config = DataConfig(source=str(tmp_path / "x.npz"), binarization="dynamic", num_validation=5)
    split = load_split(config)
    assert split.train_pixels_are_grey
    assert set(np.unique(split.train.pixels)) == {100}
    assert set(np.unique(split.validation.pixels)) == {0, 255}
    assert set(np.unique(split.test.pixels)) == {0, 255}


@pytest.mark.parametrize("name", list(data.DATA_SETS))
def test_the_real_data_sets_are_read(name: str) -> None:
    if data.state_of(data.DATA_SETS[name]) != "present and verified":
        pytest.skip(f"{name} is not in PTHETA_DATA")
    split = load_split(DataConfig(source=name, num_validation=100))
    assert split.train.pixels.shape[2:] == split.test.pixels.shape[2:]
    assert len(split.train) == split.source.num_train > 1000
    assert split.train.labels.max() < max(len(split.classes), 1)


def test_pooling_takes_the_rounded_mean_of_blocks() -> None:
    pixels = np.array([[[[0, 1, 10, 20], [1, 1, 30, 43]]]], dtype=np.uint8)
    images = Images(pixels, np.zeros(1, dtype=np.int64))
    # 3/4 and 103/4 = 25.75, to the nearest level.
    assert data.pooled(images, 2).pixels.tolist() == [[[[1, 26]]]]
    assert data.pooled(images, 1) is images
    with pytest.raises(ValueError, match=r"data.pool is 3, which does not divide 4×2"):
        data.pooled(images, 3)


def test_cropping_keeps_the_centre_of_the_same_bits(small: DataSet) -> None:
    put(data.data_folder() / "small")
    whole = load_split(DataConfig(source="small", binarization="fixed", num_validation=2))
    part = load_split(DataConfig(source="small", binarization="fixed", num_validation=2, crop=1))
    for name in ("train", "validation", "test"):
        expected = getattr(whole, name).pixels[:, :, :1, 1:2]
        np.testing.assert_array_equal(getattr(part, name).pixels, expected)
    with pytest.raises(ValueError, match=r"data.crop is 3, but the images are 3×2"):
        load_split(DataConfig(source="small", crop=3))


def test_dequantized_pixels_fill_their_grey_level_evenly(small: DataSet) -> None:
    put(data.data_folder() / "small")
    split = load_split(DataConfig(source="small", num_validation=2, dequantize=True))
    y = (255 * split.test.values.astype(np.float64) + 0.5) / 256
    np.testing.assert_array_equal(np.floor(256 * y), split.test.pixels)
    pixels = np.full((500, 1, 4, 4), 255, dtype=np.uint8)
    values = Images(pixels, np.zeros(500, dtype=np.int64), dequantization_seed=5).values
    noise = 255 * values.astype(np.float64) + 0.5 - 255
    # 8,000 uniform draws: mean ½ ± 0.0033, variance 1/12 ± 0.0009.
    assert noise.mean() == pytest.approx(0.5, abs=0.015)
    assert noise.var() == pytest.approx(1 / 12, abs=0.004)


def test_the_noise_of_an_image_does_not_depend_on_the_cut(small: DataSet) -> None:
    pixels = np.zeros((10, 1, 2, 2), dtype=np.uint8)
    images = Images(pixels, np.zeros(10, dtype=np.int64), dequantization_seed=5)
    np.testing.assert_array_equal(images[3:7][1:].values, images.values[4:7])
    with pytest.raises(ValueError, match="cut into runs"):
        images[::2]


def test_training_adds_other_noise_in_every_epoch_and_validation_the_same(small: DataSet) -> None:
    put(data.data_folder() / "small")
    split = load_split(DataConfig(source="small", num_validation=2, dequantize=True))
    training = ImageDataset(split.train, 7, dequantize=True)
    (first, _), (second, _) = (training.__getitems__([(e, 0), (e, 1)]) for e in (0, 1))
    assert (first != second).all()
    np.testing.assert_array_equal((255 * first).round(), (255 * second).round())
    validation = ImageDataset(split.validation)
    (first, _), (second, _) = (validation.__getitems__([(e, 0), (e, 1)]) for e in (0, 1))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first.numpy(), split.validation.values)


def test_mutation_replaces_a_share_of_the_pixels_by_any_grey_level() -> None:
    images = Images(np.full((400, 1, 8, 8), 100, np.uint8), np.zeros(400, np.int64))
    pixels = mutated(images, 0.25).pixels
    changed = pixels[pixels != 100]
    # Four standard errors; one replacement in 256 keeps its level.
    assert abs(len(changed) / pixels.size - 0.25 * 255 / 256) < 4 * np.sqrt(0.19 / pixels.size)
    assert stats.kstest(changed + 0.5, "uniform", args=(0, 256)).pvalue > 1e-3
    np.testing.assert_array_equal(mutated(images, 0.25).pixels, pixels)
    assert mutated(images, 0) is images


def test_mutation_changes_training_images_alone(small: DataSet) -> None:
    put(data.data_folder() / "small")
    config = DataConfig(source=small.name, num_validation=2)
    plain, changed = load_split(config), load_split(config.model_copy(update={"mutation": 0.5}))
    assert (plain.train.pixels != changed.train.pixels).any()
    np.testing.assert_array_equal(plain.validation.pixels, changed.validation.pixels)
    np.testing.assert_array_equal(plain.test.pixels, changed.test.pixels)


def test_bits_are_not_mutated() -> None:
    with pytest.raises(ValueError, match="mutation need"):
        DataConfig(source="mnist", binarization="fixed", mutation=0.1)
