"""Bounds on log p(x): importance samples as rows of the batcher, and what they add up to.

A row is an image with at most 32 samples. So a request for thousands of samples fills no more
memory than any other batch, and others pass between its rows.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.batcher import Rows, Stop
from service.graph import INDEX, LABEL, SEED, Graph, as_numbers
from service.images import ImageArray
from service.manifest import Manifest, Role
from service.noise import draw_importance
from service.scoring import log_sum_exp

SAMPLES_PER_ROW = 32

FIRST_SAMPLE, NUM_SAMPLES = "first_sample", "num_samples"

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


class BoundGraph(Graph):
    """A log_prob graph that is given noise; its rows name their samples instead of carrying them.

    Rows may carry their noise all the same, padded to the samples of the longest; see
    `given_rows`. Results are `log_sum` and `log_sum_square`, the logarithms of Σw and Σw² over a
    row's samples, and each `log_weight`, padded to `SAMPLES_PER_ROW`.
    """

    def run(self, parts: Sequence[Rows], stop: Stop | None = None) -> dict[str, NDArray[Any]]:
        """Run the rows of several calls, those with equally many samples at once."""
        names = [NUM_SAMPLES, *(name for name in self.session.inputs if name != "noise")]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in names}
        counts = rows.pop(NUM_SAMPLES)
        log_sums = np.empty((2, len(counts)))
        log_weights = np.full((len(counts), SAMPLES_PER_ROW), -np.inf, dtype=np.float32)
        for count in np.unique(counts).tolist():
            chosen = counts == count
            inputs = {name: as_numbers(array[chosen]) for name, array in rows.items()}
            inputs["noise"] = self._noise(parts, count)
            log_weight = self.session.run(inputs, stop)["log_weight"]
            log_weights[chosen, :count] = log_weight
            wide = log_weight.astype(np.float64)
            log_sums[:, chosen] = log_sum_exp(wide), log_sum_exp(2 * wide)
        return {
            "log_sum": log_sums[0],
            "log_sum_square": log_sums[1],
            "log_weight": log_weights,
        }

    def _noise(self, parts: Sequence[Rows], count: int) -> FloatArray:
        """Return the noise of all rows with `count` samples, drawn at once where none is given."""
        wanted = [part for part in parts if (part[NUM_SAMPLES] == count).any()]
        if len(wanted) > 1 and any("noise" in part for part in wanted):
            return np.concatenate([self._noise([part], count) for part in wanted])
        chosen = np.concatenate([part[NUM_SAMPLES] for part in wanted]) == count
        if "noise" in wanted[0]:
            given: FloatArray = wanted[0]["noise"][chosen, :count]
            return given
        seeds, indices, firsts = (
            np.concatenate([part[name] for part in wanted])[chosen]
            for name in (SEED, INDEX, FIRST_SAMPLE)
        )
        (latent_dim,) = self.manifest.noise.shape
        return draw_importance(seeds, indices, firsts, count, latent_dim)


def graph_class(role: Role, manifest: Manifest) -> type[Graph]:
    """Choose what runs a graph: a bound's log_prob is given noise, all others are what they are."""
    return BoundGraph if role == "log_prob" and manifest.density == "bound" else Graph


def rows_per_image(num_samples: int) -> int:
    """Return into how many rows the samples of an image are split."""
    return -(-num_samples // SAMPLES_PER_ROW)


def sample_rows(
    images: ImageArray, seed: int, num_samples: int, labels: IntArray | None = None
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
    return _image_rows(images, num_samples, labels) | {
        SEED: np.full(num_images * num_rows, seed, dtype=np.uint64),
        INDEX: np.repeat(np.arange(num_images, dtype=np.uint64), num_rows),
        FIRST_SAMPLE: np.tile(_edges(num_samples)[:-1].astype(np.uint64), num_images),
    }


def given_rows(
    images: ImageArray, noise: FloatArray, labels: IntArray | None = None
) -> dict[str, NDArray[Any]]:
    """Make the rows of a bound whose noise the caller has drawn.

    Args:
        images: Shape (N, C, H, W).
        noise: Of the samples of each image, (N, K, D).
        labels: The class of each image, (N,), where the model is conditional.

    Returns:
        N · `rows_per_image(K)` rows, those of an image next to each other.
    """
    num_images, num_samples, latent_dim = noise.shape
    edges = _edges(num_samples)
    width = int(np.diff(edges).max())
    chunks = np.zeros((num_images, len(edges) - 1, width, latent_dim), dtype=np.float32)
    for row, (start, stop) in enumerate(pairwise(edges.tolist())):
        chunks[:, row, : stop - start] = noise[:, start:stop]
    rows = _image_rows(images, num_samples, labels)
    return rows | {"noise": chunks.reshape(-1, width, latent_dim)}


def _edges(num_samples: int) -> IntArray:
    # Where the rows of an image begin and end among its samples, as even as can be.
    num_rows = rows_per_image(num_samples)
    return np.arange(num_rows + 1) * num_samples // num_rows


def _image_rows(
    images: ImageArray, num_samples: int, labels: IntArray | None
) -> dict[str, NDArray[Any]]:
    num_rows = rows_per_image(num_samples)
    rows: dict[str, NDArray[Any]] = {
        "image": np.repeat(images, num_rows, axis=0),
        NUM_SAMPLES: np.tile(np.diff(_edges(num_samples)), len(images)),
    }
    if labels is not None:
        rows[LABEL] = np.repeat(labels, num_rows)
    return rows


def join_weights(outputs: Rows, num_images: int, num_samples: int) -> FloatArray:
    """Join the weights of each image's rows, in nats, (N, K); arguments as of `combine`."""
    counts = np.tile(np.diff(_edges(num_samples)), num_images)
    is_sample = np.arange(SAMPLES_PER_ROW) < counts[:, None]
    joined: FloatArray = outputs["log_weight"][is_sample].reshape(num_images, num_samples)
    return joined


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
