"""GAN: the first one, of dense layers and uniform noise."""

import math
from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn

from export.adversarial import AdversarialConfig, AdversarialModel
from service.manifest import Image, Noise

_SLOPE = 0.2


class Config(AdversarialConfig):
    """Hyperparameters besides those of every GAN.

    Attributes:
        generator_hidden: Units of the generator's hidden layers.
        discriminator_hidden: Units of the discriminator's hidden layers.
    """

    generator_hidden: tuple[int, ...] = Field(default=(512, 512), min_length=1)
    discriminator_hidden: tuple[int, ...] = Field(default=(512, 256), min_length=1)


class Model(AdversarialModel):
    """image = G(latent), latent uniform on the unit cube; the density is implicit.

    G and D are multilayer perceptrons. The losses are non-saturating; at p_θ = p_data the
    discriminator's best answer is ½ and its loss 2·ln 2. Instead of the paper's maxout and
    dropout, D has leaky ReLU and a penalty on its gradient at training images (R1), and what is
    shipped is a moving average of the generator (the recipe's `ema_decay`).

    Source:
        Goodfellow et al., "Generative Adversarial Networks", 2014, arXiv:1406.2661, sections 3
        and 5; Mescheder, Geiger, Nowozin, "Which Training Methods for GANs do actually
        Converge?", 2018, arXiv:1801.04406.
    """

    def build_players(self, config: Config) -> None:
        """Create generator and discriminator."""
        self.generator = Generator(config, self.image)
        self.discriminator = Discriminator(config, self.image)

    @property
    def noise(self) -> Noise:
        """A uniform latent, as in the paper."""
        return Noise(prior="uniform", shape=(self.config.latent_dim,), latent=True)


class Generator(nn.Module):
    """latent (N, D) in (0, 1) -> image (N, C, H, W) in [-1, 1]."""

    def __init__(self, config: Config, image: Image) -> None:
        super().__init__()
        self.shape = image.shape
        widths = (config.latent_dim, *config.generator_hidden)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            linear = nn.Linear(width_in, width_out, bias=False)
            layers += [linear, nn.BatchNorm1d(width_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], image.num_dims), nn.Tanh())

    def forward(self, latent: Tensor) -> Tensor:
        """Decode latents, spread to mean 0 and variance 1."""
        pixels: Tensor = self.layers(math.sqrt(12) * (latent - 0.5))
        return pixels.reshape(-1, *self.shape)


class Discriminator(nn.Module):
    """image (N, C, H, W) in [-1, 1] -> logit (N,) of being real."""

    def __init__(self, config: Config, image: Image) -> None:
        super().__init__()
        widths = (image.num_dims, *config.discriminator_hidden)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, image: Tensor) -> Tensor:
        """Judge images."""
        score: Tensor = self.layers(image.flatten(1))
        return score[:, 0].float()  # the losses stay in single precision
