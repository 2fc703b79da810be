"""Generators that compute the same pixels on every machine: single precision that never rounds."""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_UNITS = 2**24
"""Single precision holds every integer up to this one, so sums that stay below it are exact."""

LEVELS = 767
"""Hidden activations are integers from 0 to this; more would leave fewer bits to the weights."""

LATENT_STEPS = 256
LATENT_BOUND = 8
"""Latents are multiples of 1/256 within ±8; the normal draws of `service.noise` end at 6.4."""

TANH_STEPS = 280
"""The last layer gives multiples of 1/280, because none but 0 has a pixel near the border of two
grey levels: the nearest is 0.0016 levels away, where implementations of tanh differ by 0.00005.
(At 0, tanh is 0 everywhere, and the pixel 127.5.) No number from 250 to 1,100 does better."""

_PEAK_QUANTILE = 0.999
_CHUNK = 256


class ExactGenerator(nn.Module):
    """latent (N, D) -> pixels (N, C, H, W) in [-1, 1], without a single rounded sum.

    Processors differ in the last bit of a sum of products: in the order of the terms, and in
    whether a product is rounded before it is added. Neither matters where there is nothing to
    round. Here every activation is an integer, cut to a range and rounded between the layers, and
    every weight is an integer multiple of a power of two, the unit. So is every product and every
    sum of some of the products, and as long as none can exceed 2²⁴ units, single precision holds
    them all exactly. `reach` bounds them for the worst activations there could be, not for likely
    ones.

    Of 24 bits some go to the activations, some to the weights, and the rest to the number of terms:
    weights have about 8 to 11 bits. To spend them well, each hidden channel is scaled such that its
    peak becomes `LEVELS`, and each output channel, and each of the stride² kinds of places of a
    transposed convolution, which use different taps of the kernel, has a unit of its own.

    Where sums are exact, any order of additions gives the same bits: any number of threads, blocks
    of any shape, with and without fused multiply-add, on any processor with IEEE 754 arithmetic. It
    does not hold where convolutions are not sums of their products (Winograd's algorithm, Fourier
    transforms), nor where factors lose bits (bfloat16, TensorFloat-32).

    Args:
        layers: Transposed convolutions with bias in double precision, a ReLU between any two. The
            first one's input is 1×1; every kernel is a multiple of its stride. They are changed.
        latents: Draws from the prior, (M, D), which tell how large activations are.
    """

    def __init__(self, layers: list[nn.ConvTranspose2d], latents: Tensor) -> None:
        super().__init__()
        peaks = _peaks(layers, latents)
        scales = [
            torch.full((latents.shape[1],), 1 / LATENT_STEPS, dtype=torch.float64),
            *(peak / LEVELS for peak in peaks),
            torch.full((layers[-1].out_channels,), 1 / TANH_STEPS, dtype=torch.float64),
        ]
        bound = LATENT_BOUND * LATENT_STEPS
        for number, (layer, (scale_in, scale_out)) in enumerate(
            zip(layers, pairwise(scales), strict=True)
        ):
            layer.weight.mul_(scale_in[:, None, None, None] / scale_out[:, None, None])
            _bias(layer).div_(scale_out)
            lowest, highest = (0, LEVELS) if number else (-bound, bound)
            round_weights(layer, lowest, highest)
        self.start = (layers[0].out_channels, *layers[0].kernel_size)
        self.project = _as_linear(layers[0]).float()
        self.stages = nn.ModuleList(layer.float() for layer in layers[1:])

    def forward(self, latent: Tensor) -> Tensor:
        """Decode latents; the pixels' tanh alone is not exact."""
        return torch.tanh(self.steps(latent) / TANH_STEPS)

    def steps(self, latent: Tensor) -> Tensor:
        """Return the tanh's argument in units of 1/`TANH_STEPS`, (N, C, H, W): integers, exact."""
        bound = LATENT_BOUND * LATENT_STEPS
        features = self.project(torch.clamp(latent * LATENT_STEPS, -bound, bound).round())
        features = features.reshape(-1, *self.start)
        for stage in self.stages:
            features = stage(features.clamp(0, LEVELS).round())
        rounded: Tensor = features.round()
        return rounded


@torch.no_grad()
def layers_of(
    project: nn.Linear, start: tuple[int, int, int], stages: Iterable[nn.Module]
) -> list[nn.ConvTranspose2d]:
    """Write a generator as transposed convolutions, batch normalization folded in.

    Args:
        project: Makes the first maps of a latent.
        start: Shape of the first maps.
        stages: Batch normalization, ReLU and transposed convolution in turns.

    Returns:
        Copies in double precision; a ReLU belongs between any two.
    """
    _, height, width = start
    first = nn.ConvTranspose2d(project.in_features, start[0], (height, width), (height, width))
    first = first.double().requires_grad_(False)
    first.weight.copy_(project.weight.reshape(*start, -1).permute(3, 0, 1, 2))
    _bias(first).zero_()
    layers = [first]
    for stage in stages:
        if isinstance(stage, nn.BatchNorm2d):
            _fold(stage, layers[-1])
        elif isinstance(stage, nn.ConvTranspose2d):
            layers.append(_copy(stage))
        elif not isinstance(stage, nn.ReLU):
            raise ValueError(f"no exact form of {type(stage).__name__} is known")
    return layers


def round_weights(layer: nn.ConvTranspose2d, lowest: int, highest: int) -> None:
    """Round weights and bias to the finest units in which no sum can exceed `MAX_UNITS`.

    Args:
        layer: In double precision.
        lowest: Of the integers that come in.
        highest: Likewise.
    """
    weight, bias = layer.weight.clone(), _bias(layer).clone()
    exponents = torch.log2(reach(layer, lowest, highest) / MAX_UNITS).ceil()
    while True:
        units = exponents.exp2()  # (out, stride, stride)
        of_taps = units.repeat(1, *(layer.kernel_size[i] // layer.stride[i] for i in (0, 1)))
        layer.weight.copy_((weight / of_taps).round() * of_taps)
        # All kinds of places share the bias; a multiple of their coarsest unit is one of them all.
        coarsest = units.amax(dim=(1, 2))
        _bias(layer).copy_((bias / coarsest).round() * coarsest)
        too_far = reach(layer, lowest, highest) > MAX_UNITS * units
        if not too_far.any():
            return
        exponents += too_far  # rounding up has led a little too far


def reach(layer: nn.ConvTranspose2d, lowest: int, highest: int) -> Tensor:
    """Bound the sum of any products of one output, bias included, in any order.

    No subset of the products has a larger sum than all positive ones, nor a smaller one than all
    negative ones; each is largest where its input is at an end of the range.

    Args:
        layer: Its kernel is a multiple of its stride.
        lowest: Of the inputs.
        highest: Likewise.

    Returns:
        Largest magnitude by output channel and by place modulo the stride, (out, stride, stride):
        taps which are a stride apart meet in one output.
    """
    ends = torch.stack([layer.weight * lowest, layer.weight * highest])
    above, below = ends.amax(dim=0).clamp_min(0), (-ends).amax(dim=0).clamp_min(0)
    (rows, columns), (height, width) = layer.stride, layer.kernel_size
    shape = (*layer.weight.shape[:2], height // rows, rows, width // columns, columns)
    sums = [part.reshape(shape).sum(dim=(0, 2, 4)) for part in (above, below)]
    return torch.maximum(*sums) + _bias(layer).abs()[:, None, None]


def _peaks(layers: list[nn.ConvTranspose2d], latents: Tensor) -> list[Tensor]:
    """Measure the largest activation of nearly every image, (channels,) for each hidden layer."""
    peaks: list[list[Tensor]] = [[] for _ in layers[:-1]]
    for chunk in torch.split(latents.double(), _CHUNK):
        features = chunk[:, :, None, None]
        for layer, found in zip(layers, peaks, strict=False):
            features = functional.relu(layer(features))
            found.append(features.amax(dim=(2, 3)))
    quantiles = [torch.cat(found).quantile(_PEAK_QUANTILE, dim=0) for found in peaks]
    # A channel that is always 0 can have any scale.
    return [torch.where(peak > 0, peak, 1.0) for peak in quantiles]


def _fold(norm: nn.BatchNorm2d, layer: nn.ConvTranspose2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    layer.weight.mul_(scale[:, None, None])
    bias = _bias(layer)
    bias.copy_((bias - norm.running_mean) * scale + norm.bias)


def _copy(layer: nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    copy = nn.ConvTranspose2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
    )
    copy = copy.double().requires_grad_(False)
    copy.weight.copy_(layer.weight)
    _bias(copy).copy_(torch.zeros_like(_bias(copy)) if layer.bias is None else layer.bias)
    return copy


def _as_linear(layer: nn.ConvTranspose2d) -> nn.Linear:
    """Turn a transposed convolution of 1×1 inputs into a product with a matrix."""
    height, width = layer.kernel_size
    linear = nn.Linear(layer.in_channels, layer.out_channels * height * width).double()
    linear.requires_grad_(False)
    linear.weight.copy_(layer.weight.permute(1, 2, 3, 0).flatten(0, 2))
    linear.bias.copy_(_bias(layer).repeat_interleave(height * width))
    return linear


def _bias(layer: nn.ConvTranspose2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
