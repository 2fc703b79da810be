"""Bounds on log p(x): importance samples as rows of the batcher, and what they add up to.

A row is an image with at most 32 samples. So a request for thousands of samples fills no more
memory than any other batch, and others pass between its rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.batcher import Rows, Stop
from service.graph import INDEX, LABEL, SEED, Graph
from service.manifest import Manifest, Role
from service.noise import draw_importance
from service.scoring import log_sum_exp

SAMPLES_PER_ROW = 32

FIRST_SAMPLE, NUM_SAMPLES = "first_sample", "num_samples"

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


class BoundGraph(Graph):
    """A log_prob graph that is given noise; its rows name their samples instead of carrying them.

    Results are `log_sum` and `log_sum_square`, the logarithms of Σw and Σw² over a row's samples.
    """

    def run(self, parts: Sequence[Rows], stop: Stop | None = None) -> dict[str, NDArray[Any]]:
        """Run the rows of several calls, those with equally many samples at once."""
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        counts = rows[NUM_SAMPLES]
        log_sums = np.empty((2, len(counts)))
        for count in np.unique(counts).tolist():
            chosen = counts == count
            same = {name: array[chosen] for name, array in rows.items()}
            (latent_dim,) = self.manifest.noise.shape
            noise = draw_importance(same[SEED], same[INDEX], same[FIRST_SAMPLE], count, latent_dim)
            inputs = {name: same[name] for name in self.session.inputs if name != "noise"}
            outputs = self.session.run(inputs | {"noise": noise}, stop)
            log_weight = outputs["log_weight"].astype(np.float64)
            log_sums[:, chosen] = log_sum_exp(log_weight), log_sum_exp(2 * log_weight)
        return {"log_sum": log_sums[0], "log_sum_square": log_sums[1]}


def graph_class(role: Role, manifest: Manifest) -> type[Graph]:
    """Choose what runs a graph: a bound's log_prob is given noise, all others are what they are."""
    return BoundGraph if role == "log_prob" and manifest.density == "bound" else Graph


def rows_per_image(num_samples: int) -> int:
    """Return into how many rows the samples of an image are split."""
    return -(-num_samples // SAMPLES_PER_ROW)


def sample_rows(
    images: FloatArray, seed: int, num_samples: int, labels: IntArray | None = None
) -> dict[str, NDArray[Any]]:
    """Make the rows of a bound: image i takes samples 0 to K - 1 of (seed, i).

    Args:
        images: Shape (N, C, H, W).
        seed: Of the samples.
        num_samples: K.
        labels: The class of each image, (N,), where the model is conditional.

    Returns:
        N · `rows_per_image(K)` rows, those of an image next to each other.
    """
    num_images, num_rows = len(images), rows_per_image(num_samples)
    edges = np.arange(num_rows + 1) * num_samples // num_rows
    rows: dict[str, NDArray[Any]] = {
        "image": np.repeat(images, num_rows, axis=0),
        SEED: np.full(num_images * num_rows, seed, dtype=np.uint64),
        INDEX: np.repeat(np.arange(num_images, dtype=np.uint64), num_rows),
        FIRST_SAMPLE: np.tile(edges[:-1].astype(np.uint64), num_images),
        NUM_SAMPLES: np.tile(np.diff(edges), num_images),
    }
    if labels is not None:
        rows[LABEL] = np.repeat(labels, num_rows)
    return rows


def combine(outputs: Rows, num_images: int, num_samples: int) -> dict[str, NDArray[np.float64]]:
    """Join the rows of each image.

    Args:
        outputs: Results of the rows that `sample_rows` made.
        num_images: N.
        num_samples: K.

    Returns:
        `log_prob`, log 1/K Σw in nats, (N,), and its `std_error` (N,): the standard deviation of
        that figure over other draws of K samples, to first order sd(w) / (√K · mean(w)); NaN for
        K = 1, which shows no spread.
    """
    log_sum = log_sum_exp(outputs["log_sum"].reshape(num_images, -1))
    log_sum_square = log_sum_exp(outputs["log_sum_square"].reshape(num_images, -1))
    log_prob = log_sum - math.log(num_samples)
    if num_samples == 1:
        return {"log_prob": log_prob, "std_error": np.full(num_images, np.nan)}
    with np.errstate(invalid="ignore"):
        share = np.exp(log_sum_square - 2 * log_sum)  # Σw² / (Σw)², from 1/K to 1
    variance = (num_samples * share - 1) / (num_samples - 1)
    return {"log_prob": log_prob, "std_error": np.sqrt(np.maximum(variance, 0))}
