"""From pixels to what a likelihood is taken of, and from nats to what clients read."""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.manifest import Image
from service.noise import Stream, draw

FloatArray = NDArray[np.float32]
Binarize = Literal["threshold", "stochastic"]
Status = Literal["ok", "neg_inf", "non_finite"]


def binarize(images: FloatArray, method: Binarize, seed: int, first_index: int = 0) -> FloatArray:
    """Turn grey levels into 0 and 1.

    Args:
        images: Shape (N, C, H, W), in [0, 1].
        method: At one half, or drawn with the grey level as probability.
        seed: Of the stochastic draws; image i takes those of (seed, first_index + i).
        first_index: Where these images begin among all that are meant.
    """
    if method == "threshold":
        return (images >= 0.5).astype(np.float32)
    indices = np.arange(first_index, first_index + len(images), dtype=np.uint64)
    seeds = np.full_like(indices, seed)
    uniforms = draw("uniform", seeds, indices, images.shape[1:], Stream.BINARIZATION)
    return (uniforms < images).astype(np.float32)


def log_mean_exp(log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log 1/K Σ_k w_k, (N, K) -> (N,): the importance-weighted bound.

    Source:
        Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2015, arXiv:1509.00519,
        equation 8.
    """
    return log_sum_exp(log_weights) - math.log(log_weights.shape[1])


def log_sum_exp(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log Σ_k exp(row_k), (N, K) -> (N,), without overflow; −∞ where all are."""
    largest = rows.max(axis=1)
    finite = np.where(np.isneginf(largest), 0.0, largest)
    with np.errstate(divide="ignore", invalid="ignore"):
        total: NDArray[np.float64] = finite + np.log(np.exp(rows - finite[:, None]).sum(axis=1))
    return total


def class_probs(log_prob: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return p(y given x) by Bayes' rule, for classes that are equally likely beforehand.

    Args:
        log_prob: log p(x given y) in nats, (N, K).

    Returns:
        Shape (N, K); NaN where a figure is NaN, or where x is impossible in every class.
    """
    exact = log_prob.astype(np.float64)
    with np.errstate(invalid="ignore"):
        probs: NDArray[np.float64] = np.exp(exact - log_sum_exp(exact)[:, None])
    return probs


def bits_per_dim(log_prob: float, image: Image) -> float:
    """Convert nats per image to bits per dimension: −log_prob / (num_dims · ln 2)."""
    return -log_prob / (image.num_dims * math.log(2))


def status_of(log_prob: float) -> Status:
    """Tell a likelihood of zero from one that could not be computed."""
    if math.isfinite(log_prob):
        return "ok"
    return "neg_inf" if log_prob == -math.inf else "non_finite"


def result_of(index: int, log_prob: float, image: Image) -> dict[str, Any]:
    """Describe the score of one image as the contract says; JSON has no infinity."""
    status = status_of(log_prob)
    is_ok = status == "ok"
    return {
        "index": index,
        "log_prob": log_prob if is_ok else None,
        "bits_per_dim": bits_per_dim(log_prob, image) if is_ok else None,
        "status": status,
    }


def per_dim_maps(conditional_log_prob: FloatArray) -> NDArray[np.float64]:
    """Turn log p(x_i given x_<i), (N, C, H, W), : surprise in nats, (N, H, W[, C])."""
    surprise = -conditional_log_prob.astype(np.float64)
    return surprise[:, 0] if surprise.shape[1] == 1 else surprise.transpose(0, 2, 3, 1)
