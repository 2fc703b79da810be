"""PixelRNN with Diagonal BiLSTM layers: a pixel sees the whole image before it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.layers import affine, scan
from export.pixelrnn import (
    MaskedLinear,
    Memory,
    PixelRnn,
    PixelRnnConfig,
    Step,
    colour_mask,
    lstm_cell,
    pairs,
)
from export.recurrence import DiagonalRecurrence

Config = PixelRnnConfig


class Model(PixelRnn):
    """Two LSTMs from the upper corners: h_rc from h_{r,c-1} and h_{r-1,c}, and its mirror image.

    The states of an anti-diagonal depend on those of the one before it alone. In the image that
    is skewed by one column per row they are columns, and the state-to-state convolution is 2×1.
    What comes from the right is shifted down by one row before the two are added: it has seen
    the pixels to the right. So a pixel sees all those before it, but for one: the last pixel of
    the row above, where the second direction begins with features that mask A keeps from seeing
    it, is in sight only of the 7×7 convolution.

    Source:
        arXiv:1601.06759, section 3.2.
    """

    def make_layer(self, num_hidden: int, num_channels: int) -> nn.Module:
        """Create a layer."""
        return DiagonalBiLstm(num_hidden, num_channels)

    def start_memory(self, blank: Tensor) -> Memory:
        """Return h of both directions for each layer, zeros of (h, W, N)."""
        return tuple(
            blank.repeat(layer.num_hidden, 1, 1) for layer in self.layers for _ in range(2)
        )

    def before_row(self, memory: Memory) -> Step:
        """Add up what the first direction sees above; the second is done with what it sees."""
        columns = []
        for layer, (hidden, behind) in zip(self.layers, pairs(memory), strict=True):
            columns += [
                layer.directions[0].from_above(hidden).transpose(0, 1),
                behind.transpose(0, 1),
            ]
        zeros = 0 * memory[0][:1, 0]
        left = tuple(zeros.repeat(layer.num_hidden, 1) for layer in self.layers for _ in range(2))
        return tuple(columns), left

    def pixel(
        self, features: Tensor, left: Memory, column: Memory
    ) -> tuple[Tensor, Memory, Memory]:
        """Remember h and c of the first direction; keep each layer's input, and h."""
        states, kept = [], []
        for layer, beside, above in zip(self.layers, pairs(left), pairs(column), strict=True):
            kept.append(features + 0)
            features, *state = layer.pixel(features, *beside, *above)
            states += state
            kept.append(state[0] + 0)
        return features, tuple(states), tuple(kept)

    def after_row(self, memory: Memory, rows: Memory) -> Memory:
        """Run the second direction over the row, from right to left, for all layers at once.

        Each layer's input is known by now, so the layers do not depend on each other.
        """
        behind = torch.stack([behind for _, behind in pairs(memory)])  # (L, h, W, N)
        inputs = torch.stack([inputs.transpose(0, 1) for inputs, _ in pairs(rows)])
        parts = [layer.directions[1].parts() for layer in self.layers]
        to_state, beside, above, bias = (torch.stack(part) for part in zip(*parts, strict=True))
        seen = torch.cat([inputs, behind], dim=1)  # (L, 3h, W, N)
        gates = affine(bias, torch.cat([to_state, above], dim=2), seen.flatten(2))
        mirrored = torch.unflatten(gates, 2, seen.shape[2:]).flip(2).permute(2, 0, 1, 3)

        def step(carry: Memory, gates: Tensor) -> Step:
            hidden, cell = carry
            hidden, cell = lstm_cell(affine(gates, beside, hidden), cell)
            return (hidden, cell), (hidden + 0,)

        zeros = 0 * behind[:, :, 0]
        _, (hidden,) = scan(step, (zeros, zeros + 0), mirrored)  # (W, L, h, N)
        newest = hidden.flip(0).permute(1, 2, 0, 3).unbind()
        forwards = [hidden.transpose(0, 1) for _, hidden in pairs(rows)]
        return tuple(
            part.clone(memory_format=torch.contiguous_format)
            for both in zip(forwards, newest, strict=True)
            for part in both
        )


class DiagonalBiLstm(nn.Module):
    """One residual layer: x + K_out (h → + shifted h ←).

    Args:
        num_hidden: h; the stream has 2h features.
        num_channels: Channels of the image, whose groups the masks keep in order.
    """

    def __init__(self, num_hidden: int, num_channels: int) -> None:
        super().__init__()
        self.num_hidden = num_hidden
        self.directions: Any = nn.ModuleList(Direction(num_hidden, num_channels) for _ in range(2))
        mask = colour_mask("B", 2 * num_hidden, num_hidden, num_channels)
        self.out = MaskedLinear(mask, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Run over the whole image, (2h, H, W, N) -> (2h, H, W, N)."""
        weights = torch.stack([direction.whole() for direction in self.directions])
        biases = torch.stack([direction.beside.bias for direction in self.directions])
        hidden = DiagonalRecurrence.apply(features, weights, biases)  # type: ignore[no-untyped-call]
        return self.merge(features, hidden)

    def merge(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Shift the second direction down by one row, add up and return to the stream.

        Args:
            features: The layer's input, shape (2h, H, W, N).
            hidden: h of both directions, shape (2, h, H, W, N).
        """
        shifted = functional.pad(hidden[1, :, :-1], (0, 0, 0, 0, 1, 0))
        update: Tensor = self.out(hidden[0] + shifted)
        return features + update

    def scanned(self, features: Tensor) -> Tensor:
        """Do what `forward` does, by a scan over the diagonals of all H rows."""
        _, height, width, _ = features.shape
        # One more feature carries the bias, and one more pixel, all zero, stands for the places
        # of a diagonal outside of the image: before its first column a state stays zero.
        pixels = torch.cat([features, torch.ones_like(features[:1])]).flatten(1, 2)
        pixels = functional.pad(pixels, (0, 0, 0, 1))
        parts = [direction.parts() for direction in self.directions]
        weight = torch.stack(
            [torch.cat([to_x, bias, beside, above], dim=1) for to_x, beside, above, bias in parts]
        )
        places, mirrored = diagonal_places(height, width)

        def step(carry: Memory, places: Memory) -> Step:
            hidden, cell = carry  # (2, h, H, N)
            inputs = torch.stack([pixels.index_select(1, place) for place in places])
            above = functional.pad(hidden, (0, 0, 1, 0))[:, :, :height]
            seen = torch.cat([inputs, hidden, above], dim=1)
            gates = affine(None, weight, seen.flatten(2))
            new_hidden, new_cell = lstm_cell(gates, cell.flatten(2))
            new_hidden = new_hidden.view_as(hidden)
            return (new_hidden, new_cell.view_as(cell)), (new_hidden.permute(2, 0, 1, 3) + 0,)

        blank = 0 * (features[:1, :, 0] > 0).to(features.dtype)  # zero even after NaN
        zeros = blank.repeat(2, self.num_hidden, 1, 1)
        _, (states,) = scan(step, (zeros, zeros + 0), (places, mirrored))  # (d, H, 2, h, N)
        row, column = torch.arange(height)[:, None], torch.arange(width)
        states = states.flatten(0, 1)
        hidden = [
            states.index_select(0, ((row + distance) * height + row).flatten())[:, direction]
            for direction, distance in enumerate((column, width - 1 - column))
        ]  # (H·W, h, N)
        maps = torch.unflatten(torch.stack(hidden).transpose(1, 2), 2, (height, width))
        return self.merge(features, maps)

    def pixel(
        self, features: Tensor, hidden: Tensor, cell: Tensor, above: Tensor, behind: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step of the first direction for one pixel.

        Args:
            features: The stream at this pixel, shape (2h, N).
            hidden: h of the pixel to the left, shape (h, N).
            cell: c of the pixel to the left, shape (h, N).
            above: What the gates see above, shape (4h, N).
            behind: h of the second direction at the pixel above, shape (h, N).

        Returns:
            The stream after this layer, h and c.
        """
        seen = torch.cat([features, hidden])
        gates = affine(above, self.directions[0].beside.weight, seen)
        new_hidden, new_cell = lstm_cell(gates, cell)
        merged = new_hidden + behind
        return affine(features, self.out.weight, merged), new_hidden, new_cell


class Direction(nn.Module):
    """The weights of one direction.

    Args:
        num_hidden: h; the stream has 2h features.
        num_channels: Channels of the image.
    """

    def __init__(self, num_hidden: int, num_channels: int) -> None:
        super().__init__()
        self.num_hidden = num_hidden
        own = colour_mask("B", num_hidden, 2 * num_hidden, num_channels)
        mask = torch.cat([own, torch.ones(num_hidden, num_hidden)], dim=1).repeat(4, 1)
        self.beside = MaskedLinear(mask)  # of the input and of h beside
        self.above = MaskedLinear(torch.ones(4 * num_hidden, num_hidden), bias=False)
        assert self.beside.bias is not None
        with torch.no_grad():  # forget gates start open
            self.beside.bias[num_hidden : 2 * num_hidden].fill_(1.0)

    def whole(self) -> Tensor:
        """Return the weights of [input, h beside, h above], shape (4h, 4h)."""
        return torch.cat([self.beside.weight, self.above.weight], dim=1)

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return weights of the input (4h, 2h), of h beside and above (4h, h), the bias (4h, 1)."""
        sizes = [2 * self.num_hidden, self.num_hidden]
        to_state, beside = torch.split(self.beside.weight, sizes, dim=1)
        assert self.beside.bias is not None
        return to_state, beside, self.above.weight, self.beside.bias[:, None]

    def from_above(self, hidden: Tensor) -> Tensor:
        """Add up what a row sees in the states above, (h, W, N) -> (4h, W, N)."""
        bias = self.beside.bias
        assert bias is not None
        product = affine(bias[:, None], self.above.weight, hidden.flatten(1))
        return torch.unflatten(product, 1, hidden.shape[1:])


def diagonal_places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Number the pixels of each diagonal r + c = d of an image, and of its mirror image.

    Returns:
        r·W + c for each d and r, H·W where the place lies outside; shape (H + W - 1, H) each.
    """
    row = torch.arange(height)
    column = torch.arange(height + width - 1)[:, None] - row
    inside = (column >= 0) & (column < width)
    outside = height * width
    places = torch.where(inside, row * width + column, outside)
    return places, torch.where(inside, row * width + width - 1 - column, outside)
