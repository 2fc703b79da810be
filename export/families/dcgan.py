"""DCGAN: a convolutional generator trained against a convolutional discriminator."""

import math
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from export.model import Batch, FamilyConfig, GenerativeModel
from service.manifest import Image, Noise, Role


class Config(FamilyConfig):
    """Hyperparameters.

    Attributes:
        latent_dim: D, length of a latent.
        generator_channels: Feature maps of the generator, from the smallest map on; each stage
            doubles height and width.
        discriminator_channels: Feature maps of the discriminator; each stage halves them.
        discriminator_learning_rate: The recipe's learning rate is the generator's.
    """

    latent_dim: int = Field(default=64, gt=0)
    generator_channels: tuple[int, ...] = Field(default=(192, 96), min_length=1)
    discriminator_channels: tuple[int, ...] = Field(default=(64, 128, 256), min_length=1)
    discriminator_learning_rate: float = Field(default=2e-4, gt=0)


class Model(GenerativeModel):
    """image = G(latent), latent ~ N(0, I); the density is implicit.

    Besides the paper's design, the discriminator's weights have spectral norm 1, and what is
    shipped is a moving average of the generator (the recipe's `ema_decay`): both make the result
    steady. The losses are non-saturating; at p_θ = p_data the discriminator's best answer is ½
    and its loss 2·ln 2.

    Source:
        Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional
        Generative Adversarial Networks", 2015, arXiv:1511.06434; Miyato et al., "Spectral
        Normalization for Generative Adversarial Networks", 2018, arXiv:1802.05957.
    """

    density = "implicit"

    def build(self, config: Config) -> None:
        """Create generator and discriminator with weights from N(0, 0.02²)."""
        self.config = config
        self.automatic_optimization = False
        self.generator = Generator(config, self.image)
        self.discriminator = Discriminator(config, self.image)

    @property
    def noise(self) -> Noise:
        """A Gaussian latent."""
        return Noise(prior="normal", shape=(self.config.latent_dim,), latent=True)

    def num_parameters(self) -> int:
        """Count the generator alone: the discriminator is not shipped."""
        return sum(parameter.numel() for parameter in self.generator.parameters())

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one step of the discriminator, then one of the generator on the same latents."""
        real = 2 * batch[0] - 1
        generator_optimizer, discriminator_optimizer = self.optimizers()  # type: ignore[attr-defined]
        latent = torch.randn(len(real), self.config.latent_dim, device=real.device)
        fake = self.generator(latent)

        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake.detach())
        discriminator_loss = functional.softplus(-real_logits).mean()
        discriminator_loss = discriminator_loss + functional.softplus(fake_logits).mean()
        discriminator_optimizer.zero_grad()
        self.manual_backward(discriminator_loss)
        discriminator_optimizer.step()

        self.discriminator.requires_grad_(False)  # spares the gradients of its weights
        generator_loss = functional.softplus(-self.discriminator(fake)).mean()
        generator_optimizer.zero_grad()
        self.manual_backward(generator_loss)
        generator_optimizer.step()
        self.discriminator.requires_grad_(True)

        losses = {"d_loss": discriminator_loss, "g_loss": generator_loss}
        self.log_dict(losses, prog_bar=True)
        self.log("d_loss_at_equilibrium", 2 * math.log(2))

    def configure_optimizers(self) -> Any:
        """Use Adam for each of the two players."""
        training = self.training_config
        rates = {
            self.generator: training.learning_rate,
            self.discriminator: self.config.discriminator_learning_rate,
        }
        return [
            torch.optim.Adam(player.parameters(), lr=rate, betas=training.betas)
            for player, rate in rates.items()
        ]

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the generator, with pixels in [0, 1]."""
        return {"generate": Generate(self.generator)}


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
        self.score = spectral_norm(nn.Linear(width_in * height * width, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Judge images."""
        score: Tensor = self.score(self.stages(image).flatten(1))
        return score[:, 0].float()  # the losses stay in single precision


class Generate(nn.Module):
    """noise (N, D) -> image in [0, 1], batch normalization with its running statistics."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, noise: Tensor) -> Tensor:
        """Sample, (N, D) -> (N, C, H, W)."""
        pixels: Tensor = self.generator(noise)
        return (pixels + 1) / 2


def init_weights(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02²), scales of batch normalization from N(1, 0.02²)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
