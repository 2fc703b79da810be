"""How unusual an image is: p-values that hold, two-sided, and told where they are calibrated."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service import anomaly
from service.anomaly import AnomalyScore, code_bits, read_calibration
from service.manifest import GOLDEN_FILE, read_manifest
from service.scoring import binarize
from tests.service.answers import answer, array, npy
from tests.service.bundles import (
    HEIGHT,
    NEVER_ON,
    UNDEFINED,
    WIDTH,
    add_calibration,
    binary_generator,
    binary_log_prob,
    identity_generator,
    latent_generator,
    linear_bound,
    linear_encoder,
    square_log_prob,
    write_bundle,
)
from tests.service.conftest import Serve

Array = NDArray[np.float64]
NPY = {"Content-Type": "application/x-npy"}


def figures(count: int, seed: int) -> tuple[Array, Array]:
    """Draw log_prob in nats and complexity in bits as they go together in pictures."""
    rng = np.random.default_rng(seed)
    complexity = rng.normal(3600, 900, count)
    log_prob = -math.log(2) * (complexity - 1300 + rng.normal(0, 400, count))
    return log_prob, complexity


@pytest.fixture(scope="module")
def calibrated() -> AnomalyScore:
    return AnomalyScore.calibrate(*figures(5000, seed=0))


class TestPValues:
    @pytest.mark.parametrize("alpha", [0.01, 0.05, 0.5])
    def test_ordinary_images_fall_below_alpha_about_that_often(
        self, calibrated: AnomalyScore, alpha: float
    ) -> None:
        p_values = calibrated.p_values(calibrated.scores(*figures(20_000, seed=1)))
        # Four standard errors of the 4,000 ranked images and of the 20,000 new ones.
        tolerance = 4 * math.sqrt(alpha * (1 - alpha) * (1 / 4000 + 1 / 20_000))
        assert abs((p_values <= alpha).mean() - alpha) < tolerance

    @pytest.mark.parametrize(
        ("bits", "complexity"), [(1472, 1472), (6000, 3600), (300, 3600), (2300, 100), (300, 80)]
    )
    def test_images_too_likely_and_too_unlikely_for_what_they_are_stand_out(
        self, calibrated: AnomalyScore, bits: float, complexity: float
    ) -> None:
        scores = calibrated.scores(np.array([-bits * math.log(2)]), np.array([complexity]))
        assert calibrated.p_values(scores)[0] <= 0.002

    def test_the_most_ordinary_image_has_the_usual_excess(self, calibrated: AnomalyScore) -> None:
        bits = 3000 + calibrated.centre
        scores = calibrated.scores(np.array([-math.log(2) * bits]), np.array([3000.0]))
        assert scores == pytest.approx(0, abs=1e-9)
        assert calibrated.p_values(scores) == 1

    def test_scores_are_in_bits(self, calibrated: AnomalyScore) -> None:
        log_prob = -math.log(2) * (3000 + calibrated.centre + np.array([-7.0, 7.0]))
        assert calibrated.scores(log_prob, np.full(2, 3000.0)) == pytest.approx([7, 7])

    def test_ties_count_as_unusual(self) -> None:
        score = AnomalyScore(0.0, np.array([1.0, 2.0, 2.0, 3.0]))
        p_values = score.p_values(np.array([0.5, 1.0, 2.0, 2.5, 3.0, 4.0]))
        assert p_values.tolist() == [1, 1, 4 / 5, 2 / 5, 2 / 5, 1 / 5]

    def test_what_has_no_likelihood_is_the_most_unusual_and_nan_has_no_rank(
        self, calibrated: AnomalyScore
    ) -> None:
        scores = calibrated.scores(np.array([-np.inf, np.nan]), np.array([3000.0, 3000.0]))
        assert scores[0] == np.inf
        p_values = calibrated.p_values(scores)
        assert p_values[0] == 1 / (len(calibrated.ranked) + 1)
        assert np.isnan(p_values[1])

    def test_what_is_ranked_had_no_part_in_what_is_usual(self) -> None:
        log_prob, complexity = figures(100, seed=2)
        before = AnomalyScore.calibrate(log_prob, complexity)
        after = AnomalyScore.calibrate(
            np.concatenate([log_prob[:20], log_prob[20:] - 9]), complexity
        )
        assert before.centre == after.centre
        assert (before.ranked != after.ranked).any()
        assert len(before.ranked) == 80

    @pytest.mark.parametrize("count", [0, 19])
    def test_too_few_images_are_refused(self, count: int) -> None:
        with pytest.raises(ValueError, match="20 images"):
            AnomalyScore.calibrate(*figures(count, seed=0))

    def test_figures_that_are_not_finite_are_refused(self) -> None:
        log_prob, complexity = figures(50, seed=0)
        log_prob[3] = -np.inf
        with pytest.raises(ValueError, match="finite"):
            AnomalyScore.calibrate(log_prob, complexity)


class TestComplexity:
    def test_a_plain_image_is_simple_and_noise_is_not(self) -> None:
        rng = np.random.default_rng(0)
        images = np.zeros((3, 1, 28, 28), np.float32)
        images[1, :, 7:21, 7:21] = 1
        images[2] = rng.random((1, 28, 28))
        plain, square, noise = code_bits(images)
        assert plain < square < noise
        assert 8 * 784 <= noise < 8 * 784 + 100

    def test_an_image_is_measured_alone(self) -> None:
        images = np.random.default_rng(1).random((5, 3, 6, 6)).astype(np.float32)
        alone = [code_bits(images[i : i + 1])[0] for i in range(5)]
        assert code_bits(images).tolist() == alone


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of calibrated models."""
    store = tmp_path_factory.mktemp("calibrated")
    log_prob, complexity = figures(100, seed=0)
    exact: dict[Any, str] = {"generate": binary_generator(), "log_prob": binary_log_prob()}
    folder = write_bundle(store, "binary", exact, values="binary", prior="uniform", latent=False)
    add_calibration(
        folder,
        {
            "threshold.log_prob": log_prob / 50,
            "threshold.code_bits": complexity / 20,
            "stochastic.log_prob": log_prob / 60,
            "stochastic.code_bits": complexity / 15,
        },
    )
    plain = {"none.log_prob": log_prob / 100, "none.code_bits": complexity / 10}
    grey: dict[Any, str] = {
        "generate": identity_generator(),
        "log_prob": square_log_prob(1, has_conditionals=True),
    }
    add_calibration(write_bundle(store, "grey", grey, prior="uniform", latent=False), plain)
    bound: dict[Any, str] = {
        "generate": latent_generator(1),
        "log_prob": linear_bound(),
        "encode": linear_encoder(),
    }
    add_calibration(write_bundle(store, "bound", bound), plain)
    write_bundle(store, "raw", grey, prior="uniform", latent=False)
    return store


@pytest.fixture(scope="module")
def client(serve: Serve, store: Path) -> Iterator[httpx.Client]:
    with serve(model_store=store) as running:
        yield running.client


def pictures(count: int = 6) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(3).integers(0, 256, (count, HEIGHT, WIDTH), dtype=np.uint8)
    pixels[:, *NEVER_ON] = pixels[:, *UNDEFINED] = 0
    return pixels


def results(client: httpx.Client, pixels: NDArray[np.uint8], **params: Any) -> list[dict[str, Any]]:
    response = client.post("/log_prob", content=npy(pixels), params=params, headers=NPY)
    found: list[dict[str, Any]] = answer(response)["results"]
    return found


def calibration_of(store: Path, name: str, preparation: Any) -> AnomalyScore:
    folder = store / name / "1"
    with np.load(folder / GOLDEN_FILE) as golden:
        return read_calibration(folder / "calibration.npz", golden["log_prob.image"])[preparation]


class TestAnswers:
    @pytest.mark.parametrize("binarization", ["threshold", "stochastic"])
    def test_each_image_is_ranked_as_it_was_prepared(
        self, client: httpx.Client, store: Path, binarization: Any
    ) -> None:
        told = results(client, pictures(), model="binary", binarize=binarization, seed=5)
        calibration = calibration_of(store, "binary", binarization)
        seen = binarize((pictures()[:, None] / np.float32(255)), binarization, seed=5)
        log_prob = np.array([result["log_prob"] for result in told])
        scores = calibration.scores(log_prob, code_bits(seen))
        assert [result["anomaly_score"] for result in told] == scores.tolist()
        assert [result["p_value"] for result in told] == calibration.p_values(scores).tolist()

    def test_grey_levels_are_ranked_as_they_are(self, client: httpx.Client, store: Path) -> None:
        told = results(client, pictures(), model="grey")
        calibration = calibration_of(store, "grey", "none")
        complexity = code_bits(pictures()[:, None] / np.float32(255))
        scores = calibration.scores(np.array([r["log_prob"] for r in told]), complexity)
        assert [result["anomaly_score"] for result in told] == scores.tolist()

    def test_json_has_no_infinity_but_a_p_value(self, client: httpx.Client) -> None:
        pixels = pictures(2)
        pixels[0][NEVER_ON] = pixels[1][UNDEFINED] = 255
        impossible, undefined = results(client, pixels, model="binary")
        assert impossible["status"] == "neg_inf"
        assert (impossible["anomaly_score"], impossible["p_value"]) == (None, 1 / 81)
        assert (undefined["anomaly_score"], undefined["p_value"]) == (None, None)

    def test_an_elbo_is_ranked_and_a_tighter_bound_is_not(self, client: httpx.Client) -> None:
        for params in ({}, {"num_importance_samples": 1}):
            assert "p_value" in results(client, pictures(), model="bound", **params)[0]
        assert (
            "p_value" not in results(client, pictures(), model="bound", num_importance_samples=2)[0]
        )

    def test_a_model_that_is_not_calibrated_tells_none(self, client: httpx.Client) -> None:
        told = results(client, pictures(), model="raw")[0]
        assert not {"p_value", "anomaly_score"} & set(told)

    def test_arrays_hold_log_prob_alone(self, client: httpx.Client) -> None:
        params = {"model": "grey", "format": "npy"}
        response = client.post("/log_prob", content=npy(pictures()), params=params, headers=NPY)
        assert array(response).shape == (6,)

    def test_models_tell_how_many_images_they_rank_among(self, client: httpx.Client) -> None:
        described = client.get("/models/grey").json()
        assert described["calibration"] == {"num_images": 100, "num_ranked": 80}
        assert client.get("/models/raw").json()["calibration"] is None


class TestFile:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        graphs: dict[Any, str] = {
            "generate": identity_generator(),
            "log_prob": square_log_prob(1, has_conditionals=True),
        }
        return write_bundle(tmp_path, "grey", graphs, prior="uniform", latent=False)

    @pytest.mark.parametrize(
        ("arrays", "reason"),
        [
            ({"none.log_prob": np.zeros(50)}, "code_bits"),
            ({"none.log_prob": np.zeros(5), "none.code_bits": np.zeros(5)}, "20 images"),
            ({"none.log_prob": np.zeros(50), "none.code_bits": np.zeros(49)}, "shape"),
        ],
    )
    def test_a_broken_calibration_is_told(
        self, folder: Path, arrays: dict[str, Array], reason: str
    ) -> None:
        add_calibration(folder, arrays)
        with np.load(folder / GOLDEN_FILE) as file:
            golden = file["log_prob.image"]
        with pytest.raises(ValueError, match=reason):
            read_calibration(folder / "calibration.npz", golden)

    def test_what_another_compressor_measured_gives_no_p_values(
        self,
        store: Path,
        serve: Serve,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        measure = anomaly.code_bits
        monkeypatch.setattr(anomaly, "code_bits", lambda images: measure(images) + 8)
        with caplog.at_level(logging.WARNING), serve(model_store=store) as running:
            told = results(running.client, pictures(), model="grey")[0]
        assert not {"p_value", "anomaly_score"} & set(told)
        assert "zlib" in caplog.text

    def test_a_bundle_with_a_broken_calibration_is_not_served(
        self, folder: Path, serve: Serve
    ) -> None:
        add_calibration(folder, {"none.log_prob": np.zeros(5), "none.code_bits": np.zeros(5)})
        assert read_manifest(folder).calibration is not None
        with serve(model_store=folder.parents[1], wait=False) as running:
            reason = running.client.get("/readyz").json()
        assert "calibration.npz" in str(reason)
