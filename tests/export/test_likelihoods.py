"""Distributions of pixels: normalized, stable, and shown by their mean."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from export.likelihoods import Bernoulli, DiscretizedLogistic

LEVELS = torch.arange(256).double() / 255


def outputs_of(centre: float, log_scale: float) -> Tensor:
    """Return what a decoder would give for one pixel, (N, K, P, D) of one each."""
    return torch.tensor([centre, log_scale], dtype=torch.float64).reshape(1, 1, 2, 1)


def log_probs(centre: float, log_scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    outputs = outputs_of(centre, log_scale).expand(256, 1, 2, 1).to(dtype)
    return DiscretizedLogistic().log_prob(LEVELS.reshape(256, 1, 1).to(dtype), outputs).flatten()


PIXELS = [(0.5, -1.5), (0.0, -3.0), (1.0, -5.0), (0.31, -7.0), (-0.4, 0.0), (1.7, -2.0), (0.5, 2.0)]


@pytest.mark.parametrize(("centre", "log_scale"), PIXELS)
def test_the_levels_of_a_discretized_logistic_share_one(centre: float, log_scale: float) -> None:
    assert log_probs(centre, log_scale).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("centre", "log_scale"), PIXELS)
def test_a_level_has_the_probability_of_its_interval(centre: float, log_scale: float) -> None:
    edges = (torch.arange(1, 256).double() - 0.5) / 255
    below = torch.sigmoid((edges - centre) / math.exp(log_scale))
    expected = torch.diff(below, prepend=torch.zeros(1), append=torch.ones(1))
    kept = expected > 1e-9  # the difference that the formula avoids cancels beyond
    torch.testing.assert_close(
        log_probs(centre, log_scale)[kept].exp(), expected[kept], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("centre", "log_scale"), PIXELS)
def test_single_precision_stays_finite_and_near(centre: float, log_scale: float) -> None:
    single = log_probs(centre, log_scale, torch.float32)
    assert torch.isfinite(single).all()
    torch.testing.assert_close(single.double(), log_probs(centre, log_scale), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("centre", "log_scale"), PIXELS)
def test_the_image_shown_is_the_mean(centre: float, log_scale: float) -> None:
    shown = DiscretizedLogistic().mean(outputs_of(centre, log_scale)[0])
    mean = (log_probs(centre, log_scale).exp() * LEVELS).sum()
    # Shown before it is rounded: less than half a level from the mean of the levels.
    assert shown.item() == pytest.approx(mean.item(), abs=0.5 / 255)


def test_scales_out_of_range_are_clamped() -> None:
    for wanted, used in ((-50.0, -7.0), (50.0, 2.0)):
        np.testing.assert_array_equal(log_probs(0.4, wanted), log_probs(0.4, used))


def test_a_bernoulli_pixel_is_its_probability() -> None:
    logits = torch.tensor([-3.0, 0.0, 2.0]).reshape(1, 1, 1, 3)
    probs = Bernoulli().mean(logits[0])
    ones = Bernoulli().log_prob(torch.ones(1, 1, 3), logits).exp()
    zeros = Bernoulli().log_prob(torch.zeros(1, 1, 3), logits).exp()
    torch.testing.assert_close(ones.flatten(), probs.flatten())
    torch.testing.assert_close(ones + zeros, torch.ones(1, 1, 3))


@pytest.mark.parametrize("likelihood", [Bernoulli(), DiscretizedLogistic()])
def test_the_first_outputs_show_the_mean_image(likelihood: Bernoulli | DiscretizedLogistic) -> None:
    mean = torch.linspace(0.2, 0.8, 5)
    outputs = likelihood.initial_outputs(mean)
    # A logistic as wide as the first one loses a little at the ends of the range.
    torch.testing.assert_close(likelihood.mean(outputs[None])[0], mean, atol=0.1, rtol=0)
