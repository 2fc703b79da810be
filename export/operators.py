"""Operators of our own: what torch computes, and what stands for it in a graph."""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20
from torch import Tensor


@torch.library.custom_op("ptheta::is_positive", mutates_args=())
def is_positive(values: Tensor) -> Tensor:
    """Return 1 where a value is positive and 0 elsewhere, as floats.

    In a graph it is a single HardSigmoid instead of a comparison and a cast, and ONNX Runtime
    makes it part of a Gemm whose result nothing else reads.
    """
    return (values > 0).to(values.dtype)


@is_positive.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


def _hard_sigmoid(values: Any) -> Any:
    # max(0, min(1, 2¹²⁷ x)): 0 or 1 for infinities and for all numbers that are not denormal.
    return opset20.HardSigmoid(values, alpha=2.0**127, beta=0.0)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.ptheta.is_positive.default: _hard_sigmoid,
}
"""For torch's exporter, by operator."""
