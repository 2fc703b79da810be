"""Recurrences of PixelRNN for training: no graph per step, all of autograd's work by hand."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

Memory = tuple[Tensor, ...]

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # (grad, σ) -> grad · σ (1 - σ)


class Cells(NamedTuple):
    """What an LSTM step leaves behind for its gradient.

    Attributes:
        gates: σ of the gates i, f, o and of 2g, shape (…, 4h, M): tanh g = 2σ(2g) - 1, and torch
            computes a sigmoid about five times as fast as a tanh.
        cell: c, shape (…, h, M).
        squashed: σ(2c), shape (…, h, M).
        parts: The four quarters of the gates.
    """

    gates: Tensor
    cell: Tensor
    squashed: Tensor
    parts: Memory

    @classmethod
    def empty(cls, like: Tensor, *shape: int) -> "Cells":
        """Allocate for steps of (…, h, M)."""
        *outer, num_hidden, columns = shape
        gates = like.new_empty(*outer, 4 * num_hidden, columns)
        return cls(gates, like.new_empty(shape), like.new_empty(shape), gates.chunk(4, dim=-2))

    def steps(self) -> list["Cells"]:
        """Split along the first axis."""
        parts = zip(*(part.unbind() for part in self.parts), strict=True)
        whole = zip(self.gates, self.cell, self.squashed, strict=True)
        return [Cells(*tensors, quarters) for tensors, quarters in zip(whole, parts, strict=True)]


def doubled(weight: Tensor, num_hidden: int) -> Tensor:
    """Copy weights or biases, (…, 4h, in), with the rows of g doubled; its own transpose too."""
    copy = weight.clone()
    copy[..., 3 * num_hidden :, :].mul_(2.0)
    return copy


def cell_forward(before: Tensor | None, now: Cells, hidden: Tensor) -> None:
    """Finish a step whose `now.gates` hold i, f, o and 2g before their nonlinearity.

    Args:
        before: c of the step before, None for zeros.
        now: Filled in.
        hidden: Receives h, shape (…, h, M).
    """
    now.gates.sigmoid_()
    write, keep, read, candidate = now.parts
    if before is None:
        torch.mul(write, candidate, out=now.cell).mul_(2.0)
    else:
        torch.mul(keep, before, out=now.cell)
        now.cell.addcmul_(write, candidate, value=2)
    now.cell.sub_(write)  # i (2σ(2g) - 1)
    torch.mul(now.cell, 2.0, out=now.squashed).sigmoid_()
    torch.mul(read, now.squashed, out=hidden).mul_(2.0).sub_(read)


def cell_backward(
    before: Tensor | None, now: Cells, grad_hidden: Tensor, grad_cell: Tensor, grad: Cells
) -> None:
    """Turn the gradient of h and c into that of the gates and of the c before.

    Args:
        before: c of the step before, None for zeros.
        now: What `cell_forward` left.
        grad_hidden: Of h; is overwritten.
        grad_cell: Of c, from the next step; receives that of the c before.
        grad: Its `gates` receive that of i, f, o and 2g before their nonlinearity.
    """
    write, keep, read, candidate = now.parts
    to_write, to_keep, to_read, to_candidate = grad.parts
    torch.mul(grad_hidden, now.squashed, out=to_read).mul_(2.0).sub_(grad_hidden)
    # d tanh(c) / dc = 4 s (1 - s) at s = σ(2c)
    grad_hidden.mul_(read)
    sigmoid_backward(grad_hidden, now.squashed, grad_input=grad_hidden)
    grad_cell.add_(grad_hidden, alpha=4)
    torch.mul(grad_cell, candidate, out=to_write).mul_(2.0).sub_(grad_cell)
    torch.mul(grad_cell, write, out=to_candidate).mul_(2.0)
    if before is None:
        to_keep.zero_()
    else:
        torch.mul(grad_cell, before, out=to_keep)
    grad_cell.mul_(keep)
    sigmoid_backward(grad.gates, now.gates, grad_input=grad.gates)


class RowRecurrence(torch.autograd.Function):
    """h of a Row LSTM layer, row by row; the plain words for it are `RowLstm.row`.

    A row is one product of the weights with all that its gates see: the left and centre taps of
    the layer's input and the three taps of the states above, stacked in one matrix that stays in
    the cache. The gradient rebuilds that matrix rather than to fetch it from memory. Views are
    taken before the loops: torch needs as long for one as for a few thousand products.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Run, (2h, H, W, N), (4h, 7h), (4h,) -> (h, H, W, N)."""
        num_hidden = weight.shape[0] // 4
        _, height, width, num_images = features.shape
        fast_weight = doubled(weight, num_hidden)
        fast_bias = doubled(bias[:, None], num_hidden)
        cells = Cells.empty(features, height, num_hidden, width * num_images)
        hidden = features.new_empty(height, num_hidden, width, num_images)
        sight = Sight(features, hidden)
        before = None
        for row, (now, state) in enumerate(zip(cells.steps(), hidden.flatten(2), strict=True)):
            sight.look(row)
            torch.addmm(fast_bias, fast_weight, sight.seen, out=now.gates)
            cell_forward(before, now, state)
            before = now.cell
        ctx.save_for_backward(features, fast_weight, hidden, *cells[:3])
        return hidden.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, weight and bias."""
        features, fast_weight, hidden, gates, cell, squashed = ctx.saved_tensors
        steps = Cells(gates, cell, squashed, gates.chunk(4, dim=-2)).steps()
        _, num_hidden, width, num_images = hidden.shape
        sight = Sight(features, hidden)
        grad_sight = torch.empty_like(sight.seen)
        left, centre, *above = (
            torch.unflatten(part, 1, (width, num_images))
            for part in torch.split(grad_sight, [2 * num_hidden] * 2 + [num_hidden] * 3)
        )
        grad = Cells.empty(features, num_hidden, width * num_images)
        grad_cell = torch.zeros_like(grad.cell)
        grad_state = torch.empty_like(hidden[0])
        grad_features = torch.empty_like(features)
        grad_weight = torch.zeros_like(fast_weight)
        grad_bias = features.new_zeros(4 * num_hidden)
        moves = (  # where each tap's gradient belongs in the states above
            (grad_state, above[1]),
            (grad_state[:, :-1], above[0][:, 1:]),
            (grad_state[:, 1:], above[2][:, :-1]),
        )
        last = len(steps) - 1
        for row in range(last, -1, -1):
            grad_state.copy_(grad_outputs[0][:, row])
            if row < last:
                for target, source in moves:
                    target.add_(source)
            before = steps[row - 1].cell if row else None
            cell_backward(before, steps[row], grad_state.flatten(1), grad_cell, grad)
            sight.look(row)
            grad_weight.addmm_(grad.gates, sight.seen.t())
            grad_bias.add_(grad.gates.sum(dim=1))
            torch.mm(fast_weight.t(), grad.gates, out=grad_sight)
            grad_features[:, row] = centre
            grad_features[:, row, :-1].add_(left[:, 1:])
        return (
            grad_features,
            doubled(grad_weight, num_hidden),
            doubled(grad_bias[:, None], num_hidden)[:, 0],
        )


class Sight:
    """What the gates of one row see, stacked as columns; the margins are zero and stay so.

    Args:
        features: The layer's input, shape (2h, H, W, N).
        hidden: The states, row by row, shape (H, h, W, N).
    """

    def __init__(self, features: Tensor, hidden: Tensor) -> None:
        width_in, _, width, num_images = features.shape
        num_hidden = hidden.shape[1]
        self.seen = features.new_zeros(2 * width_in + 3 * num_hidden, width * num_images)
        split = torch.split(
            torch.unflatten(self.seen, 1, (width, num_images)), [width_in] * 2 + [num_hidden] * 3
        )
        self._of_row = [
            (split[0][:, 1:], features[:, :, :-1].unbind(1)),
            (split[1], features.unbind(1)),
        ]
        self._of_row_above = [
            (split[2][:, 1:], hidden[:, :, :-1].unbind()),
            (split[3], hidden.unbind()),
            (split[4][:, :-1], hidden[:, :, 1:].unbind()),
        ]

    def look(self, row: int) -> None:
        """Fill `seen`, shape (7h, W·N), for a row."""
        for target, rows in self._of_row:
            target.copy_(rows[row])
        for target, rows in self._of_row_above:
            if row:
                target.copy_(rows[row - 1])
            else:
                target.zero_()


class DiagonalRecurrence(torch.autograd.Function):
    """h of both directions of a Diagonal BiLSTM layer, diagonal by diagonal.

    The pixels r + c = d of the first direction, and those of the mirrored image for the second,
    depend on diagonal d - 1 alone. Maps are packed, their pixels sorted by diagonal and row, so
    that a diagonal is one slice without the empty corners of a skewed image. The state is kept
    for all H rows: rows that have not begun hold zeros, and so does the row above the first.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Run both directions.

        Args:
            ctx: Keeps what the gradient needs.
            features: The layer's input, shape (2h, H, W, N).
            weight: Of the input and the states beside and above, shape (2, 4h, 4h).
            bias: Shape (2, 4h).

        Returns:
            h in image coordinates, shape (2, h, H, W, N); the second direction comes from the
            right and is not shifted.
        """
        num_hidden = weight.shape[1] // 4
        _, height, width, num_images = features.shape
        fast_weight = doubled(weight, num_hidden)
        fast_bias = doubled(bias[:, :, None], num_hidden)
        packing = Packing(height, width, features.device)
        inputs = packing.pack(features, features)
        outputs = features.new_empty(2, num_hidden, height * width, num_images)
        state = features.new_zeros(2, num_hidden, height + 1, num_images)
        cell = features.new_zeros(2, num_hidden, height * num_images)
        steps = []
        for rows, seen_input, output in zip(
            packing.rows, packing.split(inputs), packing.split(outputs), strict=True
        ):
            seen = torch.cat([seen_input, *beside_and_above(state, rows)], dim=1).flatten(2)
            gates = torch.baddbmm(fast_bias, fast_weight, seen)
            of_rows = cell[:, :, rows.start * num_images : rows.stop * num_images]
            before = of_rows.clone()
            now = Cells(gates, of_rows, torch.empty_like(before), gates.chunk(4, dim=1))
            newest = torch.empty_like(before)
            cell_forward(before, now, newest)
            block = newest.view_as(output)
            output.copy_(block)
            state[:, :, rows.start + 1 : rows.stop + 1] = block
            steps.append(now._replace(cell=before))
        ctx.save_for_backward(inputs, fast_weight, outputs)
        ctx.packing, ctx.steps = packing, steps
        return torch.stack(packing.unpack(outputs))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, weight and bias."""
        inputs, fast_weight, outputs = ctx.saved_tensors
        packing: Packing = ctx.packing
        num_hidden, num_images = outputs.shape[1], outputs.shape[3]
        grad_inputs = torch.empty_like(inputs)
        grad_weight = torch.zeros_like(fast_weight)
        grad_bias = torch.zeros_like(fast_weight[:, :, 0])
        state = outputs.new_zeros(2, num_hidden, packing.height + 1, num_images)
        grad_state = torch.zeros_like(state)
        grad_cell = torch.zeros_like(state[:, :, 1:]).flatten(2)
        backwards = fast_weight.transpose(1, 2)
        of_input, of_output, to_input = (
            packing.split(maps) for maps in (inputs, packing.pack(*grad_outputs[0]), grad_inputs)
        )
        earlier = packing.split(outputs)
        for index in reversed(range(len(packing.rows))):
            rows, now = packing.rows[index], ctx.steps[index]
            beside, above = beside_and_above(grad_state, rows)
            grad = Cells.empty(outputs, *now.cell.shape)
            grad_hidden = (of_output[index] + beside).flatten(2)
            of_rows = grad_cell[:, :, rows.start * num_images : rows.stop * num_images]
            cell_backward(now.cell, now, grad_hidden, of_rows, grad)
            state.zero_()
            if index:
                before = packing.rows[index - 1]
                state[:, :, before.start + 1 : before.stop + 1] = earlier[index - 1]
            seen = torch.cat([of_input[index], *beside_and_above(state, rows)], dim=1).flatten(2)
            grad_weight.baddbmm_(grad.gates, seen.transpose(1, 2))
            grad_bias += grad.gates.sum(dim=2)
            grad_seen = torch.bmm(backwards, grad.gates).view(2, -1, *above.shape[2:])
            to_input[index].copy_(grad_seen[:, : -2 * num_hidden])
            grad_state.zero_()
            beside.copy_(grad_seen[:, -2 * num_hidden : -num_hidden])
            above.add_(grad_seen[:, -num_hidden:])
        plain, mirrored = packing.unpack(grad_inputs)
        return (
            plain.add_(mirrored),
            doubled(grad_weight, num_hidden),
            doubled(grad_bias[:, :, None], num_hidden)[:, :, 0],
        )


def beside_and_above(state: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Return views of the rows and of those above them; a row of zeros lies on top of `state`."""
    return state[:, :, rows.start + 1 : rows.stop + 1], state[:, :, rows.start : rows.stop]


class Packing:
    """The pixels of an image sorted by diagonal and row, and those of its mirror image.

    Args:
        height: H.
        width: W.
        device: Where the maps are.
    """

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.height, self.width = height, width
        self.rows = [
            slice(max(0, d - width + 1), min(d + 1, height)) for d in range(height + width - 1)
        ]
        places = [
            (r, d - r) for d, rows in enumerate(self.rows) for r in range(*rows.indices(height))
        ]
        row, column = torch.tensor(places, device=device).t()
        self._orders = row * width + column, row * width + (width - 1 - column)

    def pack(self, plain: Tensor, mirrored: Tensor) -> Tensor:
        """Sort the pixels of two maps, (C, H, W, N) each -> (2, C, H·W, N)."""
        pairs = zip((plain, mirrored), self._orders, strict=True)
        return torch.stack([maps.flatten(1, 2).index_select(1, order) for maps, order in pairs])

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Undo `pack`."""
        pairs = zip(packed, self._orders, strict=True)
        return [
            maps.index_select(1, order.argsort()).unflatten(1, (self.height, self.width))
            for maps, order in pairs
        ]

    def split(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Return views of the diagonals, (2, C, rows, N) each."""
        return torch.split(packed, [rows.stop - rows.start for rows in self.rows], dim=2)
