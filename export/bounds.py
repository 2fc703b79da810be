"""Measure a bound through its graph: the ELBO and the importance-weighted bound of test images."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.data import Images
from export.graph import Graph
from service.noise import draw_importance
from service.scoring import log_mean_exp

NUM_IMPORTANCE_SAMPLES = 1000

FloatArray = NDArray[np.float64]

# Decodings per run: enough to keep a core busy, few enough to stay in its cache.
_ROWS, _SAMPLES = 4, 250


def log_weights(
    graph: Graph, images: Images, num_samples: int, labels: NDArray[np.int64] | None = None
) -> Iterator[FloatArray]:
    """Draw log w of importance samples, by the noise that the service draws for seed 0.

    Args:
        graph: The log_prob graph of a bound.
        images: What to score; image i takes the noise of index i.
        num_samples: K.
        labels: Classes to score given, (N,); by default each image's own.

    Yields:
        In nats, shape (n, K), for a few images at a time.
    """
    latent_dim: int = graph.inputs["noise"][2]
    for start in range(0, len(images), _ROWS):
        rows = images[start : start + _ROWS]
        indices = np.arange(start, start + len(rows), dtype=np.uint64)
        given = rows.labels if labels is None else labels[start : start + _ROWS]
        inputs: dict[str, NDArray[Any]] = {"image": rows.values, "label": given}
        parts = []
        for first in range(0, num_samples, _SAMPLES):
            count = min(_SAMPLES, num_samples - first)
            firsts = np.full_like(indices, first)
            inputs["noise"] = draw_importance(indices * 0, indices, firsts, count, latent_dim)
            parts.append(graph({name: inputs[name] for name in graph.inputs})["log_weight"])
        yield np.concatenate(parts, axis=1).astype(np.float64)


def both_bounds(graph: Graph, images: Images, num_samples: int) -> tuple[FloatArray, FloatArray]:
    """Bound the log-likelihood of test images, in nats.

    Returns:
        The ELBO, estimated by the mean of K draws, and the bound of K samples; shape (N,) each.
    """
    bounds = [
        (weights.mean(axis=1), log_mean_exp(weights))
        for weights in log_weights(graph, images, num_samples)
    ]
    elbo, iwae = (np.concatenate(parts) for parts in zip(*bounds, strict=True))
    return elbo, iwae


def predicted_classes(
    graph: Graph, images: Images, num_classes: int, num_samples: int
) -> NDArray[np.int64]:
    """Classify by Bayes' rule with equally likely classes: the label under which x is likeliest.

    Args:
        graph: The log_prob graph of a class-conditional bound.
        images: What to classify.
        num_classes: Number of classes.
        num_samples: K of the bound.

    Returns:
        Shape (N,).
    """
    scores = np.empty((len(images), num_classes))
    for number in range(num_classes):
        labels = np.full(len(images), number, dtype=np.int64)
        parts = [log_mean_exp(w) for w in log_weights(graph, images, num_samples, labels)]
        scores[:, number] = np.concatenate(parts)
    predicted: NDArray[np.int64] = scores.argmax(axis=1)
    return predicted


def protocol_of_samples(protocol: str, num_samples: int) -> str:
    """Name a protocol together with the K of the bound, without which no figure means much."""
    return f"{protocol}, K = {num_samples:,}"
