"""Figures of generated images: the Fréchet distance against formulas, shares against counts."""

import math

import numpy as np
import pytest

from export.classifier import Classifier
from export.data import Images
from export.quality import (
    balance_metrics,
    frechet_distance,
    frechet_metric,
    quality_metrics,
    share_metric,
)

NUM_ROWS = 50_000


def gaussians(mean: list[float], std: list[float], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (np.array(mean) + np.array(std) * rng.normal(size=(NUM_ROWS, len(mean)))).astype("f4")


class TestFrechet:
    def test_it_is_zero_for_equal_sets(self) -> None:
        features = gaussians([1, 2, 3], [1, 5, 0.1], 0)
        # Rounding of 15 digits, at variances up to 25.
        assert abs(frechet_distance(features, features)) < 1e-9

    def test_of_shifted_and_stretched_gaussians_it_is_the_formula(self) -> None:
        """|μ₁ - μ₂|² + Σ (σ₁ - σ₂)² where the covariances are diagonal."""
        one, other = gaussians([0, 0, 0], [1, 2, 3], 0), gaussians([1, -2, 0], [1, 1, 5], 1)
        expected = (1 + 4) + (0 + 1 + 4)
        # Standard error of a mean 5/√50,000 = 0.02, twice the shift of it, and of the deviations.
        assert frechet_distance(one, other) == pytest.approx(expected, abs=0.15)
        assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other))

    def test_of_an_exact_shift_it_is_its_square(self) -> None:
        features = gaussians([0, 0], [1, 1], 0).astype(np.float64)
        assert frechet_distance(features, features + np.array([3, 4])) == pytest.approx(25)

    def test_a_rotation_counts_through_the_covariances(self) -> None:
        """Σ₁ = diag(4, 1) against the same turned by 90°: Tr is 10 - 2·Tr(Σ₁Σ₂)^½ = 10 - 8."""
        features = gaussians([0, 0], [2, 1], 0).astype(np.float64)
        features = (features - features.mean(axis=0)) @ np.linalg.inv(
            np.linalg.cholesky(np.cov(features, rowvar=False)).T
        )
        one, other = features * [2, 1], features * [1, 2]
        assert frechet_distance(one, other) == pytest.approx(10 - 2 * (2 + 2))

    def test_units_that_never_fire_do_no_harm(self) -> None:
        features = gaussians([0, 1, 2], [1, 2, 3], 0)
        silent = np.concatenate([features, np.zeros((NUM_ROWS, 4), "f4")], axis=1)
        other = np.concatenate([features + 1, np.zeros((NUM_ROWS, 4), "f4")], axis=1)
        assert frechet_distance(silent, other) == pytest.approx(3, rel=1e-5)

    def test_its_standard_error_is_that_of_repeated_experiments(self) -> None:
        size = 2000
        draws = [gaussians([i % 2, 0], [1, 1], i)[:size] for i in range(40)]
        distances = [
            frechet_distance(one, other) for one, other in zip(draws[::2], draws[1::2], strict=True)
        ]
        metric = frechet_metric("d", draws[0], draws[1], "tiny")
        # A deviation of 20 values is known to about a sixth; both of them are.
        assert metric.std_error == pytest.approx(np.std(distances, ddof=1), rel=0.6)
        assert metric.value == distances[0]
        assert "2,000 vs 2,000" in metric.protocol


class TestBalance:
    def test_an_even_draw_has_the_largest_entropy(self) -> None:
        entropy, smallest, largest = balance_metrics(np.arange(1000) % 10, 10, "tiny")
        assert entropy.value == pytest.approx(math.log(10))
        assert entropy.std_error == pytest.approx(0, abs=1e-6)
        assert (smallest.value, largest.value) == (0.1, 0.1)

    def test_a_class_that_is_never_drawn_has_share_zero(self) -> None:
        recognised = np.array([0] * 30 + [2] * 10)
        entropy, smallest, largest = balance_metrics(recognised, 3, "tiny")
        assert entropy.value == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
        # Delta method: the deviation of -ln p among the 40, over √40.
        surprise = -np.log(np.where(recognised == 0, 0.75, 0.25))
        assert entropy.std_error == pytest.approx(surprise.std() / math.sqrt(40))
        assert (smallest.value, largest.value) == (0, 0.75)

    def test_a_share_has_its_binomial_error(self) -> None:
        metric = share_metric("right", np.arange(400) < 100, "tiny")
        assert (metric.value, metric.num_images) == (0.25, 400)
        assert metric.std_error == pytest.approx(math.sqrt(0.25 * 0.75 / 400))


class TestAll:
    def test_test_images_as_samples_have_no_distance(
        self, frozen: tuple[Classifier, Images, Images]
    ) -> None:
        classifier, train, test = frozen
        metrics = {
            metric.name: metric
            for metric in quality_metrics(
                test.values, test.labels, classifier, train, test, "tiny-8-bit"
            )
        }
        name = f"frechet_lenet_{classifier.report.sha256[:8]}"
        assert list(metrics) == [
            *(name, f"{name}_of_train", "label_entropy", "smallest_class_share"),
            *("largest_class_share", "asked_label_share", "asked_label_share_of_test"),
        ]
        assert metrics[name].value == pytest.approx(0, abs=1e-6)
        assert metrics[f"{name}_of_train"].value > 0
        assert metrics["asked_label_share"].value == metrics["asked_label_share_of_test"].value
        assert metrics["asked_label_share"].value == pytest.approx(classifier.report.accuracy)

    def test_noise_is_far_and_without_labels_nothing_is_asked(
        self, frozen: tuple[Classifier, Images, Images]
    ) -> None:
        classifier, train, test = frozen
        noise = np.random.default_rng(0).random(test.values.shape, dtype=np.float32)
        metrics = quality_metrics(noise, None, classifier, train, test, "tiny-8-bit")
        distance, floor = metrics[:2]
        assert distance.value > 10 * floor.value
        assert not any(metric.name.startswith("asked") for metric in metrics)

    def test_swapped_labels_are_found_out(self, frozen: tuple[Classifier, Images, Images]) -> None:
        classifier, train, test = frozen
        asked = quality_metrics(
            test.values, (test.labels + 1) % 3, classifier, train, test, "tiny"
        )[5]
        assert asked.name == "asked_label_share"
        assert asked.value <= 1 - classifier.report.accuracy + 1e-9
