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
