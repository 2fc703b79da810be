"""Fully visible sigmoid belief network: the chain rule with one logistic regression per pixel."""

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from export.layers import bernoulli_log_prob, mean_pixel_logits, scan, score_binary, thresholds
from export.model import FamilyConfig, GenerativeModel
from service.manifest import Noise, Role

NotNegative = Annotated[float, Field(ge=0)]


class Config(FamilyConfig):
    """Hyperparameters, all of a prior for grey images; these give the shape of the weights.

    Attributes:
        decay: Price of a squared weight from the next pixel, in nats per image.
        distance_power: A weight from r pixels away costs (1 + r) to this power as much.
        grids: Points per side of the grids of kernels that are learnt beside the weights of the
            single pixels, so that pixels near each other learn from each other. One point is one
            kernel for the whole image.
        grid_decays: The price in the kernels of each grid.
    """

    decay: NotNegative = 0.0
    distance_power: NotNegative = 0.0
    grids: tuple[Annotated[int, Field(ge=1)], ...] = ()
    grid_decays: tuple[NotNegative, ...] = ()

    @model_validator(mode="after")
    def _each_grid_has_its_price(self) -> Self:
        if len(self.grids) != len(self.grid_decays):
            raise ValueError(
                f"{len(self.grids)} grids need as many grid_decays, got {len(self.grid_decays)}"
            )
        return self


class Model(GenerativeModel):
    """p(x_d = 1 | x_<d) = σ(b_d + Σ_{k<d} W_dk x_k), pixels in raster order.

    Only the strictly lower triangle of W is used: D(D-1)/2 + D parameters. While they are learnt
    they may be a sum of parts with a normal prior each: W_dk = Δ_dk + Σ_g K_g(d)[k - d], where the
    kernels K_g(d), weights by where k lies as seen from d, are interpolated between the points of
    a coarse grid over the image. What is shipped is the sum.

    Source:
        Neal, "Connectionist learning of belief networks", Artificial Intelligence 56, 1992,
        section 3, without hidden units; Frey, "Graphical Models for Machine Learning and Digital
        Communication", 1998, section 3.2.
    """

    density = "exact"
    draws = "planes"
    values = ("binary",)

    def build(self, config: Config) -> None:
        """Create W (D, D) and b (D,), all zero: a convex problem has no symmetry to break."""
        num_dims = self.image.num_dims
        self.W = nn.Parameter(torch.zeros(num_dims, num_dims))
        self.b = nn.Parameter(torch.zeros(num_dims))
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(num_dims))
        self.config = config
        channels, height, width = self.image.shape
        if channels > 1 and (config.grids or config.decay):
            raise ValueError(f"a prior is for grey images, these have {channels} channels")
        place, prices = offsets(height, width)
        self.place: Tensor
        self.prices: Tensor
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("prices", prices**config.distance_power, persistent=False)
        self.kernels = nn.ParameterList(torch.zeros(len(prices), g, g) for g in config.grids)

    @property
    def noise(self) -> Noise:
        """One uniform draw per pixel."""
        return Noise(prior="uniform", shape=self.image.shape, latent=False)

    def num_parameters(self) -> int:
        """The strictly lower triangle and the biases."""
        num_dims = self.image.num_dims
        return num_dims * (num_dims - 1) // 2 + num_dims

    def initialize(self, images: Tensor) -> None:
        """Start as the independent model, and remember the mean image."""
        self.mean.copy_(images.flatten(1).float().mean(dim=0) / 255)
        with torch.no_grad():
            self.b.copy_(mean_pixel_logits(images))

    def weights(self) -> Tensor:
        """Return W with zeros on and above the diagonal, (D, D)."""
        size = self.image.shape[1:]
        everywhere = [
            functional.interpolate(kernels[None], size, mode="bilinear", align_corners=True)[0]
            for kernels in self.kernels
        ]
        if not everywhere:
            return self.W.tril(-1)
        shared = torch.stack(everywhere).sum(dim=0).flatten(1)  # (offsets, D)
        return (self.W + shared.t().gather(1, self.place)).tril(-1)

    def penalty(self) -> Tensor | float:
        """Return minus the logarithm of the prior of all parts, in nats per training image."""
        prices = self.prices[:, None, None]
        parts = zip(self.config.grid_decays, self.kernels, strict=True)
        penalty: Tensor | float = sum(
            decay * (prices * kernels.square()).sum() for decay, kernels in parts
        )
        if self.config.decay:
            single = self.prices[self.place] * self.W.square()
            penalty = penalty + self.config.decay * single.tril(-1).sum()
        return penalty

    def biases(self) -> Tensor:
        """Return the biases that go with uncentred pixels, (D,).

        Training subtracts the mean image, which makes weights and biases nearly independent of
        each other and gradient descent several times as fast; the model is the same.
        """
        return self.b - self.weights() @ self.mean

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x) in nats, (N, C, H, W) -> (N,)."""
        values = images.flatten(1)
        logits = torch.addmm(self.b, values - self.mean, self.weights().t())
        return bernoulli_log_prob(values, logits).sum(dim=1)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the two graphs over the masked weights."""
        return {
            "generate": Generate(self.weights(), self.biases()),
            "log_prob": LogProb(self.weights(), self.biases()),
        }


def offsets(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Number where a pixel k lies as seen from a later pixel d.

    Returns:
        The number for each d and k, (D, D), 0 where k is not before d; and 1 + r for each number,
        (H · (2W - 1),), r the distance in pixels.
    """
    position = torch.arange(height * width)
    row, column = position // width, position % width
    rows = row[:, None] - row
    columns = column - column[:, None] + width - 1
    is_before = position[:, None] > position
    place = torch.where(is_before, rows * (2 * width - 1) + columns, 0)
    distance = torch.hypot(
        torch.arange(height)[:, None].float(), torch.arange(1.0 - width, width)[None]
    )
    return place, 1 + distance.flatten()


class Generate(nn.Module):
    """noise -> image: a pixel that is drawn adds its column of W to all logits."""

    def __init__(self, weights: Tensor, biases: Tensor) -> None:
        super().__init__()
        self.columns = nn.Buffer(weights.t()[:, :, None].contiguous())  # (D, D, 1)
        self.biases = nn.Buffer(biases)
        self.positions = nn.Buffer(torch.arange(len(biases))[:, None])  # (D, 1)

    def forward(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Sample, (N, C, H, W) -> (N, C, H, W)."""
        limits = thresholds(noise, temperature, known, known_mask)

        def step(logits: Tensor, pixel: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            column, position, limit = pixel  # (D, 1), (1,), (1, N)
            value = (limit < logits.index_select(0, position)).to(logits.dtype)
            return torch.addmm(logits, column, value), value + 0

        start = self.biases[:, None] + 0 * noise.flatten(1)[:, 0]
        values: Tensor
        _, values = scan(step, start, (self.columns, self.positions, limits.t()[:, None]))
        return values[:, 0].t().reshape(noise.shape)


class LogProb(nn.Module):
    """image -> log_prob, conditional_log_prob by one masked matrix product."""

    def __init__(self, weights: Tensor, biases: Tensor) -> None:
        super().__init__()
        self.weights, self.biases = nn.Buffer(weights.contiguous()), nn.Buffer(biases)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score, (N, C, H, W) -> (N,), (N, C, H, W)."""
        values = image.flatten(1)
        # What the mask hides must not count even where it is no number: 0 · NaN is NaN.
        bits = (values > 0.5).to(values.dtype)
        logits = torch.addmm(self.biases, bits, self.weights.t())
        log_prob, conditionals = score_binary(values, logits)
        return log_prob, conditionals.reshape(image.shape)
