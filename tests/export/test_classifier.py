"""Frozen classifiers: the same bytes from the same recipe, and the file that their report tells."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.__main__ import main
from export.classifier import (
    CLASSIFIERS,
    Classifier,
    LeNet,
    LeNetConfig,
    classifier_for,
    classifier_names,
    make_classifier,
    read_classifier_recipe,
)
from export.data import DATA_SETS, Images, load_split, state_of
from service.manifest import sha256_of
from tests.export.conftest import classifier_recipe

MAX_BYTES = 10**6
NAMES = classifier_names()

Frozen = tuple[Classifier, Images, Images]


def test_it_learns_what_it_is_taught(frozen: Frozen) -> None:
    classifier, _, test = frozen
    probs, features = classifier(test.values)
    assert probs.shape == (270, 3)
    assert features.shape == (270, 8)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)  # single precision
    accuracy = (probs.argmax(axis=1) == test.labels).mean()
    assert accuracy > 0.9
    assert classifier.report.accuracy == pytest.approx(accuracy)
    assert classifier.report.validation_accuracy > 0.9
    assert classifier.report.classes == ("lying", "standing", "none")


def test_the_same_recipe_gives_the_same_bytes(frozen: Frozen, shapes: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # what was drawn before must not matter
    report = make_classifier(classifier_recipe(shapes), tmp_path)
    assert report == frozen[0].report
    assert sha256_of(tmp_path / "lenet-shapes.onnx") == report.sha256
    assert json.loads((tmp_path / "lenet-shapes.json").read_text())["sha256"] == report.sha256


def test_rows_have_the_same_bits_in_every_batch(frozen: Frozen) -> None:
    classifier, _, test = frozen
    together = classifier(test.values[:20])
    for start, stop in ((0, 1), (3, 10), (19, 20)):
        alone = classifier(test.values[start:stop])
        for rows, all_rows in zip(alone, together, strict=True):
            assert rows.tobytes() == all_rows[start:stop].tobytes()


def test_another_file_than_the_one_of_the_report_is_refused(shapes: Path, tmp_path: Path) -> None:
    recipe = classifier_recipe(shapes)
    training = recipe.training.model_copy(update={"epochs": 1})
    make_classifier(recipe.model_copy(update={"training": training}), tmp_path)
    path = tmp_path / "lenet-shapes.json"
    path.write_text(path.read_text().replace(sha256_of(path.with_suffix(".onnx")), "0" * 64))
    with pytest.raises(ValueError, match=r"is not the file that lenet-shapes.json describes"):
        Classifier("lenet-shapes", tmp_path)


def test_an_unknown_classifier_names_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="no classifier 'resnet'; there are: lenet-fashion"):
        read_classifier_recipe("resnet")
    assert main(["classifier", "resnet"]) == 1
    assert "no classifier 'resnet'" in capsys.readouterr().err


def test_a_data_set_without_a_classifier_has_none(tmp_path: Path) -> None:
    assert classifier_for("emoji32") is None
    shutil.copy(CLASSIFIERS / "lenet-mnist.yaml", tmp_path)
    assert classifier_for("mnist", tmp_path) is None  # described, but not trained


def test_features_are_what_the_last_layer_sees() -> None:
    lenet = LeNet(LeNetConfig(channels=(2, 3), num_features=5), (1, 28, 28), 10).eval()
    logits, features = lenet(torch.rand(4, 1, 28, 28))
    assert features.min() >= 0
    torch.testing.assert_close(lenet.output(features), logits)
    assert lenet.dense.in_features == 3 * 4 * 4


@pytest.mark.parametrize("name", NAMES)
class TestShipped:
    def test_it_is_small_and_the_one_of_its_report(self, name: str) -> None:
        classifier = Classifier(name)
        assert classifier.report.name == name
        assert (CLASSIFIERS / f"{name}.onnx").stat().st_size < MAX_BYTES
        probs, _ = classifier(np.zeros((2, 1, 28, 28), np.float32))
        assert probs.shape == (2, len(classifier.report.classes))

    def test_its_recipe_tells_the_accuracy(self, name: str) -> None:
        report = Classifier(name).report
        assert f"{report.accuracy:.2%}" in read_classifier_recipe(name).description

    def test_its_accuracy_can_be_measured_again(self, name: str) -> None:
        recipe: Any = read_classifier_recipe(name)
        if state_of(DATA_SETS[recipe.data.source]) != "present and verified":
            pytest.skip(f"{recipe.data.source} is not in PTHETA_DATA")
        classifier, test = Classifier(name), load_split(recipe.data).test
        right = [
            classifier(chunk.values)[0].argmax(axis=1) == chunk.labels
            for chunk in (test[start : start + 1000] for start in range(0, len(test), 1000))
        ]
        # Another processor may round otherwise, and tip an image that lies between two classes.
        assert np.mean(right) == pytest.approx(classifier.report.accuracy, abs=2e-4)
