"""Independent pixels: p(x) = Π_d p(x_d), the root of the family tree."""

import torch
from pydantic import Field
from torch import Tensor, nn

from export.layers import bernoulli_log_prob, logit, score_binary, thresholds
from export.model import Batch, FamilyConfig, GenerativeModel
from service.manifest import Noise, Role


class Config(FamilyConfig):
    """Hyperparameters.

    Attributes:
        smoothing: Imaginary observations of each value, so that no pixel is impossible.
    """

    smoothing: float = Field(default=0.5, gt=0)


class Model(GenerativeModel):
    """One probability per pixel, found by counting: n parameters."""

    density = "exact"
    draws = "pixels"
    values = ("binary",)

    def build(self, config: Config) -> None:
        """Start from nothing counted: every pixel is 0 or 1 with probability ½."""
        self.smoothing = config.smoothing
        self.automatic_optimization = False
        self.ones: Tensor
        self.total: Tensor
        self.register_buffer("ones", torch.zeros(self.image.shape, dtype=torch.float64))
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))

    @property
    def noise(self) -> Noise:
        """One uniform draw per pixel."""
        return Noise(prior="uniform", shape=self.image.shape, latent=False)

    def num_parameters(self) -> int:
        """One per pixel."""
        return self.image.num_dims

    def logits(self) -> Tensor:
        """Return the logit of each pixel, shape (C, H, W)."""
        probs = (self.ones + self.smoothing) / (self.total + 2 * self.smoothing)
        return logit(probs).float()

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x) in nats, (N, C, H, W) -> (N,)."""
        return bernoulli_log_prob(images, self.logits()).flatten(1).sum(dim=1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch: the maximum-likelihood fit in one pass."""
        images = batch[0]
        self.ones += images.sum(dim=0)
        self.total += len(images)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Need no optimizer."""
        return []

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the two graphs over the counted logits."""
        return {"generate": Generate(self.logits()), "log_prob": LogProb(self.logits())}


class Generate(nn.Module):
    """noise -> image, all pixels at once."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Buffer(logits)

    def forward(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Sample, (N, C, H, W) -> (N, C, H, W)."""
        limits = thresholds(noise, temperature, known, known_mask)
        return (limits < self.logits.flatten()).to(noise.dtype).reshape(noise.shape)


class LogProb(nn.Module):
    """image -> log_prob, conditional_log_prob."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Buffer(logits)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score, (N, C, H, W) -> (N,), (N, C, H, W)."""
        log_prob, conditionals = score_binary(image.flatten(1), self.logits.flatten())
        return log_prob, conditionals.reshape(image.shape)
