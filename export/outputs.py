"""What a network's last layer says of pixels: one logit per binary value, or one per grey level."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.layers import (
    ROW_MULTIPLE,
    bernoulli_log_prob,
    cut_rows,
    mean_pixel_logits,
    pad_rows,
    score_binary,
    thresholds,
)
from service.manifest import Image

# A level that does not exist has this logit: e⁻¹⁰⁰⁰⁰ is 0, and 0 · it is no NaN.
_NO_LEVEL = -1e4


class BinaryPixels(nn.Module):
    """p(x = 1) = σ(score + b), with a bias b for every place in the image.

    With scores of 0 this is the independent model: each pixel as bright as on average.

    Args:
        image: The images, C×H×W.
    """

    num_scores = 1  # per value

    def __init__(self, image: Image) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(image.num_dims))  # biases have one axis: no decay
        self.shape = image.shape

    def initialize(self, images: Tensor) -> None:
        """Set the biases to the logits of the mean image of (N, C, H, W), uint8."""
        with torch.no_grad():
            self.bias.copy_(mean_pixel_logits(images))

    def values(self, images: Tensor) -> Tensor:
        """Return what the network sees, (N, C, H, W) -> (C, H, W, N)."""
        return images.permute(1, 2, 3, 0)

    def log_prob(self, scores: Tensor, values: Tensor) -> Tensor:
        """Return log p(x) of each value in nats; all of (C, H, W, N)."""
        logits = scores.reshape(values.shape) + self.bias.reshape(*self.shape, 1)
        return bernoulli_log_prob(values, logits)

    def limits(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Prepare a draw: a value is 1 where its score lies above its limit.

        Returns:
            Shape (H, W, C, 1, N).
        """
        shifted = thresholds(noise, temperature, known, known_mask) - self.bias
        return shifted.t().reshape(*self.shape, 1, -1).permute(1, 2, 0, 3, 4)

    def draw(self, scores: Tensor, limits: Tensor, channel: int) -> Tensor:
        """Draw values, (1, N) and (1, N) -> (1, N)."""
        return (limits < scores).to(scores.dtype)

    def row_terms(self, scores: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """Reduce the scores of one row in a graph to what `score` needs, (C, W·N) each."""
        return (scores + 0,)

    def score(self, values: Tensor, terms: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Score images in a graph, with the same bits in every batch.

        Args:
            values: Shape (N, D).
            terms: What `row_terms` gave, shape (N, D) each.

        Returns:
            log p(x) in nats, shape (N,), and that of each value, shape (N, D).
        """
        return score_binary(values, terms[0] + self.bias)


class GreyLevels(nn.Module):
    """p(x = k / (K - 1)) = softmax(scores + b)_k, one distribution over K levels per channel.

    With scores of 0 every value is distributed like all values of its channel.

    Args:
        image: The images, C×H×W.
        num_levels: K.
    """

    def __init__(self, image: Image, num_levels: int) -> None:
        super().__init__()
        self.num_scores = num_levels
        self.bias = nn.Parameter(torch.zeros(image.shape[0] * num_levels))
        self.shape = image.shape

    def initialize(self, images: Tensor) -> None:
        """Set the biases to the logarithms of the levels' shares in (N, C, H, W), uint8."""
        levels = (images.float() / 255 * (self.num_scores - 1)).round().long()
        counts = torch.stack(
            [
                torch.bincount(channel.flatten(), minlength=self.num_scores)
                for channel in levels.transpose(0, 1)
            ]
        )
        smoothed = counts.float() + 1
        with torch.no_grad():
            self.bias.copy_((smoothed / smoothed.sum(dim=1, keepdim=True)).log().flatten())

    def levels(self, images: Tensor) -> Tensor:
        """Number the nearest of the K levels of values in [0, 1]."""
        return torch.round(images * (self.num_scores - 1))

    def values(self, images: Tensor) -> Tensor:
        """Return what the network sees, the nearest level, (N, C, H, W) -> (C, H, W, N)."""
        return self.levels(images).permute(1, 2, 3, 0) / (self.num_scores - 1)

    def log_prob(self, scores: Tensor, values: Tensor) -> Tensor:
        """Return log p(x) of each value in nats, (C·K, H, W, N) and (C, H, W, N) -> the latter."""
        flat = scores.flatten(1) + self.bias[:, None]
        logits = torch.unflatten(flat, 0, (-1, self.num_scores))
        targets = self.levels(values).long().flatten(1)
        loss = functional.cross_entropy(logits, targets, reduction="none")
        return -loss.reshape(values.shape)

    def limits(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Prepare a draw: for each value its uniform, 1 / temperature, known level or -1.

        Returns:
            Shape (H, W, C, 3, N).
        """
        sharpness = (1 / temperature)[:, None, None, None].expand_as(noise)
        fixed = torch.where(known_mask > 0.5, self.levels(known), -1.0)
        return torch.stack([noise, sharpness, fixed], dim=3).permute(2, 4, 1, 3, 0)

    def draw(self, scores: Tensor, limits: Tensor, channel: int) -> Tensor:
        """Draw values by the inverse of the cumulative distribution, (K, N), (3, N) -> (1, N).

        The level is the number of cumulative weights that do not reach beyond u times their
        total; none of the sums has to be normalized.
        """
        uniform, sharpness, fixed = torch.split(limits, 1)
        weights = self._weights((scores + self._bias(channel)) * sharpness)
        reach = torch.cumsum(weights, dim=0)
        total = reach[-1:]
        passed = (reach <= uniform * total).to(scores.dtype).sum(dim=0, keepdim=True)
        drawn = torch.clamp(passed, max=self.num_scores - 1)
        return torch.where(fixed < 0, drawn, fixed) / (self.num_scores - 1)

    def row_terms(self, scores: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """Reduce the scores of one row, (C·K, W·N), to two terms of (C, W·N).

        They are the weight of all levels, Σ exp(l - max l), and the logit l - max l of the one
        that is there.
        """
        numbers = torch.arange(self.num_scores, dtype=scores.dtype)[:, None]
        totals, chosen = [], []
        for channel, rows in enumerate(torch.split(scores, self.num_scores)):
            logits = rows + self._bias(channel)
            top = logits.amax(dim=0, keepdim=True)
            there = (numbers == self.levels(values[channel : channel + 1])).to(scores.dtype)
            totals.append(_column_sums(self._weights(logits)))
            chosen.append(_column_sums((logits - top) * there))
        return torch.cat(totals), torch.cat(chosen)

    def score(self, values: Tensor, terms: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Score images in a graph; see `BinaryPixels.score`."""
        totals, chosen = terms
        conditionals = pad_rows(chosen, 0.0) - torch.log(pad_rows(totals, 1.0))
        return conditionals.sum(dim=1), cut_rows(conditionals, values)

    def _bias(self, channel: int) -> Tensor:
        return torch.split(self.bias, self.num_scores)[channel][:, None]

    def _weights(self, logits: Tensor) -> Tensor:
        """Return exp(l - max l), with rows of zeros up to a multiple of 16."""
        shifted = logits - logits.amax(dim=0, keepdim=True)
        missing = -self.num_scores % ROW_MULTIPLE
        if missing:
            shifted = functional.pad(shifted, (0, 0, 0, missing), value=_NO_LEVEL)
        return torch.exp(shifted)


def _column_sums(columns: Tensor) -> Tensor:
    """Sum over axis 0 by a product with ones, whose bits do not depend on the other columns."""
    return torch.ones(1, columns.shape[0], dtype=columns.dtype) @ columns
