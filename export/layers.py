"""What families share: scans that export, thresholds and scores of binary pixels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as _scan
from torch.nn import functional

# ONNX Runtime's Log, Softplus and ReduceSum compute the last few elements of an array by other
# instructions than the rest. A row has the same bits in every batch only where rows are whole
# multiples of this many floats, so that no element is ever among the last few.
ROW_MULTIPLE = 16

# It cuts sums of products at places that depend on the number of columns, but none this short.
_SUM_LENGTH = 128

# A filled-up value of 0 has log p = 0 exactly at this logit: e⁻¹⁰⁰ vanishes beside 1.
_IMPOSSIBLE_LOGIT = -100.0


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


def mean_pixel_logits(images: Tensor) -> Tensor:
    """Return the logits of the mean image: the biases of the independent model.

    A pixel that is never on gets the probability 10⁻⁴, since its logit would be −∞.

    Args:
        images: Shape (N, C, H, W), uint8.

    Returns:
        Shape (D,), D = C·H·W.
    """
    mean = images.flatten(1).float().mean(dim=0) / 255
    return logit(mean.clamp(1e-4, 1 - 1e-4))


def thresholds(
    noise: Tensor,
    temperature: Tensor,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
) -> Tensor:
    """Turn uniform noise into thresholds: a binary pixel is 1 where its logit lies above.

    u < σ(l / T) is T·logit(u) < l, so sampling needs no sigmoid per step, temperature costs
    nothing, and a threshold of -∞ or +∞ clamps a known pixel to 1 or 0.

    Args:
        noise: Uniform, shape (N, C, H, W).
        temperature: Shape (N,), positive.
        known: Known pixels in [0, 1], shape (N, C, H, W); none by default.
        known_mask: 1 where a pixel is known, shape (N, C, H, W).

    Returns:
        Shape (N, D), pixels in raster order.
    """
    uniforms = noise.flatten(1)
    free = temperature[:, None] * cut_rows(logit(pad_rows(uniforms, 0.5)), uniforms)
    if known is None or known_mask is None:
        return free
    clamped = torch.where(known.flatten(1) > 0.5, -torch.inf, torch.inf)
    return torch.where(known_mask.flatten(1) > 0.5, clamped, free)


def bernoulli_log_prob(values: Tensor, logits: Tensor) -> Tensor:
    """Return log p(x) in nats of each binary value, x·l - log(1 + eˡ), elementwise."""
    return values * logits - functional.softplus(logits)


def score_binary(values: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Score rows of binary values in a graph, with the same bits in every batch.

    Args:
        values: Shape (N, D).
        logits: Shape (N, D) or (D,).

    Returns:
        log p(x) in nats, shape (N,), and that of each value, shape (N, D).
    """
    padded = bernoulli_log_prob(pad_rows(values, 0.0), pad_rows(logits, _IMPOSSIBLE_LOGIT))
    return padded.sum(dim=1), cut_rows(padded, values)


def affine(bias: Tensor | None, weight: Tensor, columns: Tensor) -> Tensor:
    """Return b + W x of several columns, (M, K) and (K, N) -> (M, N), N at least 2.

    In a graph with the same bits in every batch, for any K: ONNX Runtime adds up to 1,024 terms
    in one go where columns are few, and ever fewer, down to 128, where they are more.

    Args:
        bias: Shape (M, 1) or (M, N), or (B, M, 1) or (B, M, N); none adds nothing.
        weight: Shape (M, K), or (B, M, K) for B matrices, each with columns and a bias of its own.
        columns: Shape (K, N), or (B, K, N).

    Returns:
        Shape (M, N), or (B, M, N).
    """
    products = [(weight, columns)]
    if weight.shape[-1] > _SUM_LENGTH:  # else a graph would split off the only part in each step
        weights = torch.split(weight, _SUM_LENGTH, dim=-1)
        products = list(zip(weights, torch.split(columns, _SUM_LENGTH, dim=-2), strict=True))
    for part, terms in products:
        if bias is None:
            bias = part @ terms
        elif weight.dim() == 2:
            bias = torch.addmm(bias, part, terms)
        else:
            bias = bias + part @ terms
    assert bias is not None
    return bias


def sum_rows(rows: Tensor) -> Tensor:
    """Sum over the last axis, in a graph with the same bits in every batch."""
    return pad_rows(rows, 0.0).sum(dim=-1)


def exp(rows: Tensor) -> Tensor:
    """Return eˣ elementwise, in a graph with the same bits in every batch."""
    return cut_rows(torch.exp(pad_rows(rows, 0.0)), rows)


def log_mean_exp(rows: Tensor) -> Tensor:
    """Return log 1/K Σ_k exp(row_k), (N, K) -> (N,), without overflow.

    In a graph with the same bits in every batch, for any K: each number stands many times side by
    side, and so is never among the last few of an array.
    """
    wide = rows[..., None].expand(-1, -1, ROW_MULTIPLE)  # (N, K) -> (N, K, 16)
    largest = wide.amax(dim=1)
    total = torch.exp(wide - largest[:, None]).sum(dim=1)
    return (largest + torch.log(total / rows.shape[1]))[:, 0]


def log_sum_exp(rows: Tensor) -> Tensor:
    """Return log Σ_k exp(row_k), (…, K) -> (…), for a K that the graph fixes, without overflow.

    In a graph with the same bits in every batch.
    """
    padded = pad_rows(rows, -torch.inf)
    largest = padded.amax(dim=-1, keepdim=True)
    total = torch.exp(padded - largest).sum(dim=-1, keepdim=True)
    # As wide as its row: the logarithm of a lone column would have last few elements, too.
    return (largest + torch.log(total.expand_as(padded)))[..., 0]


def pad_rows(rows: Tensor, value: float) -> Tensor:
    """Lengthen rows, (…, D), to a multiple of `ROW_MULTIPLE` by a value."""
    missing = -rows.shape[-1] % ROW_MULTIPLE
    return functional.pad(rows, (0, missing), value=value) if missing else rows


def cut_rows(padded: Tensor, rows: Tensor) -> Tensor:
    """Undo `pad_rows`: shorten rows to the length of others."""
    num_dims = rows.shape[-1]
    return padded[..., :num_dims] if padded.shape[-1] > num_dims else padded


def at_least_two(rows: Tensor) -> Tensor:
    """Repeat a row that is alone, (N, …) -> (max(N, 2), …), in a graph too.

    ONNX Runtime multiplies a matrix by a single column in another order of sums than by several
    of them. Where images are columns there must be two, for the bits to be those of any batch.
    """
    return torch.cat([rows, rows[: 1 // rows.shape[0]]])


def in_fours(rows: Tensor) -> Tensor:
    """Repeat the last row until there are whole fours, (N, D) -> (4⌈N/4⌉, D), in a graph too.

    ONNX Runtime multiplies rows by a single column four at a time and adds up the products of two
    rows, or one, that remain in other orders. Where images are rows none must remain, for the
    bits to be those of any batch.
    """
    num_rows = rows.shape[0]
    places = torch.arange((num_rows + 3) // 4 * 4).clamp(max=num_rows - 1)
    return rows.index_select(0, places)


def out_of_fours(padded: Tensor, rows: Tensor) -> Tensor:
    """Undo `in_fours`: keep as many rows as others have."""
    return padded.index_select(0, torch.arange(rows.shape[0]))
