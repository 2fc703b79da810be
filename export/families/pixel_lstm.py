"""An LSTM along the raster: the character model of text, for pixels."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from export.layers import (
    affine,
    at_least_two,
    bernoulli_log_prob,
    mean_pixel_logits,
    scan,
    score_binary,
    thresholds,
)
from export.model import FamilyConfig, GenerativeModel
from service.manifest import Noise, Role


class Config(FamilyConfig):
    """Hyperparameters.

    Attributes:
        hidden: H, size of the state.
        radius: Pixels up to so many rows above and columns beside are inputs of a step.
    """

    hidden: int = Field(default=64, gt=0)
    radius: int = Field(default=3, ge=0)


class Model(GenerativeModel):
    """p(x_d = 1 | x_<d) = σ(v·h_d + u·w_d + b_d), h_d the state of an LSTM that read w_1 … w_d.

    w_d are the pixels near d that come before it in raster order, those above among them: along
    the raster they lie dozens of steps back, where a plain LSTM has long forgotten them. Row and
    column are inputs, too. All of this lies in the past of pixel d or is no pixel at all; h_d
    depends on all pixels before d. Where a window would leave the image at the side it goes on at
    the other side, one row higher or lower, which is as well in the past.

    Source:
        Hochreiter, Schmidhuber, "Long Short-Term Memory", Neural Computation 9, 1997; Graves,
        "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, section 2, for
        characters.
    """

    density = "exact"
    draws = "planes"
    values = ("binary",)

    def build(self, config: Config) -> None:
        """Create the LSTM, u (K,), v (H,) and b (D,)."""
        channels, height, width = self.image.shape
        self.distances = past_distances(width, config.radius)
        num_inputs = len(self.distances)
        self.lstm = nn.LSTM(num_inputs + height + width, config.hidden)
        forget = slice(config.hidden, 2 * config.hidden)
        with torch.no_grad():  # a state that is kept at first: σ(1) instead of σ(0)
            self.lstm.get_parameter("bias_ih_l0")[forget] = 1
        self.u = nn.Parameter(torch.zeros(num_inputs))
        self.v = nn.Parameter(torch.zeros(config.hidden))
        self.b = nn.Parameter(torch.zeros(self.image.num_dims))
        self.places: Tensor  # row and column of each pixel, one-hot, (D, height + width)
        rows = functional.one_hot(torch.arange(height).repeat_interleave(width), height)
        columns = functional.one_hot(torch.arange(width).repeat(height), width)
        places = torch.cat([rows, columns], dim=1).float()
        self.register_buffer("places", places.repeat(channels, 1))

    @property
    def noise(self) -> Noise:
        """One uniform draw per pixel."""
        return Noise(prior="uniform", shape=self.image.shape, latent=False)

    def initialize(self, images: Tensor) -> None:
        """Start as the independent model: u and v are 0, b holds the logits of the mean image."""
        with torch.no_grad():
            self.b.copy_(mean_pixel_logits(images))

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x) in nats, (N, C, H, W) -> (N,)."""
        values = images.flatten(1)
        windows = past_windows(values.t(), self.distances)  # (D, N, K)
        places = self.places[:, None].expand(-1, len(values), -1)
        states, _ = self.lstm(torch.cat([windows, places], dim=2))
        logits = states @ self.v + windows @ self.u + self.b[:, None]
        return bernoulli_log_prob(values, logits.t()).sum(dim=1)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the two graphs; both scan over the pixels, images as columns."""
        return {"generate": Generate(self), "log_prob": LogProb(self)}


def past_distances(width: int, radius: int) -> list[int]:
    """Return how far back along the raster the pixels of a window lie, in ascending order.

    Example:
        >>> past_distances(28, 1)
        [1, 27, 28, 29]
    """
    columns = range(-radius, radius + 1)
    steps = {row * width + column for row in range(radius + 1) for column in columns}
    return sorted(step for step in steps if step > 0)


def past_windows(columns: Tensor, distances: list[int]) -> Tensor:
    """Gather what lies at these distances before each pixel, 0 before the first one.

    Args:
        columns: Pixels in raster order, shape (D, N).
        distances: K steps back along the raster.

    Returns:
        Shape (D, N, K).
    """
    num_dims, num_rows = columns.shape
    if not distances:
        return columns.new_zeros(num_dims, num_rows, 0)
    farthest = max(distances)
    padded = functional.pad(columns, (0, 0, farthest, 0))
    shifted = [padded[farthest - step : farthest - step + num_dims] for step in distances]
    return torch.stack(shifted, dim=2)


class Step(nn.Module):
    """One step of the LSTM on columns, for both graphs.

    The state holds h and c, (H, N) each, and the last pixels, (L, N), from which the window is
    read.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        lstm, num_inputs = model.lstm, len(model.distances)
        weight, recurrent = lstm.get_parameter("weight_ih_l0"), lstm.get_parameter("weight_hh_l0")
        inputs, places = weight[:, :num_inputs], weight[:, num_inputs:]
        biases = model.places @ places.t()
        biases = biases + lstm.get_parameter("bias_ih_l0") + lstm.get_parameter("bias_hh_l0")
        self.biases = nn.Buffer(biases[:, :, None].contiguous())  # (D, 4H, 1)
        self.weights = nn.Buffer(torch.cat([inputs, recurrent], dim=1))  # (4H, K + H)
        self.readout = nn.Buffer(torch.cat([model.u, model.v])[None])  # (1, K + H)
        self.b = nn.Buffer(model.b[:, None, None])  # (D, 1, 1)
        self.hidden = lstm.hidden_size
        self.num_past = max(model.distances, default=1)
        positions = [self.num_past - distance for distance in model.distances]
        self.positions = nn.Buffer(torch.tensor(positions, dtype=torch.int64))

    def start(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first h, c and past for rows of shape (N, D): all zero."""
        zeros = (0 * (rows[:, 0] > 0.5)).to(torch.float32)
        state = torch.zeros(self.hidden, 1) + zeros
        return state, state + 0, torch.zeros(self.num_past, 1) + zeros

    def logits_of(
        self, state: tuple[Tensor, Tensor, Tensor], biases: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read one window, -> logits (1, N), h (H, N), c (H, N)."""
        hidden, cell, past = state
        window = past.index_select(0, self.positions)
        gates = affine(biases, self.weights, torch.cat([window, hidden]))
        enter, keep, candidate, leave = torch.split(gates, self.hidden)
        cell = torch.sigmoid(keep) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
        hidden = torch.sigmoid(leave) * torch.tanh(cell)
        return torch.addmm(b, self.readout, torch.cat([window, hidden])), hidden, cell


class Generate(Step):
    """noise -> image."""

    def forward(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Sample, (N, C, H, W) -> (N, C, H, W)."""
        limits = at_least_two(thresholds(noise, temperature, known, known_mask))

        def step(
            state: tuple[Tensor, Tensor, Tensor], pixel: tuple[Tensor, ...]
        ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
            biases, b, limit = pixel  # (4H, 1), (1, 1), (1, N)
            logits, hidden, cell = self.logits_of(state, biases, b)
            value = (limit < logits).to(logits.dtype)
            return (hidden, cell, torch.cat([state[2][1:], value])), value + 0

        values: Tensor
        _, values = scan(step, self.start(limits), (self.biases, self.b, limits.t()[:, None]))
        return values[:, 0].t()[: noise.shape[0]].reshape(noise.shape)


class LogProb(Step):
    """image -> log_prob, conditional_log_prob."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score, (N, C, H, W) -> (N,), (N, C, H, W)."""
        values = image.flatten(1)
        rows = at_least_two(values)

        def step(
            state: tuple[Tensor, Tensor, Tensor], pixel: tuple[Tensor, ...]
        ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
            biases, b, value = pixel  # (4H, 1), (1, 1), (1, N)
            logits, hidden, cell = self.logits_of(state, biases, b)
            return (hidden, cell, torch.cat([state[2][1:], value])), logits + 0

        logits: Tensor
        _, logits = scan(step, self.start(rows), (self.biases, self.b, rows.t()[:, None]))
        log_prob, conditionals = score_binary(values, logits[:, 0].t()[: values.shape[0]])
        return log_prob, conditionals.reshape(image.shape)
