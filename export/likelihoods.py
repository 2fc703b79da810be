"""What a decoder's outputs mean: p(image given latent), and the image to show for them."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from export.layers import bernoulli_log_prob
from service.manifest import Values

_HALF_STEP = 0.5 / 255
_INITIAL_LOG_SCALE = -1.5
# A pixel that is always the same would drive its scale to 0, and its logarithm out of range; and
# a scale far above the range of pixels says nothing more.
_MIN_LOG_SCALE, _MAX_LOG_SCALE = -7.0, 2.0


class Likelihood(ABC):
    """A distribution of each pixel given the latent, pixels independent of each other.

    Attributes:
        num_outputs: Numbers that the decoder gives per pixel, P.
    """

    num_outputs: ClassVar[int]

    @abstractmethod
    def initial_outputs(self, mean: Tensor) -> Tensor:
        """Return outputs (P, ...) that suit mean pixels (...) in [0, 1]."""

    @abstractmethod
    def log_prob(self, values: Tensor, outputs: Tensor) -> Tensor:
        """Score each pixel in nats.

        Args:
            values: Shape (N, 1, D), in [0, 1].
            outputs: Shape (N, K, P, D).

        Returns:
            Shape (N, K, D).
        """

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Return the mean pixel in [0, 1], (N, P, ...) -> (N, ...)."""


class Bernoulli(Likelihood):
    """A pixel is 1 with probability σ(output); for binary images, and for no others.

    On greys the same formula is a cross-entropy and no log-likelihood.
    """

    num_outputs = 1

    def initial_outputs(self, mean: Tensor) -> Tensor:
        """Return the logit of the mean pixel."""
        return torch.logit(mean, eps=1e-4)[None]

    def log_prob(self, values: Tensor, outputs: Tensor) -> Tensor:
        """Score each pixel in nats."""
        return bernoulli_log_prob(values, outputs[:, :, 0])

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the probability of a 1."""
        return torch.sigmoid(outputs[:, 0])


class DiscretizedLogistic(Likelihood):
    """Rounds a logistic variable to the nearest of 256 levels; the tails belong to 0 and 255.

    P(x) = σ((x + ½·step - μ) / s) - σ((x - ½·step - μ) / s) with a step of 1/255; the decoder gives
    μ and log s of each pixel.

    Source:
        Salimans et al., "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
        Likelihood and Other Modifications", 2017, arXiv:1701.05517, equation 2 with one component.
    """

    num_outputs = 2

    def initial_outputs(self, mean: Tensor) -> Tensor:
        """Return the mean pixel, and a scale that reaches every level."""
        return torch.stack([mean, torch.full_like(mean, _INITIAL_LOG_SCALE)])

    def log_prob(self, values: Tensor, outputs: Tensor) -> Tensor:
        """Score each pixel in nats.

        σ(a) - σ(b) = σ(a) σ(-b) (1 - e^(b - a)), whose three factors have logarithms that neither
        cancel nor overflow.
        """
        centred = values - outputs[:, :, 0]
        log_scale = outputs[:, :, 1].clamp(_MIN_LOG_SCALE, _MAX_LOG_SCALE)
        inverse_scale = torch.exp(-log_scale)
        below = -functional.softplus(-inverse_scale * (centred + _HALF_STEP))  # log σ(a)
        above = -functional.softplus(inverse_scale * (centred - _HALF_STEP))  # log σ(-b)
        tanh = torch.tanh(_HALF_STEP * inverse_scale)  # 1 - e⁻²ᵗ = 2 tanh t / (1 + tanh t)
        between = below + above + torch.log(2 * tanh / (1 + tanh))
        at_most_0, at_least_255 = values < _HALF_STEP, values > 1 - _HALF_STEP
        return torch.where(at_most_0, below, torch.where(at_least_255, above, between))

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the mean of the logistic variable clipped to [0, 1], before it is rounded.

        E[clip(X)] = ∫₀¹ σ((μ - t) / s) dt = s·(softplus(μ / s) - softplus((μ - 1) / s)).
        """
        centre, log_scale = outputs[:, 0], outputs[:, 1].clamp(_MIN_LOG_SCALE, _MAX_LOG_SCALE)
        scale = torch.exp(log_scale)
        mean = scale * (
            functional.softplus(centre / scale) - functional.softplus((centre - 1) / scale)
        )
        return mean.clamp(0, 1)


LIKELIHOODS: dict[Values, type[Likelihood]] = {"binary": Bernoulli, "8-bit": DiscretizedLogistic}
