"""Nats, bits per dimension, binarization, and what JSON says of infinities."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from service.manifest import Image
from service.scoring import (
    Status,
    binarize,
    bits_per_dim,
    per_dim_maps,
    result_of,
    status_of,
)

IMAGE = Image(shape=(3, 2, 4), values="binary")


def grey(level: float, count: int = 2000) -> NDArray[np.float32]:
    return np.full((count, *IMAGE.shape), level, dtype=np.float32)


def test_a_uniform_binary_model_has_one_bit_per_dim() -> None:
    assert bits_per_dim(-24 * math.log(2), IMAGE) == pytest.approx(1, rel=1e-15)


def test_the_threshold_is_at_one_half() -> None:
    levels = np.array([0, 127 / 255, 0.5, 128 / 255, 1], dtype=np.float32)
    images = np.broadcast_to(levels[:, None, None, None], (5, *IMAGE.shape))
    binary = binarize(images, "threshold", seed=0)
    assert binary[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 1]
    assert binary.dtype == np.float32


@pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
def test_stochastic_binarization_is_on_with_the_grey_level_as_probability(level: float) -> None:
    binary = binarize(grey(level), "stochastic", seed=0)
    assert set(np.unique(binary)) == {0, 1}
    # Four standard errors of 48,000 coins.
    assert abs(binary.mean() - level) < 4 * math.sqrt(level * (1 - level) / binary.size)


def test_stochastic_binarization_leaves_black_and_white_alone() -> None:
    for level in (0.0, 1.0):
        np.testing.assert_array_equal(binarize(grey(level), "stochastic", 3), grey(level))


def test_stochastic_binarization_depends_on_seed_and_image_index_alone() -> None:
    many = binarize(grey(0.5, 5), "stochastic", seed=1)
    np.testing.assert_array_equal(binarize(grey(0.5, 2), "stochastic", seed=1), many[:2])
    assert not np.array_equal(many[0], many[1])
    assert not np.array_equal(binarize(grey(0.5, 5), "stochastic", seed=2), many)
    last = binarize(grey(0.5, 2), "stochastic", seed=1, first_index=3)
    np.testing.assert_array_equal(last, many[3:])


@pytest.mark.parametrize(
    ("log_prob", "status"),
    [
        (-1.5, "ok"),
        (0.0, "ok"),
        (3.0, "ok"),
        (-math.inf, "neg_inf"),
        (math.inf, "non_finite"),
        (math.nan, "non_finite"),
    ],
)
def test_a_result_has_a_number_or_a_reason_why_not(log_prob: float, status: Status) -> None:
    assert status_of(log_prob) == status
    result = result_of(4, log_prob, IMAGE)
    assert (result["index"], result["status"]) == (4, status)
    if status == "ok":
        assert result["log_prob"] == log_prob
        assert result["bits_per_dim"] == pytest.approx(-log_prob / (24 * math.log(2)), rel=1e-15)
    else:
        assert result["log_prob"] is result["bits_per_dim"] is None


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_are_surprise_with_channels_last(channels: int) -> None:
    conditional = -np.arange(2 * channels * 6, dtype=np.float32).reshape(2, channels, 2, 3)
    maps = per_dim_maps(conditional)
    assert maps.dtype == np.float64
    if channels == 1:
        np.testing.assert_array_equal(maps, -conditional[:, 0])
    else:
        assert maps.shape == (2, 2, 3, 3)
        assert maps[1, 0, 2, 1] == -conditional[1, 1, 0, 2]
