"""One hidden layer along a chain of pixels: log p(x) and its gradient in a single sweep."""

from typing import Any

import torch
from torch import Tensor

from export.layers import bernoulli_log_prob


class OneSweep(torch.autograd.Function):
    """log p(x) = Σ_d log p(x_d | x_<d), whose gradient is found in the same sweep over the pixels.

    p(x_d = 1 | x_<d) = σ(V_d·h_d + b_d) and h_d = f(a_d) with a_d = c + Σ_{k<d} W_k i_k, where i_k
    are K inputs made of pixel k: its value, and perhaps a 1 that tells it is known.

    ∂ log p(x_d | x_<d) / ∂l_d = x_d - σ(l_d) is known as soon as the logit l_d is. So the gradient
    with respect to a_d is summed up on the way, G_d = Σ_{e ≤ d} ∂/∂a_e, and
    ∂/∂W_k = Σ_{d > k} i_k ∂/∂a_d = i_k (G_D - G_k): no second sweep, and two (N, H) states
    instead of D of them.

    Source:
        Larochelle, Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011,
        algorithm 1, with its two sweeps made one.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, W: Tensor, V: Tensor, b: Tensor, c: Tensor, rectified: bool
    ) -> Tensor:
        """Compute log p(x) and the gradients for a sum over the batch.

        Args:
            ctx: Of autograd.
            inputs: Shape (D, N, K), pixels in the order of the chain, their values first.
            W: Shape (D, K, H).
            V: Shape (D, H).
            b: Shape (D,).
            c: Shape (H,).
            rectified: f is ReLU; otherwise it is σ.

        Returns:
            Shape (N,), in nats.
        """
        num_rows = inputs.shape[1]
        transposed = inputs.transpose(1, 2).contiguous()  # (D, K, N)
        values = transposed[:, 0]
        activation = c.repeat(num_rows, 1)  # a_d
        hidden, slope = torch.empty_like(activation), torch.empty_like(activation)
        gradient = torch.zeros_like(activation)  # G_d
        logits, errors = inputs.new_empty(2, *values.shape)
        before, grad_V = torch.empty_like(W), torch.empty_like(V)
        for d in range(len(inputs)):
            if rectified:
                torch.clamp(activation, min=0, out=hidden)
                torch.sign(hidden, out=slope)
            else:
                torch.sigmoid(activation, out=hidden)
                torch.addcmul(hidden, hidden, hidden, value=-1, out=slope)  # h (1 - h)
            torch.addmv(b[d].expand(num_rows), hidden, V[d], out=logits[d])
            torch.sub(values[d], torch.sigmoid(logits[d]), out=errors[d])
            torch.mv(hidden.t(), errors[d], out=grad_V[d])
            gradient.addcmul_(slope.mul_(V[d]), errors[d][:, None])
            torch.mm(transposed[d], gradient, out=before[d])
            activation.addmm_(inputs[d], W[d])
        grad_W = transposed @ gradient - before
        ctx.save_for_backward(grad_W, grad_V, errors.sum(dim=1), gradient.sum(dim=0))
        return bernoulli_log_prob(values, logits).sum(dim=0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients, which are for equally weighted images."""
        weights = grad_outputs[0]
        if not torch.equal(weights, weights[:1].expand_as(weights)):
            raise ValueError("the one sweep needs equal weights: reduce by sum or mean")
        return None, *(weights[0] * gradient for gradient in ctx.saved_tensors), None


def chain_log_prob(
    inputs: Tensor, W: Tensor, V: Tensor, b: Tensor, c: Tensor, *, rectified: bool
) -> Tensor:
    """Return log p(x) in nats with a gradient for the weights; `OneSweep` tells the arguments."""
    log_prob: Tensor = OneSweep.apply(inputs, W, V, b, c, rectified)  # type: ignore[no-untyped-call]
    return log_prob
