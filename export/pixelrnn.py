"""PixelRNN: what its families share, from the first masked convolution to the head.

Maps are columns: shape (channels, H, W, N), so that a convolution is one product of a matrix with
a map, a row of pixels is one slice, and a graph multiplies weights by (channels, W·N).

Source:
    van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel Recurrent Neural Networks", 2016,
    arXiv:1601.06759.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from export.layers import affine, at_least_two, scan
from export.model import FamilyConfig, GenerativeModel
from export.outputs import BinaryPixels, GreyLevels
from service.manifest import Noise, Role

MaskType = Literal["A", "B"]
Memory = tuple[Tensor, ...]
Step = tuple[Memory, Memory]
Drawn = tuple[Memory, Tensor]
Scored = tuple[Tensor, Memory]

# The first convolution is 7×7: three rows above, three columns to either side.
_RADIUS = 3


class PixelRnnConfig(FamilyConfig):
    """Hyperparameters.

    Attributes:
        num_layers: Number of recurrent layers.
        hidden: h, features of a state; the residual stream between layers has 2h.
        head: Features between the two 1×1 convolutions of the head.
        levels: Grey levels per value of 8-bit images; 256 is all of them, fewer round the values.
    """

    num_layers: int = Field(default=7, gt=0)
    hidden: int = Field(default=16, gt=0)
    head: int = Field(default=32, gt=0)
    levels: int = Field(default=256, ge=2, le=256)


def colour_mask(mask_type: MaskType, num_out: int, num_in: int, num_groups: int) -> Tensor:
    """Tell which features of a pixel may see which features of the same pixel.

    Features come in as many equal groups as the image has channels, in the order R, G, B. Type A
    sees the groups before its own, type B its own too; so with one channel A sees nothing and B
    everything.

    Returns:
        1 where a weight is free, shape (num_out, num_in).

    Source:
        arXiv:1601.06759, section 3.4.
    """
    of_out = torch.arange(num_out) * num_groups // num_out
    of_in = torch.arange(num_in) * num_groups // num_in
    sees = of_out[:, None] > of_in if mask_type == "A" else of_out[:, None] >= of_in
    return sees.float()


class MaskedLinear(nn.Module):
    """A matrix that multiplies columns, some of its weights fixed at 0.

    Args:
        mask: 1 where a weight is free, shape (out, in).
        bias: Whether to add a bias.
    """

    def __init__(self, mask: Tensor, *, bias: bool = True) -> None:
        super().__init__()
        num_out, num_in = mask.shape
        bound = num_in**-0.5
        self.mask = nn.Buffer(mask, persistent=False)
        self.is_masked = bool((mask == 0).any())
        self.free = nn.Parameter(torch.empty(num_out, num_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_out)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The masked matrix, shape (out, in)."""
        return self.free * self.mask if self.is_masked else self.free

    def forward(self, columns: Tensor) -> Tensor:
        """Multiply, (in, …) -> (out, …)."""
        flat = columns.flatten(1)
        bias = None if self.bias is None else self.bias[:, None]
        product = affine(bias, self.weight, flat)
        return torch.unflatten(product, 1, columns.shape[1:])


class Context(nn.Module):
    """The first layer: a 7×7 convolution of the image with mask A.

    Args:
        num_channels: Channels of the image, C.
        num_features: Channels of the map that it gives.
    """

    def __init__(self, num_channels: int, num_features: int) -> None:
        super().__init__()
        side = 2 * _RADIUS + 1
        self.above = MaskedLinear(torch.ones(num_features, _RADIUS * side * num_channels))
        beside = torch.ones(num_features, _RADIUS * num_channels)
        centre = colour_mask("A", num_features, num_channels, num_channels)
        # Of a grey pixel nothing may be seen: its weights would all be masked.
        self.sees_centre = num_channels > 1
        masks = [beside, centre] if self.sees_centre else [beside]
        self.beside = MaskedLinear(torch.cat(masks, dim=1), bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """Convolve, (C, H, W, N) -> (features, H, W, N)."""
        height, width = values.shape[1:3]
        padded = functional.pad(values, (0, 0, _RADIUS, _RADIUS, _RADIUS, 0))
        above = [
            padded[:, i : i + height, j : j + width]
            for i in range(_RADIUS)
            for j in range(2 * _RADIUS + 1)
        ]
        left = [padded[:, _RADIUS:, j : j + width] for j in range(_RADIUS)]
        centre = [values] if self.sees_centre else []
        features: Tensor = self.above(torch.cat(above)) + self.beside(torch.cat(left + centre))
        return features

    def row(self, rows: Tensor) -> Tensor:
        """Add up what a row of pixels sees in the three rows above it.

        Args:
            rows: The three rows, shape (3, C, W + 6, N), with margins of zeros.

        Returns:
            Shape (features, W, N).
        """
        width = rows.shape[2] - 2 * _RADIUS
        taps = [rows[i, :, j : j + width] for i in range(_RADIUS) for j in range(2 * _RADIUS + 1)]
        features: Tensor = self.above(torch.cat(taps))
        return features

    def pixel(self, above: Tensor, left: Tensor, values: Tensor) -> Tensor:
        """Add what a pixel sees in its row: its three left neighbours and its own first values.

        Args:
            above: What it sees above, shape (features, N).
            left: The three pixels, shape (3·C, N).
            values: Its own values, shape (C, N); what is not drawn yet is masked.

        Returns:
            Shape (features, N).
        """
        seen = torch.cat([left, values]) if self.sees_centre else left
        return affine(above, self.beside.weight, seen)


class Head(nn.Module):
    """Two 1×1 convolutions with mask B, each after a ReLU; it starts by giving 0.

    Args:
        num_features: Features of the map.
        num_hidden: Features between the two.
        num_channels: Channels of the image, C.
        num_scores: Scores per value.
    """

    def __init__(
        self, num_features: int, num_hidden: int, num_channels: int, num_scores: int
    ) -> None:
        super().__init__()
        shapes = ((num_hidden, num_features), (num_channels * num_scores, num_hidden))
        masks = [colour_mask("B", *shape, num_channels) for shape in shapes]
        self.hidden = MaskedLinear(masks[0])
        self.scores = MaskedLinear(masks[1], bias=False)  # the pixels have their own biases
        nn.init.zeros_(self.scores.free)

    def forward(self, features: Tensor) -> Tensor:
        """Score, (features, …) -> (C·K, …)."""
        hidden = torch.relu(self.hidden(torch.relu(features)))
        scores: Tensor = self.scores(hidden)
        return scores


class PixelRnn(GenerativeModel):
    """p(x) = Π_i p(x_i | x_<i), pixels in raster order, the values of a pixel in order R, G, B.

    A 7×7 convolution with mask A, residual recurrent layers, and a head of 1×1 convolutions. A
    family says what a recurrent layer is: a module that maps a stream of 2h features to one, and
    three functions that do the same pixel by pixel.
    """

    density = "exact"
    draws = "pixels"
    values = ("binary", "8-bit")

    def build(self, config: PixelRnnConfig) -> None:
        """Create the layers.

        Raises:
            ValueError: The features do not fall into equal groups, one per channel.
        """
        num_channels = self.image.shape[0]
        if config.hidden % num_channels or config.head % num_channels:
            raise ValueError(
                f"hidden and head must be multiples of the {num_channels} channels, got "
                f"{config.hidden} and {config.head}"
            )
        width = 2 * config.hidden
        binary = self.image.values == "binary"
        self.pixels = BinaryPixels(self.image) if binary else GreyLevels(self.image, config.levels)
        self.context = Context(num_channels, width)
        self.layers: Any = nn.ModuleList(  # of what `make_layer` gives
            self.make_layer(config.hidden, num_channels) for _ in range(config.num_layers)
        )
        self.head = Head(width, config.head, num_channels, self.pixels.num_scores)

    @abstractmethod
    def make_layer(self, num_hidden: int, num_channels: int) -> nn.Module:
        """Create a recurrent layer: (2h, H, W, N) -> (2h, H, W, N).

        Its `forward` is fast in training; its `scanned` gives the same and can be exported.
        """

    @property
    def noise(self) -> Noise:
        """One uniform draw per value."""
        return Noise(prior="uniform", shape=self.image.shape, latent=False)

    def num_parameters(self) -> int:
        """Count the weights that no mask fixes."""
        masked = [module for module in self.modules() if isinstance(module, MaskedLinear)]
        fixed = sum(int((module.mask == 0).sum()) for module in masked)
        return super().num_parameters() - fixed

    def initialize(self, images: Tensor) -> None:
        """Start as the model whose pixels are independent."""
        self.pixels.initialize(images)

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x) in nats, (N, C, H, W) -> (N,)."""
        values = self.pixels.values(images)
        features = self.context(values)
        for layer in self.layers:
            features = layer(features)
        log_prob: Tensor = self.pixels.log_prob(self.head(features), values).sum(dim=(0, 1, 2))
        return log_prob

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the two graphs."""
        return {"generate": Generate(self), "log_prob": LogProb(self)}

    @abstractmethod
    def start_memory(self, blank: Tensor) -> Memory:
        """Return what the layers remember above the first row.

        Args:
            blank: Zeros, shape (1, W, N).
        """

    @abstractmethod
    def before_row(self, memory: Memory) -> Step:
        """Prepare a row: do at once what depends on nothing in it.

        Returns:
            For each column what its pixel reads, shape (W, …, N) each, and what the layers
            remember left of the first pixel.
        """

    @abstractmethod
    def pixel(
        self, features: Tensor, left: Memory, column: Memory
    ) -> tuple[Tensor, Memory, Memory]:
        """Take one step of every layer.

        Args:
            features: Of the first layer, shape (2h, N).
            left: What the layers remember of the pixel to the left.
            column: What `before_row` prepared for this column.

        Returns:
            Features for the head, what to remember for the next pixel, and what `after_row`
            needs, stacked over the columns.
        """

    @abstractmethod
    def after_row(self, memory: Memory, rows: Memory) -> Memory:
        """Return what to remember for the next row.

        Args:
            memory: What was remembered before this row.
            rows: The third part of what `pixel` gave, shape (W, …, N) each.
        """


class Generate(nn.Module):
    """noise -> image: a scan over rows of a scan over pixels, one step of each layer per value."""

    def __init__(self, model: PixelRnn) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Sample, (N, C, H, W) -> (N, C, H, W)."""
        model = self.model
        num_channels = model.image.shape[0]
        inputs = (at_least_two(part) for part in (noise, temperature, known, known_mask))
        limits = model.pixels.limits(*inputs)  # (H, W, C, ·, N)
        blank = torch.zeros_like(limits[0, :, 0, :1]).transpose(0, 1)  # (1, W, N)

        def draw_row(carry: Memory, row_limits: Tensor) -> Drawn:
            above, *memory = carry
            columns, left = model.before_row(tuple(memory))
            context = model.context.row(above).transpose(0, 1)  # (W, 2h, N)

            def draw_pixel(carry: Memory, column: Memory) -> Step:
                left_values, *left = carry
                context, limits, *prepared = column
                values = list(torch.split(0 * limits[:, 0], 1))
                for channel in range(num_channels):
                    features = model.context.pixel(context, left_values, torch.cat(values))
                    features, remembered, kept = model.pixel(features, tuple(left), tuple(prepared))
                    scores = torch.split(model.head(features), model.pixels.num_scores)[channel]
                    values[channel] = model.pixels.draw(scores, limits[channel], channel)
                drawn = torch.cat(values)
                newest = torch.cat([left_values[num_channels:], drawn])
                return (newest, *remembered), (drawn + 0, *kept)

            start = (blank[:, 0].repeat(_RADIUS * num_channels, 1), *left)
            _, (drawn, *kept) = scan(draw_pixel, start, (context, row_limits, *columns))
            row = drawn.transpose(0, 1)[None]  # (1, C, W, N)
            above = torch.cat([above[1:], functional.pad(row, (0, 0, _RADIUS, _RADIUS))])
            return (above, *model.after_row(tuple(memory), tuple(kept))), row[0] + 0

        margins = functional.pad(blank, (0, 0, _RADIUS, _RADIUS))
        above = margins[None].repeat(_RADIUS, num_channels, 1, 1)
        rows: Tensor
        _, rows = scan(draw_row, (above, *model.start_memory(blank)), limits)  # (H, C, W, N)
        return rows.permute(3, 1, 0, 2)[: noise.shape[0]]


class LogProb(nn.Module):
    """image -> log_prob, conditional_log_prob: each layer over all pixels, the head by rows."""

    def __init__(self, model: PixelRnn) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score, (N, C, H, W) -> (N,), (N, C, H, W)."""
        model = self.model
        # There are W·N or H·N columns: a lone one only where the image is a line.
        is_line = 1 in model.image.shape[1:]
        values = model.pixels.values(at_least_two(image) if is_line else image)
        features = model.context(values)
        for layer in model.layers:
            features = layer.scanned(features)

        def score_row(carry: Tensor, row: Memory) -> Scored:
            features, row_values = row
            scores = model.head(features.flatten(1))
            return carry + 0, model.pixels.row_terms(scores, row_values.flatten(1))

        nothing = 0 * (values[0, 0, 0] > 0.5).to(values.dtype)
        slices = (features.transpose(0, 1), values.transpose(0, 1))
        _, terms = scan(score_row, nothing, slices)  # (H, C, W·N) each
        rows = [
            torch.unflatten(term, 2, values.shape[2:]).permute(3, 1, 0, 2).flatten(1)
            for term in terms
        ]
        flat = values.permute(3, 0, 1, 2).flatten(1)
        log_prob, conditionals = model.pixels.score(flat, tuple(rows))
        if is_line:
            log_prob, conditionals = log_prob[: image.shape[0]], conditionals[: image.shape[0]]
        return log_prob, conditionals.reshape(image.shape)


def pairs(memory: Memory) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk over a memory that holds two tensors per layer."""
    return zip(memory[::2], memory[1::2], strict=True)


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return h and c from the gates i, f, o, g before their nonlinearity, (…, 4h, M)."""
    num_hidden = cell.shape[-2]
    sigmoids, candidate = torch.split(gates, [3 * num_hidden, num_hidden], dim=-2)
    write, keep, read = torch.split(torch.sigmoid(sigmoids), num_hidden, dim=-2)
    new_cell = keep * cell + write * torch.tanh(candidate)
    return read * torch.tanh(new_cell), new_cell
