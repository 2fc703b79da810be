"""EoNADE: one network for all orders of the pixels, and the mixture of a few of them."""

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from export.layers import (
    affine,
    at_least_two,
    bernoulli_log_prob,
    log_mean_exp,
    mean_pixel_logits,
    scan,
    score_binary,
    thresholds,
)
from export.model import Batch, FamilyConfig, GenerativeModel
from export.sweep import chain_log_prob
from service.manifest import Noise, Role


class Config(FamilyConfig):
    """Hyperparameters.

    Attributes:
        hidden: Hidden units of each layer, first to last.
        num_orders: M, how many orders the shipped model mixes.
        orders_seed: Of the generator that draws these orders.
        training_orders: Which orders are trained: `any` of the D!, as in the paper, so that any
            mixture could be taken of one training; or those of the `mixture` alone, which is all
            that the shipped model asks for, and much easier to learn. With one hidden layer these
            are trained on log p(x | o) itself, whose D conditionals cost no more than one pass of
            a deep network: no estimate, hence no noise but that of the images and the order.
    """

    hidden: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(512, 512), min_length=1)
    num_orders: int = Field(default=8, ge=1)
    orders_seed: int = 0
    training_orders: Literal["any", "mixture"] = "any"


class Model(GenerativeModel):
    """p(x) = 1/M Σ_o p(x | o), the mixture of M fixed orders under one deep network.

    The network predicts all pixels from those that are known: it sees x ⊙ m and the mask m, and
    training draws a place in an order anew for each image, or takes all places where that is
    cheap. For an order o, p(x | o) = Π_d p(x_{o_d} | x_{o_<d}). Averaging *logits* over orders
    would look better, and would be no distribution.

    Pixels cannot be fixed before drawing: the exact conditional given an arbitrary set of known
    pixels needs a sum over all values of the pixels that an order visits between them. It is
    tractable only where the known pixels come first in every order of the mixture, which no set
    of a useful kind does for random orders. For the same reason there is no conditional along
    the raster.

    Source:
        Uria, Murray, Larochelle, "A Deep and Tractable Density Estimator", ICML 2014,
        arXiv:1310.1757, equations 9 to 14 and section 4.1 (masks as input), section 3.1
        (ensembles).
    """

    density = "exact"
    values = ("binary",)

    def build(self, config: Config) -> None:
        """Create W, U (D, H), c (H,) for x ⊙ m and m, the inner layers, V (D, H) and b (D,)."""
        num_dims, first, last = self.image.num_dims, config.hidden[0], config.hidden[-1]
        scale = 1 / math.sqrt(num_dims)
        self.W = nn.Parameter(scale * torch.randn(num_dims, first))
        self.U = nn.Parameter(scale * torch.randn(num_dims, first))
        self.c = nn.Parameter(torch.zeros(first))
        sizes = zip(config.hidden[:-1], config.hidden[1:], strict=True)
        self.inner = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.V = nn.Parameter(torch.zeros(num_dims, last))
        self.b = nn.Parameter(torch.zeros(num_dims))
        self.training_orders = config.training_orders
        rng = np.random.default_rng(config.orders_seed)
        orders = [rng.permutation(num_dims) for _ in range(config.num_orders)]
        self.orders: Tensor
        self.register_buffer("orders", torch.from_numpy(np.stack(orders)))

    @property
    def noise(self) -> Noise:
        """One uniform draw for the order, then one for each of its pixels."""
        return Noise(prior="uniform", shape=(1 + self.image.num_dims,), latent=False)

    def initialize(self, images: Tensor) -> None:
        """Start as the independent model: V is 0, b holds the logits of the mean image."""
        with torch.no_grad():
            self.b.copy_(mean_pixel_logits(images))

    def logits(self, values: Tensor, mask: Tensor) -> Tensor:
        """Predict all pixels from those that the mask lets through, (N, D), (N, D) -> (N, D)."""
        inputs = torch.cat([values * mask, mask], dim=1)
        hidden = torch.addmm(self.c, inputs, torch.cat([self.W, self.U])).relu()
        for layer in self.inner:
            hidden = layer(hidden).relu()
        return torch.addmm(self.b, hidden, self.V.t())

    def nll_of_one_order(self, images: Tensor) -> Tensor:
        """Compute or estimate -log p(x | o) in nats for random orders o, (N, C, H, W) -> (N,)."""
        if self.inner or self.training_orders == "any":
            return self.estimated_nll(images)
        order = self.orders[torch.randint(len(self.orders), ())]
        values = images.flatten(1).t().index_select(0, order)
        inputs = torch.stack([values, torch.ones_like(values)], dim=2)
        W, U, V, b = (tensor.index_select(0, order) for tensor in (self.W, self.U, self.V, self.b))
        weights = torch.stack([W, U], dim=1)
        return -chain_log_prob(inputs, weights, V, b, self.c, rectified=True)

    def estimated_nll(self, images: Tensor) -> Tensor:
        """Estimate -log p(x | o) in nats for an order and a place in it drawn for each image.

        D/(D-d) Σ_{i ≥ d} -log p(x_{o_i} | x_{o_<d}) is right on average over d and all D! orders,
        and the mixture is better than this average by Jensen's inequality. Among few orders it
        is too large: it predicts pixels from less than what is known at their turn.

        Returns:
            Shape (N,).
        """
        values = images.flatten(1)
        num_rows, num_dims = values.shape
        # The numbers of known pixels are spread evenly over a batch, in any case the same mean.
        shares = (torch.randperm(num_rows) + torch.rand(num_rows)) / num_rows
        num_known = (shares * num_dims).long().clamp(max=num_dims - 1)[:, None]
        mask = (self.random_places(num_rows) < num_known).to(values.dtype)
        surprise = -bernoulli_log_prob(values, self.logits(values, mask)) * (1 - mask)
        return surprise.sum(dim=1) * num_dims / (num_dims - num_known[:, 0])

    def random_places(self, num_rows: int) -> Tensor:
        """Draw orders to train on, and return when each pixel has its turn, shape (N, D)."""
        if self.training_orders == "any":
            return torch.rand(num_rows, self.image.num_dims).argsort(dim=1)
        return self.orders.argsort(dim=1)[torch.randint(len(self.orders), (num_rows,))]

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x) of the mixture in nats, (N, C, H, W) -> (N,)."""
        with torch.no_grad():
            return torch.cat([LogProb(self)(chunk) for chunk in torch.split(images, 100)])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the negative log-likelihood of one order, or an estimate, in nats per image."""
        loss = self.nll_of_one_order(batch[0]).mean()
        self.log("train_nll_of_one_order", loss, prog_bar=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same of held-out images; the exact figure takes minutes."""
        nll = self.nll_of_one_order(batch[0]).mean()
        self.log("val_nll_of_one_order", nll, prog_bar=True, batch_size=len(batch[0]))

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the two graphs; both scan over the places in the orders, images as columns."""
        return {"generate": Generate(self), "log_prob": LogProb(self)}


class Sweep(nn.Module):
    """One scan along the orders, each column along its own.

    What depends on the order is read for all M orders and multiplied with the columns' choices,
    0 or 1: a small matrix product that changes no bit. The first layer is carried from pixel to
    pixel as in NADE.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.W, self.U, self.V, self.c, self.b = model.W, model.U, model.V, model.c, model.b
        self.inner = model.inner
        self.orders = model.orders

    def logits_of(self, activation: Tensor, pixels: Tensor, choices: Tensor) -> Tensor:
        """Return the logit of each column's pixel, (H, N), (M,), (M, N) -> (1, N)."""
        hidden = activation.relu()
        for layer in self.inner:
            assert isinstance(layer, nn.Linear)
            hidden = affine(layer.bias[:, None], layer.weight, hidden).relu()
        biases = self.b.index_select(0, pixels)[:, None]
        logits = affine(biases, self.V.index_select(0, pixels), hidden)  # (M, N)
        return (logits * choices).sum(dim=0, keepdim=True)

    def advance(self, activation: Tensor, pixels: Tensor, choices: Tensor, value: Tensor) -> Tensor:
        """Let the columns know one more pixel, (H, N), (M,), (M, N), (1, N) -> (H, N)."""
        weights = torch.cat([self.W.index_select(0, pixels), self.U.index_select(0, pixels)])
        return torch.addmm(activation, weights.t(), torch.cat([choices * value, choices]))


class Generate(Sweep):
    """noise -> image: the first uniform chooses the order, the others draw along it."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.places = nn.Buffer(model.orders.argsort(dim=1))  # (M, D): when a pixel is drawn
        self.shape = model.image.shape

    def forward(self, noise: Tensor, temperature: Tensor) -> Tensor:
        """Sample, (N, 1 + D) -> (N, C, H, W)."""
        num_rows = noise.shape[0]
        noise, temperature = at_least_two(noise), at_least_two(temperature)
        limits = thresholds(noise[:, 1:], temperature)
        num_orders = len(self.orders)
        chosen = (noise[:, 0] * num_orders).long().clamp(max=num_orders - 1)  # (N,)
        choices = (torch.arange(num_orders)[:, None] == chosen).to(noise.dtype)  # (M, N)

        def step(activation: Tensor, place: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            pixels, limit = place  # (M,), (1, N)
            value = (limit < self.logits_of(activation, pixels, choices)).to(activation.dtype)
            return self.advance(activation, pixels, choices, value), value + 0

        start = self.c[:, None] + 0 * noise[:, 0]
        values: Tensor
        _, values = scan(step, start, (self.orders.t(), limits.t()[:, None]))
        drawn = values[:, 0].t()  # (N, D), in the order of drawing
        images = drawn.gather(1, self.places.index_select(0, chosen))
        return images[:num_rows].reshape(-1, *self.shape)


class LogProb(Sweep):
    """image -> log_prob: one sweep per order, then the mean of the probabilities."""

    def forward(self, image: Tensor) -> Tensor:
        """Score, (N, C, H, W) -> (N,)."""
        values = at_least_two(image.flatten(1))
        start = self.c[:, None] + 0 * values[:, 0]
        certain = 1 + 0 * values[None, :, 0]  # (1, N): all columns follow one order

        def step(activation: Tensor, place: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            pixel, value = place  # (1,), (1, N)
            logits = self.logits_of(activation, pixel, certain)
            return self.advance(activation, pixel, certain, value), logits + 0

        def sweep(count: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
            ordered = values.index_select(1, order)
            _, logits = scan(step, start, (order[:, None], ordered.t()[:, None]))
            given_order, _ = score_binary(ordered, logits[:, 0].t())
            return count + 1, given_order

        given_orders: Tensor
        _, given_orders = scan(sweep, torch.zeros(()), self.orders)  # (M, N)
        return log_mean_exp(given_orders.t())[: image.shape[0]]
