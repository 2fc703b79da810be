"""The full joint table: a probability for every possible image, the other end of the chain rule."""

import torch
from pydantic import Field
from torch import Tensor, nn

from export.layers import scan, sum_rows, thresholds
from export.model import Batch, FamilyConfig, GenerativeModel
from service.manifest import Noise, Role

MAX_DIMS = 16
# Stands for ±∞ in the thresholds' comparison, so that a known pixel wins even where the table
# says that it cannot be.
_CERTAIN_LOGIT = 1e30


class Config(FamilyConfig):
    """Hyperparameters.

    Attributes:
        smoothing: Imaginary observations of each image. Without any (0), probabilities are the
            counted frequencies, and an image that was never seen has probability 0.
    """

    smoothing: float = Field(default=0.5, ge=0)


class Model(GenerativeModel):
    """p(x) = (count(x) + s) / (N + 2ⁿ s) for each of the 2ⁿ images: 2ⁿ - 1 parameters.

    Nothing is assumed, so nothing is learnt of an image that was never seen: s = ½ imaginary
    observations of each keep a test figure finite.

    As a chain: p(x_d = 1 | x_<d) is the share of 1 among the images that begin with x_<d, one
    parameter for each of the 2^d beginnings, and Σ_d 2^d = 2ⁿ - 1. With s = 0, beginnings that were
    never seen get ½, which no image feels.
    """

    density = "exact"
    draws = "planes"
    values = ("binary",)

    def build(self, config: Config) -> None:
        """Start from nothing counted.

        Raises:
            ValueError: The table would be too large.
        """
        num_dims = self.image.num_dims
        if num_dims > MAX_DIMS:
            raise ValueError(
                f"joint needs 2^{num_dims} - 1 parameters for {num_dims} pixels; at most "
                f"{MAX_DIMS} pixels are possible: set data.crop"
            )
        self.smoothing = config.smoothing
        self.automatic_optimization = False
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(2**num_dims, dtype=torch.float64))

    @property
    def noise(self) -> Noise:
        """One uniform draw per pixel."""
        return Noise(prior="uniform", shape=self.image.shape, latent=False)

    def num_parameters(self) -> int:
        """One per image but the last, whose probability is what is left."""
        return num_table_parameters(self.image.num_dims)

    def probs(self) -> Tensor:
        """Return p(x_d = 1 | x_<d) of each beginning, shape (2ⁿ - 1,).

        The beginnings stand as in a heap: the empty one first, and 2k + 1 + x after beginning k.
        """
        num_dims = self.image.num_dims
        weights = self.counts + self.smoothing
        levels = []
        for dim in range(num_dims):
            ones = weights.reshape(2**dim, 2, -1).sum(dim=2)  # (2^d, 2): what follows each
            share = ones[:, 1] / ones.sum(dim=1)
            levels.append(torch.where(ones.sum(dim=1) > 0, share, 0.5))
        return torch.cat(levels)

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x) in nats, (N, C, H, W) -> (N,); -∞ for what was never seen."""
        log_prob: Tensor = LogProb(self.probs())(images)[0]
        return log_prob

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch: the maximum-likelihood fit in one pass."""
        values = batch[0].flatten(1)
        powers = 2 ** torch.arange(values.shape[1]).flip(0)
        numbers = ((values > 0.5) * powers).sum(dim=1)
        self.counts += torch.bincount(numbers, minlength=len(self.counts))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Need no optimizer."""
        return []

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the two graphs over the counted table."""
        return {"generate": Generate(self.probs()), "log_prob": LogProb(self.probs())}


def num_table_parameters(num_dims: int, num_levels: int = 2) -> int:
    """Count the free parameters of a table over all images.

    Example:
        >>> num_table_parameters(3, num_levels=256)  # one RGB pixel
        16777215
    """
    return int(num_levels**num_dims) - 1


class Generate(nn.Module):
    """noise -> image, one pixel after the other; the state is the place in the heap."""

    def __init__(self, probs: Tensor) -> None:
        super().__init__()
        logits = torch.logit(probs).clamp(-_CERTAIN_LOGIT, _CERTAIN_LOGIT)
        self.logits = nn.Buffer(logits.float())

    def forward(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Sample, (N, C, H, W) -> (N, C, H, W)."""
        limits = thresholds(noise, temperature, known, known_mask)

        def step(place: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
            value = (limit < self.logits.index_select(0, place)).long()
            return 2 * place + 1 + value, value + 0

        start = 0 * (limits[:, 0] > 0).long()
        values: Tensor
        _, values = scan(step, start, limits.t())
        return values.t().to(noise.dtype).reshape(noise.shape)


class LogProb(nn.Module):
    """image -> log_prob, conditional_log_prob by looking them up."""

    def __init__(self, probs: Tensor) -> None:
        super().__init__()
        table = torch.stack([torch.log1p(-probs), torch.log(probs)], dim=1)
        self.table = nn.Buffer(table.flatten().float())  # (2 · (2ⁿ - 1),): value 0, value 1

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score, (N, C, H, W) -> (N,), (N, C, H, W)."""
        values = image.flatten(1)
        bits = (values > 0.5).long()
        places = torch.zeros_like(bits[:, 0])
        cells = []
        for dim in range(values.shape[1]):
            cells.append(2 * places + bits[:, dim])
            places = 2 * places + 1 + bits[:, dim]
        # A pixel that is no number has no probability.
        conditionals = self.table[torch.stack(cells, dim=1)] + 0 * values
        return sum_rows(conditionals), conditionals.reshape(image.shape)
