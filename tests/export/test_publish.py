import io
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from export import publish as publishing
from export.convert import convert
from export.data import load_split
from export.evaluate import evaluate
from export.publish import make_up_to_date, publish, verify
from export.recipe import Recipe
from export.train import train
from service.manifest import read_manifest, sha256_of, version_folders
from tests.export.conftest import CLASSES

Run = tuple[Recipe, Path]


@pytest.fixture
def run_copy(finished_run: Run, tmp_path: Path) -> Run:
    """A run that a test may change; copying keeps the times of the files."""
    recipe, run = finished_run
    return recipe, Path(shutil.copytree(run, tmp_path / "run"))


def test_a_published_bundle_is_whole_and_verified(finished_run: Run, tmp_path: Path) -> None:
    recipe, run = finished_run
    folder = publish(recipe, run, tmp_path / "store")
    assert folder == tmp_path / "store" / recipe.name / "1"
    manifest = verify(folder)
    graphs = {"generate.onnx"} | ({"log_prob.onnx"} if recipe.family == "nade" else set())
    files = {"golden.npz", "README.md", "preview.png", "film.webp"}
    files |= {"nearest.png"} if recipe.family != "nade" else set()
    assert {path.name for path in folder.iterdir()} == graphs | files | {"model.json"}
    assert set(manifest.files) == files
    for graph in manifest.graphs.values():
        assert graph.sha256 == sha256_of(folder / graph.file)
        assert graph.num_bytes == (folder / graph.file).stat().st_size
        assert graph.max_batch_rows == recipe.max_batch_rows


def test_the_manifest_describes_the_model(finished_run: Run, tmp_path: Path) -> None:
    recipe, run = finished_run
    manifest = read_manifest(publish(recipe, run, tmp_path))
    assert (manifest.name, manifest.version, manifest.family) == (recipe.name, 1, recipe.family)
    assert manifest.image.shape == (1, 8, 8)
    assert manifest.training.data.num_train == 270
    assert manifest.training.seed == 0
    if recipe.family == "nade":
        assert manifest.density == "exact"
        assert manifest.ordering == "raster"
        assert manifest.operations == ("sample", "log_prob", "complete")
        assert manifest.num_parameters == 2 * 64 * 20 + 64 + 20
        assert manifest.metrics[0].name == "nll"
    else:
        assert manifest.density == "implicit"
        assert manifest.operations == ("sample", "interpolate")
    assert manifest.labels == (CLASSES if recipe.family == "cgan" else ())


def test_a_bundle_tells_no_path_of_the_machine(finished_run: Run, tmp_path: Path) -> None:
    recipe, run = finished_run
    folder = publish(recipe, run, tmp_path)
    hidden = str(Path(recipe.data.source).parent).encode()
    assert all(hidden not in path.read_bytes() for path in folder.iterdir())


def test_the_card_shows_and_explains(finished_run: Run, tmp_path: Path) -> None:
    recipe, run = finished_run
    folder = publish(recipe, run, tmp_path)
    card = (folder / "README.md").read_text(encoding="utf-8")
    for needed in ("preview.png", "film.webp", "curl", "onnxruntime", "Source:", "licence"):
        assert needed in card
    for metric in read_manifest(folder).metrics:
        assert f"`{metric.name}` | {metric.value:.4g} |" in card
        assert metric.protocol in card
    assert ("Before the first step" in card) == (recipe.family == "nade")
    assert ("2·ln 2 = 1.386" in card) == (recipe.family != "nade")
    assert ("0 dark, 1 middling, 2 bright" in card) == (recipe.family == "cgan")


def test_the_python_of_the_card_runs(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = finished_run
    folder = publish(recipe, run, tmp_path)
    card = (folder / "README.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    assert len(blocks) == (2 if recipe.family == "nade" else 1)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["images"].shape == (16, 1, 8, 8)
    if recipe.family == "nade":
        assert names["log_prob"].shape == (16,)


def test_preview_and_film_have_their_shapes(finished_run: Run, tmp_path: Path) -> None:
    recipe, run = finished_run
    folder = publish(recipe, run, tmp_path)
    columns = len(CLASSES) if recipe.family == "cgan" else 8
    with PillowImage.open(folder / "preview.png") as preview:
        # Small images are shown larger, these 56 // 8 = 7 times.
        assert preview.size == (columns * 8 * 7, 8 * 8 * 7)
    if recipe.family != "nade":
        with PillowImage.open(folder / "nearest.png") as nearest:
            assert nearest.size == (10 * 8 * 7, 4 * 8 * 7)
            pixels = np.asarray(nearest)[::7, ::7]
        train = set(map(bytes, load_split(recipe.data).train.pixels[:, 0]))
        cells = pixels.reshape(4, 8, 10, 8).swapaxes(1, 2)
        are_real = [[cell.tobytes() in train for cell in row] for row in cells]
        assert are_real == [[False] * 10, [True] * 10] * 2
    with np.load(run / "film.npz") as film:
        num_frames = len(film["frames"])
    with PillowImage.open(folder / "film.webp") as film:
        assert film.size == (3 * 8 * 7, 2 * 8 * 7)
        assert getattr(film, "n_frames", 1) == num_frames
        film.seek(num_frames - 1)
        film.load()
        assert film.info["duration"] == 2000


def test_versions_count_up_and_stay(finished_run: Run, tmp_path: Path) -> None:
    recipe, run = finished_run
    first = publish(recipe, run, tmp_path)
    before = {path: path.read_bytes() for path in first.iterdir()}
    (tmp_path / recipe.name / "7").mkdir()
    assert publish(recipe, run, tmp_path).name == "8"
    assert {path: path.read_bytes() for path in first.iterdir()} == before


def test_publishing_at_once_gives_everyone_a_version_of_their_own(
    finished_run: Run, tmp_path: Path
) -> None:
    recipe, run = finished_run
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: publish(recipe, run, tmp_path), range(4)))
    assert sorted(int(folder.name) for folder in folders) == [1, 2, 3, 4]
    for folder in folders:
        manifest = verify(folder)
        assert manifest.version == int(folder.name)
        assert (
            (folder / "README.md")
            .read_text(encoding="utf-8")
            .startswith(f"# {manifest.reference}\n")
        )


def test_the_version_of_a_faster_publish_is_not_overwritten(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = finished_run
    publish(recipe, run, tmp_path)
    monkeypatch.setattr(publishing, "_next_version", lambda store, name: 1)  # a stale view
    assert publish(recipe, run, tmp_path).name == "2"


def test_a_failed_publish_leaves_nothing(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = finished_run
    monkeypatch.setattr(publishing, "MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(ValueError, match="bytes, more than the 1,000 that fit"):
        publish(recipe, run, tmp_path)
    assert version_folders(tmp_path) == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_service_under_another_user_can_read_the_bundle(
    finished_run: Run, tmp_path: Path
) -> None:
    folder = publish(*finished_run, tmp_path)
    assert folder.stat().st_mode & 0o555 == 0o555


def test_an_unfinished_run_is_refused_unless_asked_for(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe("bernoulli", training={"epochs": 2})
    train(recipe, tmp_path / "run", stop_after=1)
    with pytest.raises(ValueError, match="has done 1 of 2 epochs: go on with"):
        publish(recipe, tmp_path / "run", tmp_path / "store")
    folder = publish(recipe, tmp_path / "run", tmp_path / "store", unfinished=True)
    assert "stopped before its end" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_run_that_was_never_trained_is_refused(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        publish(make_recipe("nade"), tmp_path / "run", tmp_path / "store")


def noting(calls: list[str], step: Callable[[Recipe, Path], object]) -> Callable[..., object]:
    def noted(recipe: Recipe, run: Path) -> object:
        calls.append(step.__name__)
        return step(recipe, run)

    return noted


def test_only_what_is_older_than_the_checkpoint_is_made_again(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = run_copy
    calls: list[str] = []
    for step in (convert, evaluate):
        monkeypatch.setattr(publishing, step.__name__, noting(calls, step))
    make_up_to_date(recipe, run)
    assert calls == []
    (run / "bundle" / "metrics.json").unlink()
    make_up_to_date(recipe, run)
    assert calls == ["evaluate"]
    (run / "last.ckpt").touch()
    make_up_to_date(recipe, run)
    assert calls == ["evaluate", "convert", "evaluate"]


@pytest.mark.parametrize("name", ["generate.onnx", "README.md"])
def test_a_changed_file_is_noticed(finished_run: Run, tmp_path: Path, name: str) -> None:
    folder = publish(*finished_run, tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} has not the content"):
        verify(folder)


def test_the_recipe_in_the_manifest_can_be_trained_again(finished_run: Run, tmp_path: Path) -> None:
    recipe, run = finished_run
    fields = json.loads((publish(recipe, run, tmp_path) / "model.json").read_text())
    again = Recipe.model_validate(fields["training"]["recipe"])
    assert again.training == recipe.training
    assert again.model == recipe.model


def test_the_preview_is_a_readable_picture(finished_run: Run, tmp_path: Path) -> None:
    content = (publish(*finished_run, tmp_path) / "preview.png").read_bytes()
    with PillowImage.open(io.BytesIO(content)) as picture:
        assert len(set(picture.convert("L").tobytes())) > 1
