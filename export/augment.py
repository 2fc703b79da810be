"""Augmentations that gradients pass through, for discriminators of few images."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Augmentation = Literal["brightness", "translation", "cutout"]

# As in the paper: brightness by up to ±½ of a range of 2, an eighth of the size, half the size.
_MAX_BRIGHTNESS = 0.5
_MAX_SHIFT = 1 / 8
_CUT = 1 / 2


def augment(images: Tensor, augmentations: Sequence[Augmentation]) -> Tensor:
    """Change images at random, in a way that the generator's gradient passes through.

    Applied to real and generated images alike, the generator still learns the distribution of the
    images themselves: it never makes what only augmented images show.

    Args:
        images: Shape (N, C, H, W), in [-1, 1].
        augmentations: Which to apply.

    Returns:
        Shape (N, C, H, W).

    Source:
        Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", 2020,
        arXiv:2006.10738.
    """
    if "brightness" in augmentations:
        images = images + _MAX_BRIGHTNESS * (2 * _random(images, 1, 1, 1) - 1)
    if "translation" in augmentations:
        images = _shifted(images)
    if "cutout" in augmentations:
        images = _cut_out(images)
    return images


def _shifted(images: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its size; the border goes on as its last pixel."""
    num_rows, _, height, width = images.shape
    rows, columns = (
        (torch.arange(size, device=images.device) + _shifts(images, size)).clamp(0, size - 1)
        for size in (height, width)
    )  # (N, H), (N, W)
    image = torch.arange(num_rows, device=images.device)[:, None, None]
    # (N, H, W, C) -> (N, C, H, W)
    return images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _cut_out(images: Tensor) -> Tensor:
    """Set a square of half the size, around a random centre, to grey."""
    inside = []
    for size in images.shape[2:]:
        centre = size * _random(images, 1)
        inside.append((torch.arange(size, device=images.device) - centre).abs() < _CUT * size / 2)
    rows, columns = inside
    cut = rows[:, None, :, None] & columns[:, None, None]
    return images * ~cut


def _shifts(images: Tensor, size: int) -> Tensor:
    largest = round(_MAX_SHIFT * size)
    return torch.randint(-largest, largest + 1, (len(images), 1), device=images.device)


def _random(images: Tensor, *shape: int) -> Tensor:
    return torch.rand(len(images), *shape, device=images.device)
