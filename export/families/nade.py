"""NADE: the chain rule with one hidden layer whose weights all conditionals share."""

import torch
from pydantic import Field
from torch import Tensor, nn

from export.layers import (
    in_fours,
    mean_pixel_logits,
    out_of_fours,
    scan,
    score_binary,
    thresholds,
)
from export.model import FamilyConfig, GenerativeModel
from export.operators import is_positive
from export.sweep import chain_log_prob
from service.manifest import Noise, Role

# Each step of a Scan has its own cost, beside that of what is in it.
_PIXELS_PER_STEP = 8


class Config(FamilyConfig):
    """Hyperparameters.

    Attributes:
        hidden: H, number of hidden units.
        init_std: Standard deviation of the initial weights. The output biases start at the
            logits of the mean training image, so that step 0 is the independent model.
    """

    hidden: int = Field(default=500, gt=0)
    init_std: float = Field(default=0.05, gt=0)


class Model(GenerativeModel):
    """p(x_d = 1 | x_<d) = σ(V_d·h_d + b_d) with h_d = σ(c + W_<d x_<d), pixels in raster order.

    The activation a_d = c + W_<d x_<d is carried from pixel to pixel, so that all D conditionals
    cost O(DH). V is not tied to W: 2DH + D + H parameters.

    Source:
        Larochelle, Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011,
        equations 4 to 6; Uria et al., arXiv:1605.02226, section 2.
    """

    density = "exact"
    draws = "planes"
    values = ("binary",)

    def build(self, config: Config) -> None:
        """Create W, V (D, H), b (D,) and c (H,)."""
        shape = (self.image.num_dims, config.hidden)
        self.W = nn.Parameter(config.init_std * torch.randn(shape))
        self.V = nn.Parameter(config.init_std * torch.randn(shape))
        self.b = nn.Parameter(torch.zeros(shape[0]))
        self.c = nn.Parameter(torch.zeros(shape[1]))

    @property
    def noise(self) -> Noise:
        """One uniform draw per pixel."""
        return Noise(prior="uniform", shape=self.image.shape, latent=False)

    def initialize(self, images: Tensor) -> None:
        """Start as the independent model: V_d·h_d + b_d is the logit of the mean pixel at h = ½."""
        with torch.no_grad():
            self.b.copy_(mean_pixel_logits(images) - self.V.sum(dim=1) / 2)

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x) in nats, (N, C, H, W) -> (N,)."""
        inputs = images.flatten(1).t()[..., None]
        return chain_log_prob(inputs, self.W[:, None], self.V, self.b, self.c, rectified=False)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the two graphs; both scan over the pixels with one activation per image."""
        return {"generate": Generate(self), "log_prob": LogProb(self)}


class Generate(nn.Module):
    """noise -> image: two Gemms and a Sigmoid per pixel, images as rows.

    A pixel is 1 where its logit exceeds its threshold, where V·h + (b - threshold) is positive:
    ONNX Runtime then makes product, sum and comparison one kernel.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.W, self.V, self.b, self.c = model.W, model.V, model.b, model.c

    def forward(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Sample, (N, C, H, W) -> (N, C, H, W)."""
        limits = in_fours(thresholds(noise, temperature, known, known_mask))
        num_dims = limits.shape[1]
        stride = max(k for k in range(1, _PIXELS_PER_STEP + 1) if num_dims % k == 0)

        def step(activation: Tensor, pixels: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
            values = []
            for W, V, margin in pixels:  # (1, H), (H, 1), (N, 1)
                logits = torch.addmm(margin, torch.sigmoid(activation), V)
                values.append(is_positive(logits))
                activation = torch.addmm(activation, values[-1], W)
            return activation, values

        margins = (self.b - limits).t()[..., None]  # (D, N, 1)
        weights = (self.W[:, None], self.V[..., None], margins)
        slices = [[part[first::stride] for part in weights] for first in range(stride)]
        start = self.c + 0 * in_fours(noise.flatten(1)[:, :1])
        values: list[Tensor]
        _, values = scan(step, start, slices)
        image = torch.stack(values, dim=1).reshape(num_dims, -1)  # (D, N)
        return out_of_fours(image.t(), noise).reshape(noise.shape)


class LogProb(nn.Module):
    """image -> log_prob, conditional_log_prob in O(NH) memory besides the answer.

    Images are columns, because ONNX Runtime multiplies a row by a matrix, (1, H) by (H, N), with
    the same bits in every column whatever N is; a matrix by a column it does not.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.W, self.V, self.b, self.c = model.W, model.V, model.b, model.c

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score, (N, C, H, W) -> (N,), (N, C, H, W)."""
        values = image.flatten(1)

        def step(activation: Tensor, pixel: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            W, V, b, value = pixel  # (H, 1), (1, H), (1, 1), (1, N)
            logits = torch.addmm(b, V, torch.sigmoid(activation))
            return torch.addmm(activation, W, value), logits + 0

        start = self.c[:, None] + 0 * (values[:, 0] > 0.5).to(values.dtype)
        slices = (self.W[:, :, None], self.V[:, None], self.b[:, None, None], values.t()[:, None])
        _, logits = scan(step, start, slices)
        log_prob, conditionals = score_binary(values, logits[:, 0].t())
        return log_prob, conditionals.reshape(image.shape)
