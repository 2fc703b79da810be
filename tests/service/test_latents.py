"""Paths keep their ends exactly, stay where the prior lives, and never give NaN."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from service.errors import InvalidRequestError
from service.latents import (
    Method,
    lerp,
    path_through,
    slerp,
    spherical_lerp,
    square_between,
)

METHODS: tuple[Method, ...] = ("slerp", "lerp", "spherical-lerp")
DIM = 64


def anchors(count: int, dim: int = DIM) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)


def test_slerp_keeps_the_norm_of_latents_of_equal_norm() -> None:
    start, end = anchors(2)
    end *= np.linalg.norm(start) / np.linalg.norm(end)
    norms = np.linalg.norm(slerp(start, end, 33).astype(np.float64), axis=1)
    # Rounding of 64 coordinates to single precision.
    np.testing.assert_allclose(norms, np.linalg.norm(start), rtol=1e-6)


def test_slerp_walks_at_constant_angular_speed() -> None:
    start, end = anchors(2)
    path = slerp(start, end, 9).astype(np.float64)
    units = path / np.linalg.norm(path, axis=1, keepdims=True)
    end_unit = end / np.linalg.norm(end) * np.linalg.norm(start)
    sphere = slerp(start, end_unit.astype(np.float32), 9).astype(np.float64)
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    angles = np.arccos((sphere[:-1] * sphere[1:]).sum(axis=1))
    # arccos loses half the digits of single precision near angle 0.
    np.testing.assert_allclose(angles, angles[0], rtol=1e-4)
    # With two norms the point still lies on the plane of both anchors.
    basis, _ = np.linalg.qr(np.stack([start, end], axis=1).astype(np.float64))
    np.testing.assert_allclose(units @ basis @ basis.T, units, atol=1e-6)


def test_slerp_of_a_right_angle_meets_the_diagonal() -> None:
    start, end = np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(slerp(start, end, 3)[1], [np.sqrt(0.5)] * 2, rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_steps", [2, 3, 8])
def test_anchors_are_met_exactly(method: Method, num_steps: int) -> None:
    stops = anchors(4)
    path = path_through(stops, num_steps, method)
    np.testing.assert_array_equal(path[:: num_steps - 1], stops)
    assert path.dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("count", "num_steps"), [(2, 2), (2, 8), (3, 2), (5, 4)])
def test_a_path_has_the_promised_number_of_frames(
    method: Method, count: int, num_steps: int
) -> None:
    stops = anchors(count)
    assert len(path_through(stops, num_steps, method)) == (count - 1) * (num_steps - 1) + 1
    assert len(path_through(stops, num_steps, method, loop=True)) == count * (num_steps - 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_goes_back_without_repeating_its_start(method: Method) -> None:
    stops = anchors(3)
    open_path = path_through(stops, 5, method)
    closed = path_through(stops, 5, method, loop=True)
    back = path_through(stops[[2, 0]], 5, method)
    np.testing.assert_array_equal(closed[: len(open_path)], open_path)
    np.testing.assert_array_equal(closed[len(open_path) - 1 :], back[:-1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-6])
def test_parallel_latents_give_a_path_without_nan(method: Method, factor: float) -> None:
    start = anchors(1)[0]
    path = path_through(np.stack([start, start * np.float32(factor)]), 5, method)
    assert np.isfinite(path).all()


def test_parallel_latents_give_a_straight_line_by_slerp() -> None:
    start = anchors(1)[0]
    np.testing.assert_array_equal(slerp(start, 2 * start, 5), lerp(start, 2 * start, 5))


def test_nearly_parallel_latents_join_the_great_circle_without_a_jump() -> None:
    """On both sides of the angle below which slerp turns into a straight line."""
    for angle in (0.5e-4, 2e-4):
        start = np.array([1, 0], dtype=np.float32)
        end = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
        expected = np.linspace(0, angle, 5)
        # Arc and chord differ by angle³ / 24.
        np.testing.assert_allclose(slerp(start, end, 5)[:, 1], expected, rtol=1e-6)


def test_slerp_between_antipodal_latents_is_refused() -> None:
    start = anchors(1)[0]
    with pytest.raises(InvalidRequestError, match="antipodal"):
        slerp(start, -start, 5)


def test_slerp_from_or_to_zero_is_refused() -> None:
    start = anchors(1)[0]
    for pair in [(start, 0 * start), (0 * start, start)]:
        with pytest.raises(InvalidRequestError, match="not zero"):
            slerp(*pair, 5)


@pytest.mark.parametrize("method", ["lerp", "spherical-lerp"])
def test_straight_methods_pass_through_zero_without_nan(method: Method) -> None:
    start = anchors(1)[0]
    path = path_through(np.stack([start, -start, 0 * start]), 5, method)
    assert np.isfinite(path).all()


def test_lerp_is_the_straight_line() -> None:
    start, end = anchors(2)
    path = lerp(start, end, 5)
    np.testing.assert_allclose(np.diff(path, axis=0), np.tile((end - start) / 4, (4, 1)), atol=1e-6)


def test_spherical_lerp_keeps_the_standard_normal_distribution() -> None:
    """Ends drawn independently from N(0, I) give N(0, I) at every point; by lerp they do not."""
    ends = anchors(2, 100_000)
    middle = spherical_lerp(ends[0], ends[1], 5)
    for point in middle:
        # Seeded; a true draw passes 999 times of 1000.
        assert stats.kstest(point, "norm").pvalue > 1e-3
    assert stats.kstest(lerp(ends[0], ends[1], 5)[2], "norm").pvalue < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_the_sides_of_a_square_are_paths_and_its_corners_the_anchors(method: Method) -> None:
    corners = anchors(4)
    square = square_between(corners, 5, 3, method).reshape(5, 3, DIM)
    np.testing.assert_array_equal(square[[0, 0, -1, -1], [0, -1, 0, -1]], corners)
    for line, (start, end) in (
        (square[0], (0, 1)),
        (square[-1], (2, 3)),
        (square[:, 0], (0, 2)),
        (square[:, -1], (1, 3)),
    ):
        path = path_through(corners[[start, end]], len(line), method)
        np.testing.assert_array_equal(line, path)


def test_the_middle_of_a_square_lies_where_the_prior_does() -> None:
    corners = anchors(4)
    middle = square_between(corners, 3, 3, "slerp").reshape(3, 3, DIM)[1, 1]
    norms = np.linalg.norm(corners, axis=1)
    assert norms.min() * 0.95 < np.linalg.norm(middle) < norms.max() * 1.05
    centre = square_between(corners, 3, 3, "lerp").reshape(3, 3, DIM)[1, 1]
    np.testing.assert_allclose(centre, corners.mean(axis=0), rtol=1e-5, atol=1e-6)
