"""POST /classify: Bayes' rule over the very log-likelihoods that /log_prob tells."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.scoring import class_probs
from tests.service.answers import answer, array, invalid, npy, problem
from tests.service.bundles import (
    HEIGHT,
    WIDTH,
    class_generator,
    class_log_prob,
    identity_generator,
    linear_bound,
    linear_encoder,
    square_log_prob,
    write_bundle,
)
from tests.service.conftest import Serve

CLASSES = ("cat", "dog", "bird")
NPY = {"Content-Type": "application/x-npy"}
NUM_IMAGES = 4


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    store: Path = tmp_path_factory.mktemp("classify")
    generate = class_generator(len(CLASSES))
    exact: dict[Any, str] = {"generate": generate, "log_prob": class_log_prob()}
    write_bundle(store, "exact", exact, labels=CLASSES)
    bound: dict[Any, str] = {
        "generate": generate,
        "log_prob": linear_bound(conditional=True),
        "encode": linear_encoder(),
    }
    write_bundle(store, "bound", bound, labels=CLASSES)
    write_bundle(store, "implicit", {"generate": generate}, labels=CLASSES)
    plain: dict[Any, str] = {
        "generate": identity_generator(),
        "log_prob": square_log_prob(1, has_conditionals=False),
    }
    write_bundle(store, "plain", plain, prior="uniform", latent=False)
    with serve(model_store=store, max_queue_rows=100, max_rows=50) as running:
        yield running.client


def pictures(count: int = NUM_IMAGES) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 40, (count, HEIGHT, WIDTH), dtype=np.uint8)


def classify(client: httpx.Client, model: str, count: int = NUM_IMAGES, **body: Any) -> Any:
    fields = {"model": model, "images": pictures(count).tolist()} | body
    return client.post("/classify", json=fields)


@pytest.mark.parametrize(("model", "samples"), [("exact", None), ("bound", None), ("bound", 70)])
def test_probabilities_are_those_of_log_prob_given_each_class(
    client: httpx.Client, model: str, samples: int | None
) -> None:
    body: dict[str, Any] = {"seed": 3}
    if samples:
        body["num_importance_samples"] = samples
    # 70 samples are three rows of an image: 36 rows in all.
    told = answer(classify(client, model, **body))["results"]
    columns = []
    for label in CLASSES:
        fields = {"model": model, "images": pictures().tolist(), "labels": label} | body
        scored = answer(client.post("/log_prob", json=fields))["results"]
        columns.append([result["log_prob"] for result in scored])
    log_prob = np.array(columns).T
    probs = np.exp(log_prob) / np.exp(log_prob).sum(axis=1, keepdims=True)
    for row, result in enumerate(told):
        assert result["index"] == row
        assert list(result["probs"]) == list(CLASSES)
        assert list(result["log_prob"].values()) == pytest.approx(log_prob[row], rel=1e-6)
        assert list(result["probs"].values()) == pytest.approx(probs[row], rel=1e-4)
        assert result["label"] == CLASSES[int(log_prob[row].argmax())]
        assert result["status"] == "ok"


def test_arrays_hold_the_probabilities(client: httpx.Client) -> None:
    by_json = answer(classify(client, "exact"))["results"]
    params = {"model": "exact", "format": "npy"}
    sent = client.post("/classify", content=npy(pictures()), params=params, headers=NPY)
    assert array(sent).shape == (NUM_IMAGES, len(CLASSES))
    assert array(sent).tolist() == [list(result["probs"].values()) for result in by_json]


def test_the_estimator_is_told(client: httpx.Client) -> None:
    assert answer(classify(client, "exact"))["estimator"] == "exact"
    bound = answer(classify(client, "bound", num_importance_samples=5))
    assert (bound["estimator"], bound["num_importance_samples"]) == ("iwae", 5)


@pytest.mark.parametrize("model", ["plain", "implicit"])
def test_models_without_densities_of_classes_are_refused(client: httpx.Client, model: str) -> None:
    content = problem(classify(client, model), "unsupported-operation", 422)
    assert content["alternatives"] == ["bound", "exact"]


def test_labels_are_what_is_asked(client: httpx.Client) -> None:
    invalid(classify(client, "exact", labels="cat"), "/labels")


def test_samples_of_an_exact_density_are_refused(client: httpx.Client) -> None:
    invalid(classify(client, "exact", num_importance_samples=3), "/num_importance_samples")


def test_all_classes_must_fit_into_the_queue(client: httpx.Client) -> None:
    assert len(answer(classify(client, "exact", count=33))["results"]) == 33
    invalid(classify(client, "exact", count=34), "/images")
    invalid(classify(client, "bound", num_importance_samples=300), "/num_importance_samples")


def test_what_the_models_say_they_can_do(client: httpx.Client) -> None:
    operations = {
        model["name"]: "classify" in model["operations"]
        for model in client.get("/models").json()["models"]
    }
    assert operations == {"exact": True, "bound": True, "implicit": False, "plain": False}


def test_probabilities_survive_small_likelihoods() -> None:
    log_prob = np.array([[-5000.0, -5001.0], [0.0, -np.inf], [-np.inf, -np.inf], [np.nan, 0.0]])
    probs = class_probs(log_prob)
    assert probs[0] == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])
    assert probs[1].tolist() == [1, 0]
    assert np.isnan(probs[2:]).all()
