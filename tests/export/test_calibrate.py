"""What held-out images are scored for, and that nobody else's scores are stored."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.__main__ import main
from export.calibrate import calibrate, calibrate_published
from export.convert import convert
from export.data import load_split
from export.evaluate import evaluate
from export.graph import Graph
from export.publish import publish, verify
from export.recipe import Recipe
from export.train import train
from service.anomaly import code_bits
from service.manifest import read_manifest
from service.scoring import binarize

Run = tuple[Recipe, Path]


@pytest.fixture(scope="module")
def held_out_run(make_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a converted run of which 130 images were kept out."""
    recipe = make_recipe("nade", training={"epochs": 1})
    data = recipe.data.model_copy(update={"num_validation": 130})
    recipe = recipe.model_copy(update={"data": data})
    run = tmp_path_factory.mktemp("held-out")
    train(recipe, run)
    convert(recipe, run)
    evaluate(recipe, run)
    return recipe, run


@pytest.fixture
def bundle(held_out_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(held_out_run[1] / "bundle", tmp_path / "bundle"))


@pytest.mark.parametrize("preparation", ["threshold", "stochastic"])
def test_held_out_images_are_scored_as_a_client_s_would_be(
    held_out_run: Run, bundle: Path, preparation: Any
) -> None:
    recipe, _ = held_out_run
    calibration = calibrate(recipe, bundle)
    assert calibration is not None
    assert (calibration.num_images, calibration.num_ranked) == (130, 104)

    grey = recipe.data.model_copy(update={"binarization": "none"})
    images = binarize(load_split(grey).validation.values, preparation, seed=0)
    expected = Graph(bundle / "log_prob.onnx", recipe.max_batch_rows)({"image": images})
    with np.load(bundle / "calibration.npz") as arrays:
        assert (arrays[f"{preparation}.log_prob"] == expected["log_prob"]).all()
        assert (arrays[f"{preparation}.code_bits"] == code_bits(images)).all()


def test_publishing_calibrates(held_out_run: Run, tmp_path: Path) -> None:
    manifest = verify(publish(*held_out_run, tmp_path))
    assert manifest.calibration is not None
    assert "calibration.npz" in manifest.files


def test_without_held_out_images_there_is_no_calibration(held_out_run: Run, bundle: Path) -> None:
    recipe, _ = held_out_run
    data = recipe.data.model_copy(update={"num_validation": 124})
    assert calibrate(recipe.model_copy(update={"data": data}), bundle) is None
    assert not (bundle / "calibration.npz").exists()


def test_a_published_bundle_gets_its_calibration_once(
    held_out_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = held_out_run
    folder = publish(recipe, run, tmp_path)
    with pytest.raises(ValueError, match="is calibrated; a published version does not change"):
        calibrate_published(recipe, folder)

    before = read_manifest(folder)
    files = {name: sha256 for name, sha256 in before.files.items() if name != "calibration.npz"}
    stripped = before.model_copy(update={"calibration": None, "files": files})
    (folder / "model.json").write_text(stripped.model_dump_json())
    (folder / "calibration.npz").rename(tmp_path / "expected.npz")
    assert calibrate_published(recipe, folder) == verify(folder) == before
    with np.load(tmp_path / "expected.npz") as expected, np.load(folder / "calibration.npz") as now:
        assert all((expected[name] == now[name]).all() for name in expected)
    assert main(["calibrate", recipe.name, "--store", str(tmp_path)]) == 1
    assert "is calibrated" in capsys.readouterr().err


def test_what_cannot_be_calibrated_says_why(held_out_run: Run, tmp_path: Path) -> None:
    recipe, run = held_out_run
    folder = publish(recipe, run, tmp_path)
    manifest = read_manifest(folder).model_copy(update={"calibration": None})
    (folder / "model.json").write_text(manifest.model_dump_json())
    data = recipe.data.model_copy(update={"num_validation": 0})
    with pytest.raises(ValueError, match="0 images were held out"):
        calibrate_published(recipe.model_copy(update={"data": data}), folder)


def test_a_model_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "nothing", "--store", str(tmp_path)]) == 1
    assert "publish it first" in capsys.readouterr().err
