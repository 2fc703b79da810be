"""PixelRNN with Row LSTM layers: each row is one step, and sees a triangle of the image above."""

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
from export.recurrence import RowRecurrence

Config = PixelRnnConfig


class Model(PixelRnn):
    """[i, f, o, g] = (σ, σ, σ, tanh)(K_ss ∗ h_{r-1} + K_is ∗ x_r); c_r = f c_{r-1} + i g.

    The state of a whole row is computed at once from that of the row above: K_ss is an unmasked
    1×3 convolution of the states above, K_is one of the layer's input with mask B. With each row
    the field widens by one column to either side: a pixel sees a triangle of the rows above it
    and, through K_is, some pixels to its left.

    Source:
        arXiv:1601.06759, section 3.1, equation 3.
    """

    def make_layer(self, num_hidden: int, num_channels: int) -> nn.Module:
        """Create a layer."""
        return RowLstm(num_hidden, num_channels)

    def start_memory(self, blank: Tensor) -> Memory:
        """Return h (h, W, N) and c (W, h, N) of each layer, all zero."""
        zeros = blank.repeat(self.layers[0].num_hidden, 1, 1)
        return tuple(
            part for _ in self.layers for part in (zeros + 0, zeros.transpose(0, 1).contiguous())
        )

    def before_row(self, memory: Memory) -> Step:
        """Convolve the states above, for all columns at once; the left neighbours start at 0."""
        columns = []
        for layer, (hidden, cell) in zip(self.layers, pairs(memory), strict=True):
            columns += [layer.from_above(hidden).transpose(0, 1), cell]
        zeros = 0 * memory[0][:1, 0]
        left = tuple(zeros.repeat(2 * layer.num_hidden, 1) for layer in self.layers)
        return tuple(columns), left

    def pixel(
        self, features: Tensor, left: Memory, column: Memory
    ) -> tuple[Tensor, Memory, Memory]:
        """Remember each layer's input; keep its h and c."""
        inputs, states = [], []
        for layer, beside, above in zip(self.layers, left, pairs(column), strict=True):
            inputs.append(features + 0)
            features, *state = layer.pixel(features, beside, *above)
            states += state
        return features, tuple(inputs), tuple(states)

    def after_row(self, memory: Memory, rows: Memory) -> Memory:
        """Take the states of the row."""
        states = []
        for hidden, cell in pairs(rows):
            states += [hidden.transpose(0, 1).contiguous(), cell + 0]
        return tuple(states)


class RowLstm(nn.Module):
    """One residual layer: x + K_out h, with h from a Row LSTM over x.

    Args:
        num_hidden: h; the stream has 2h features.
        num_channels: Channels of the image, whose groups the masks keep in order.
    """

    def __init__(self, num_hidden: int, num_channels: int) -> None:
        super().__init__()
        self.num_hidden = num_hidden
        width = 2 * num_hidden
        centre = colour_mask("B", num_hidden, width, num_channels).repeat(4, 1)
        # Of the three taps of K_is, mask B leaves the left one and the centre.
        self.input_to_state = MaskedLinear(torch.cat([torch.ones_like(centre), centre], dim=1))
        self.state_to_state = MaskedLinear(torch.ones(4 * num_hidden, 3 * num_hidden), bias=False)
        self.out = MaskedLinear(colour_mask("B", width, num_hidden, num_channels), bias=False)
        assert self.input_to_state.bias is not None
        with torch.no_grad():  # forget gates start open
            self.input_to_state.bias[num_hidden : 2 * num_hidden].fill_(1.0)

    def parts(self) -> tuple[Tensor, Tensor]:
        """Return the weights of [left, centre, three states above], (4h, 7h), and the bias."""
        assert self.input_to_state.bias is not None
        weights = [self.input_to_state.weight, self.state_to_state.weight]
        return torch.cat(weights, dim=1), self.input_to_state.bias

    def forward(self, features: Tensor) -> Tensor:
        """Run over all rows, (2h, H, W, N) -> (2h, H, W, N)."""
        hidden = RowRecurrence.apply(features, *self.parts())  # type: ignore[no-untyped-call]
        update: Tensor = self.out(hidden)
        return features + update

    def scanned(self, features: Tensor) -> Tensor:
        """Do what `forward` does, by a scan over the rows."""

        def step(carry: Memory, row: Tensor) -> Step:
            out, *state = self.row(row, *carry)
            return tuple(state), (out + 0,)

        blank = 0 * (features[:1, 0] > 0).to(features.dtype)  # zero even after NaN
        hidden = blank.repeat(self.num_hidden, 1, 1)
        rows: Tensor
        _, (rows,) = scan(step, (hidden, hidden.flatten(1) + 0), features.transpose(0, 1))
        return rows.transpose(0, 1)

    def from_above(self, hidden: Tensor) -> Tensor:
        """Add up what a row sees in the states above, (h, W, N) -> (4h, W, N)."""
        taps = three_taps(hidden)
        bias = self.input_to_state.bias[:, None]  # type: ignore[index]
        product = affine(bias, self.state_to_state.weight, taps.flatten(1))
        return torch.unflatten(product, 1, taps.shape[1:])

    def pixel(
        self, features: Tensor, left: Tensor, above: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step for one pixel.

        Args:
            features: The stream at this pixel, shape (2h, N).
            left: The stream at the pixel to the left, shape (2h, N).
            above: What the gates see above, shape (4h, N).
            cell: c of the pixel above, shape (h, N).

        Returns:
            The stream after this layer, h and c.
        """
        seen = torch.cat([left, features])
        gates = affine(above, self.input_to_state.weight, seen)
        hidden, cell = lstm_cell(gates, cell)
        return affine(features, self.out.weight, hidden), hidden, cell

    def row(self, features: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step for a whole row: (2h, W, N), (h, W, N) and (h, W·N) give the same."""
        width = features.shape[1]
        left = functional.pad(features, (0, 0, 1, 0))[:, :width]
        seen = torch.cat([left, features, three_taps(hidden)])
        weight, bias = self.parts()
        gates = affine(bias[:, None], weight, seen.flatten(1))
        new_hidden, new_cell = lstm_cell(gates, cell)
        stream = affine(features.flatten(1), self.out.weight, new_hidden)
        return stream.view_as(features), new_hidden.view_as(hidden), new_cell


def three_taps(row: Tensor) -> Tensor:
    """Stack each column with its two neighbours, (h, W, N) -> (3h, W, N)."""
    width = row.shape[1]
    padded = functional.pad(row, (0, 0, 1, 1))
    return torch.cat([padded[:, tap : tap + width] for tap in range(3)])
