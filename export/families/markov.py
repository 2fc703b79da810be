"""Markov chain over the raster: p(x) = Π_d p(x_d | x_{d-N}, …, x_{d-1}), one table per pixel."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from export.layers import bernoulli_log_prob, logit, scan, score_binary, thresholds
from export.model import Batch, FamilyConfig, GenerativeModel
from service.manifest import Noise, Role


class Config(FamilyConfig):
    """Hyperparameters.

    Attributes:
        order: N, how many previous pixels a pixel depends on.
        smoothing: Imaginary observations of each value in each context.
    """

    order: int = Field(default=1, ge=1, le=12)
    smoothing: float = Field(default=0.5, gt=0)


class Model(GenerativeModel):
    """AR(N) with a table of 2^min(d, N) probabilities for pixel d, found by counting."""

    density = "exact"
    draws = "planes"
    values = ("binary",)

    def build(self, config: Config) -> None:
        """Start from nothing counted: every pixel is 0 or 1 with probability ½."""
        self.order = config.order
        self.smoothing = config.smoothing
        self.automatic_optimization = False
        shape = (self.image.num_dims, 2**self.order)
        self.ones: Tensor
        self.total: Tensor
        self.register_buffer("ones", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(shape, dtype=torch.float64))

    @property
    def noise(self) -> Noise:
        """One uniform draw per pixel."""
        return Noise(prior="uniform", shape=self.image.shape, latent=False)

    def num_parameters(self) -> int:
        """Σ_d 2^min(d, N): the first pixels have fewer contexts."""
        return sum(2 ** min(dim, self.order) for dim in range(self.image.num_dims))

    def logits(self) -> Tensor:
        """Return the logit of each pixel in each context, shape (D, 2^N)."""
        return logit((self.ones + self.smoothing) / (self.total + 2 * self.smoothing)).float()

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x) in nats, (N, C, H, W) -> (N,)."""
        values = images.flatten(1)
        cells = table_cells(values, self.order)
        return bernoulli_log_prob(values, self.logits().flatten()[cells]).sum(dim=1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch: the maximum-likelihood fit in one pass."""
        values = batch[0].flatten(1)
        cells = table_cells(values, self.order).flatten()
        counts = torch.ones_like(cells, dtype=torch.float64)
        self.total.view(-1).index_add_(0, cells, counts)
        self.ones.view(-1).index_add_(0, cells, values.flatten().double())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Need no optimizer."""
        return []

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the two graphs over the counted tables."""
        tables = self.logits()
        return {"generate": Generate(tables, self.order), "log_prob": LogProb(tables, self.order)}


def table_cells(values: Tensor, order: int) -> Tensor:
    """Return which cell of the flat tables each pixel reads.

    The context of pixel d is the number Σ_k 2^(k-1)·x_{d-k} over k = 1…N; pixels before the
    first count as 0.

    Args:
        values: Binary pixels in raster order, shape (N, D).
        order: Length of the context.

    Returns:
        d·2^order + context, shape (N, D), int64.
    """
    num_dims = values.shape[1]
    bits = (values > 0.5).long()
    cells: Tensor = torch.arange(num_dims) * 2**order + 0 * bits
    for distance in range(1, min(order, num_dims - 1) + 1):
        earlier = functional.pad(bits[:, : num_dims - distance], (distance, 0))
        cells = cells + 2 ** (distance - 1) * earlier
    return cells


class Generate(nn.Module):
    """noise -> image, one pixel after the other; the state is the context."""

    def __init__(self, tables: Tensor, order: int) -> None:
        super().__init__()
        self.tables = nn.Buffer(tables)
        self.num_contexts = 2**order

    def forward(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Sample, (N, C, H, W) -> (N, C, H, W)."""
        limits = thresholds(noise, temperature, known, known_mask)

        def step(context: Tensor, pixel: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            table, limit = pixel  # (2^N,), (N,)
            value = (limit < table[context]).long()
            return (2 * context + value) % self.num_contexts, value + 0

        start = 0 * (limits[:, 0] > 0).long()
        values: Tensor
        _, values = scan(step, start, (self.tables, limits.t()))
        return values.t().to(noise.dtype).reshape(noise.shape)


class LogProb(nn.Module):
    """image -> log_prob, conditional_log_prob, all pixels at once."""

    def __init__(self, tables: Tensor, order: int) -> None:
        super().__init__()
        self.tables = nn.Buffer(tables.flatten())
        self.order = order

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score, (N, C, H, W) -> (N,), (N, C, H, W)."""
        values = image.flatten(1)
        logits = self.tables[table_cells(values, self.order)]
        log_prob, conditionals = score_binary(values, logits)
        return log_prob, conditionals.reshape(image.shape)
