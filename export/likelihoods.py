"""What a decoder's outputs mean: p(image given latent), and the image to show for them."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from export.layers import bernoulli_log_prob


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
