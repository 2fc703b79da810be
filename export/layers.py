"""What families share: scans that export, thresholds of binary sampling, exact sums over pixels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as _scan
from torch.nn import functional

# ONNX Runtime's ReduceSum gives a row the same bits in every batch only where the reduced axis is
# a multiple of this many floats.
_SUM_MULTIPLE = 16


def scan(step: Callable[..., Any], carry: Any, slices: Any) -> tuple[Any, Any]:
    """Run a recurrence over axis 0 of `slices`; in a graph it becomes one ONNX Scan.

    The only place that touches torch's private operator. A step must return fresh tensors
    (`t + 0`, never an input), and the initial carry must take its batch axis from an input.

    Args:
        step: (carry, slice) -> (carry, output).
        carry: Initial state, a tensor or a tuple of tensors.
        slices: Tensors with the scanned axis first.

    Returns:
        Last state, and outputs stacked on axis 0.
    """
    final, outputs = _scan(step, carry, slices)
    return final, outputs


def logit(probs: Tensor) -> Tensor:
    """Return log(p / (1 - p))."""
    return torch.log(probs) - torch.log1p(-probs)


def thresholds(noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor) -> Tensor:
    """Turn uniform noise into thresholds: a binary pixel is 1 where its logit lies above.

    u < σ(l / T) is T·logit(u) < l, so sampling needs no sigmoid per step, temperature costs
    nothing, and a threshold of -∞ or +∞ clamps a known pixel to 1 or 0.

    Args:
        noise: Uniform, shape (N, C, H, W).
        temperature: Shape (N,), positive.
        known: Known pixels in [0, 1], shape (N, C, H, W).
        known_mask: 1 where a pixel is known, shape (N, C, H, W).

    Returns:
        Shape (N, D), pixels in raster order.
    """
    free = temperature[:, None, None, None] * logit(noise)
    clamped = torch.where(known > 0.5, -torch.inf, torch.inf)
    return torch.where(known_mask > 0.5, clamped, free).flatten(1)


def bernoulli_log_prob(values: Tensor, logits: Tensor) -> Tensor:
    """Return log p(x) in nats of each binary value, x·l - log(1 + eˡ), elementwise."""
    return values * logits - functional.softplus(logits)


def sum_dims(values: Tensor) -> Tensor:
    """Sum each row, shape (N, D) -> (N,), with the same bits in every batch."""
    missing = -values.shape[1] % _SUM_MULTIPLE
    return functional.pad(values, (0, missing)).sum(dim=1)
