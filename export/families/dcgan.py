"""DCGAN: a convolutional generator trained against a convolutional discriminator."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from export.adversarial import AdversarialConfig, AdversarialModel, Generate, init_weights
from export.exact import ExactGenerator, layers_of
from service.manifest import Image, Role
from service.noise import draw

_NUM_MEASURED = 4096
_MEASURED_SEED = 1  # figures and previews are of seed 0


class Config(AdversarialConfig):
    """Hyperparameters besides those of every GAN.

    Attributes:
        generator_channels: Feature maps of the generator, from the smallest map on; each stage
            doubles height and width.
        discriminator_channels: Feature maps of the discriminator; each stage halves them.
    """

    generator_channels: tuple[int, ...] = Field(default=(192, 96), min_length=1)
    discriminator_channels: tuple[int, ...] = Field(default=(64, 128, 256), min_length=1)


class Model(AdversarialModel):
    """image = G(latent), latent ~ N(0, I); the density is implicit.

    Besides the paper's design, the discriminator's weights have spectral norm 1, and what is
    shipped is a moving average of the generator (the recipe's `ema_decay`): both make the result
    steady. The losses are non-saturating; at p_θ = p_data the discriminator's best answer is ½
    and its loss 2·ln 2. What is shipped has rounded weights and activations and cuts latents at
    ±8, so that single precision holds every sum exactly (`export.exact`): all machines draw the
    same pixels.

    Source:
        Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional
        Generative Adversarial Networks", 2015, arXiv:1511.06434; Miyato et al., "Spectral
        Normalization for Generative Adversarial Networks", 2018, arXiv:1802.05957.
    """

    def build_players(self, config: Config) -> None:
        """Create generator and discriminator with weights from N(0, 0.02²)."""
        self.generator = Generator(config, self.image)
        self.discriminator = Discriminator(config, self.image)

    def shipped_graphs(self) -> dict[Role, nn.Module]:
        """Return the generator with weights and activations rounded, so that its sums are exact."""
        indices = np.arange(_NUM_MEASURED, dtype=np.uint64)
        seeds = np.full_like(indices, _MEASURED_SEED)
        latents = draw(self.noise.prior, seeds, indices, self.noise.shape)
        generator: Any = self.generator
        layers = layers_of(generator.project, generator.start, generator.stages)
        return {"generate": Generate(ExactGenerator(layers, torch.from_numpy(latents)))}


class Generator(nn.Module):
    """latent (N, D) -> image (N, C, H, W) in [-1, 1]."""

    def __init__(self, config: Config, image: Image) -> None:
        super().__init__()
        channels, height, width = image.shape
        scale = 2 ** len(config.generator_channels)
        if height % scale or width % scale:
            raise ValueError(
                f"{len(config.generator_channels)} stages double the size {scale} times in all, so "
                f"height and width must be multiples of {scale}; the images are {height}×{width}"
            )
        self.start = (config.generator_channels[0], height // scale, width // scale)
        self.project = nn.Linear(config.latent_dim, math.prod(self.start), bias=False)
        stages: list[nn.Module] = []
        widths: tuple[int, ...] = (*config.generator_channels, channels)
        for width_in, width_out in pairwise(widths):
            stages += [
                nn.BatchNorm2d(width_in),
                nn.ReLU(),
                nn.ConvTranspose2d(width_in, width_out, 4, 2, 1, bias=width_out == channels),
            ]
        self.stages = nn.Sequential(*stages)
        self.apply(init_weights)

    def forward(self, latent: Tensor) -> Tensor:
        """Decode latents."""
        features = self.project(latent).reshape(-1, *self.start)
        return torch.tanh(self.stages(features))


class Discriminator(nn.Module):
    """image (N, C, H, W) in [-1, 1] -> logit (N,) of being real."""

    def __init__(self, config: Config, image: Image) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        width_in: int
        width_in, height, width = image.shape
        for width_out in config.discriminator_channels:
            convolution = nn.Conv2d(width_in, width_out, 4, 2, 1)
            init_weights(convolution)
            stages += [spectral_norm(convolution), nn.LeakyReLU(0.2)]
            width_in, height, width = width_out, height // 2, width // 2
        self.stages = nn.Sequential(*stages)
        self.num_features = width_in * height * width
        self.score = spectral_norm(nn.Linear(self.num_features, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Judge images."""
        score: Tensor = self.score(self.stages(image).flatten(1))
        return score[:, 0].float()  # the losses stay in single precision
