"""Paths and squares through latent space."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequestError

FloatArray = NDArray[np.float32]
Method = Literal["slerp", "lerp", "spherical-lerp"]

# Below this angle (or this close to a straight angle) sine is too small to divide by.
_SMALL_ANGLE = 1e-4


def slerp(start: FloatArray, end: FloatArray, num_steps: int) -> FloatArray:
    """Walk along the great circle from one latent to another.

    A straight line between two draws of a Gaussian prior passes through norms that the prior
    almost never yields; a great circle stays in the shell that holds its mass.

    Args:
        start: First latent, shape (D,).
        end: Last latent, shape (D,).
        num_steps: Number of points, both ends included; at least 2.

    Returns:
        The path, shape (num_steps, D). Parallel latents give a straight line.

    Raises:
        InvalidRequestError: A latent is zero, or the two are antipodal.

    Source:
        White, "Sampling Generative Networks", 2016, arXiv:1609.04468.
    """
    a, b = start.astype(np.float64), end.astype(np.float64)
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if min(norms) == 0:
        raise InvalidRequestError.of_field(
            "anchors", "slerp needs latents that are not zero; use method lerp"
        )
    angle = _angle(a / norms[0], b / norms[1])
    if angle < _SMALL_ANGLE:
        return lerp(start, end, num_steps)
    if angle > np.pi - _SMALL_ANGLE:
        raise InvalidRequestError.of_field(
            "anchors", "antipodal latents have no single great circle; use lerp or a third anchor"
        )
    t = np.linspace(0, 1, num_steps)[:, None]
    path = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return _with_exact_ends(path, start, end)


def lerp(start: FloatArray, end: FloatArray, num_steps: int) -> FloatArray:
    """Walk along the straight line from one latent to another; arguments as of `slerp`."""
    t = np.linspace(0, 1, num_steps)[:, None]
    return _with_exact_ends((1 - t) * start + t * end, start, end)


def spherical_lerp(start: FloatArray, end: FloatArray, num_steps: int) -> FloatArray:
    """Walk along the straight line divided by √((1-t)² + t²); arguments as of `slerp`.

    If both ends are independent draws of N(0, I), so is every point of this path.
    """
    t = np.linspace(0, 1, num_steps)[:, None]
    path = ((1 - t) * start + t * end) / np.sqrt((1 - t) ** 2 + t**2)
    return _with_exact_ends(path, start, end)


_SEGMENTS: dict[Method, Callable[[FloatArray, FloatArray, int], FloatArray]] = {
    "slerp": slerp,
    "lerp": lerp,
    "spherical-lerp": spherical_lerp,
}


def path_through(
    anchors: FloatArray, num_steps: int, method: Method, *, loop: bool = False
) -> FloatArray:
    """Walk from anchor to anchor.

    Args:
        anchors: Shape (K, D), K at least 2.
        num_steps: Points per segment, both ends included; at least 2.
        method: How to walk a segment.
        loop: Walk back from the last anchor to the first, without repeating it.

    Returns:
        Shape ((K - 1)·(num_steps - 1) + 1, D), or (K·(num_steps - 1), D) for a loop.

    Raises:
        InvalidRequestError: The method cannot join two neighbouring anchors.
    """
    segment = _SEGMENTS[method]
    stops = [*anchors, anchors[0]] if loop else list(anchors)
    legs = [segment(start, end, num_steps)[:-1] for start, end in pairwise(stops)]
    path = np.concatenate(legs if loop else [*legs, anchors[-1:]])
    return path.astype(np.float32)


def square_between(
    anchors: FloatArray, num_rows: int, num_columns: int, method: Method
) -> FloatArray:
    """Fill the square between four latents: down both sides first, then from side to side.

    Args:
        anchors: Top left, top right, bottom left, bottom right; shape (4, D).
        num_rows: At least 2.
        num_columns: At least 2.
        method: How to walk down and across.

    Returns:
        Row by row, shape (num_rows · num_columns, D); its corners are exactly the anchors.

    Raises:
        InvalidRequestError: The method cannot join two of the latents.
    """
    segment = _SEGMENTS[method]
    top_left, top_right, bottom_left, bottom_right = anchors
    left = segment(top_left, bottom_left, num_rows)
    right = segment(top_right, bottom_right, num_rows)
    rows = [segment(start, end, num_columns) for start, end in zip(left, right, strict=True)]
    return np.concatenate(rows).astype(np.float32)


def _angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # Precise for small and for nearly straight angles, where arccos of the product is not.
    return float(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))


def _with_exact_ends(path: NDArray[np.float64], start: FloatArray, end: FloatArray) -> FloatArray:
    exact = path.astype(np.float32)
    exact[0], exact[-1] = start, end
    return exact
