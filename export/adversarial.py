"""Adversarial training: a generator against a discriminator, as all GAN families do it."""

import math
from abc import abstractmethod
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from export.augment import Augmentation, augment
from export.model import Batch, FamilyConfig, GenerativeModel
from service.manifest import Noise, Role


class AdversarialConfig(FamilyConfig):
    """Hyperparameters of every GAN.

    Attributes:
        latent_dim: D, length of a latent.
        discriminator_learning_rate: The recipe's learning rate is the generator's.
        r1: γ of the penalty ½·γ·E|∇_x D(x)|² on training images; 0 for none.
        augmentation: What real and generated images alike go through before they are judged, so
            that the discriminator cannot learn few training images by heart.
    """

    latent_dim: int = Field(default=64, gt=0)
    discriminator_learning_rate: float = Field(default=2e-4, gt=0)
    r1: float = Field(default=0.0, ge=0)
    augmentation: tuple[Augmentation, ...] = ()


class AdversarialModel(GenerativeModel):
    """image = G(latent) where D cannot tell it from a training image; the density is implicit.

    The discriminator minimizes E softplus(-D(x)) + E softplus(D(G(z))) and the generator
    E softplus(-D(G(z))), the non-saturating loss. At p_θ = p_data the discriminator's best answer
    is ½ and its loss 2·ln 2. Subclasses build `generator` and `discriminator`, which see pixels in
    [-1, 1].

    Source:
        Goodfellow et al., "Generative Adversarial Networks", 2014, arXiv:1406.2661, section 3;
        R1: Mescheder, Geiger, Nowozin, "Which Training Methods for GANs do actually Converge?",
        2018, arXiv:1801.04406, equation 9.
    """

    density = "implicit"
    generator: nn.Module
    discriminator: nn.Module

    def build(self, config: AdversarialConfig) -> None:
        """Create the two players."""
        self.config = config
        self.automatic_optimization = False
        self.build_players(config)

    @abstractmethod
    def build_players(self, config: Any) -> None:
        """Create `generator` and `discriminator`."""

    @property
    def noise(self) -> Noise:
        """A Gaussian latent."""
        return Noise(prior="normal", shape=(self.config.latent_dim,), latent=True)

    def num_parameters(self) -> int:
        """Count the generator alone: the discriminator is not shipped."""
        return sum(parameter.numel() for parameter in self.generator.parameters())

    def condition(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what both players are told of the images of a batch, besides the images."""
        return ()

    def draw_latents(self, num_rows: int) -> Tensor:
        """Draw from the prior, (N, D)."""
        draw = torch.randn if self.noise.prior == "normal" else torch.rand
        return draw(num_rows, self.config.latent_dim, device=self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one step of the discriminator, then one of the generator on the same latents."""
        real, condition = 2 * batch[0] - 1, self.condition(batch)
        generator_optimizer, discriminator_optimizer = self.optimizers()  # type: ignore[attr-defined]
        fake = self.generator(self.draw_latents(len(real)), *condition)

        real.requires_grad_(self.config.r1 > 0)
        real_logits = self._judge(real, condition)
        fake_logits = self._judge(fake.detach(), condition)
        discriminator_loss = functional.softplus(-real_logits).mean()
        discriminator_loss = discriminator_loss + functional.softplus(fake_logits).mean()
        penalty = self.config.r1 * r1_penalty(real, real_logits) if self.config.r1 else 0.0
        discriminator_optimizer.zero_grad()
        self.manual_backward(discriminator_loss + penalty)
        discriminator_optimizer.step()

        self.discriminator.requires_grad_(False)  # spares the gradients of its weights
        generator_loss = functional.softplus(-self._judge(fake, condition)).mean()
        generator_optimizer.zero_grad()
        self.manual_backward(generator_loss)
        generator_optimizer.step()
        self.discriminator.requires_grad_(True)

        losses = {"d_loss": discriminator_loss, "g_loss": generator_loss}
        self.log_dict(losses, prog_bar=True, on_step=True, on_epoch=True)
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

    def _judge(self, images: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.discriminator(augment(images, self.config.augmentation), *condition)
        return logits


class Generate(nn.Module):
    """noise (N, D) -> image in [0, 1], batch normalization with its running statistics."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, noise: Tensor) -> Tensor:
        """Sample, (N, D) -> (N, C, H, W)."""
        pixels: Tensor = self.generator(noise)
        return (pixels + 1) / 2


def r1_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """Return ½·E|∇_x D(x)|², to be differentiated once more.

    Args:
        images: x, shape (N, C, H, W), with gradient.
        logits: D(x), shape (N,).
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(dim=1).mean()


def init_weights(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02²), scales of batch normalization from N(1, 0.02²)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
