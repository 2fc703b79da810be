"""RNADE: NADE for real-valued pixels, with a mixture of Gaussians as each conditional."""

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from export.layers import (
    ROW_MULTIPLE,
    affine,
    at_least_two,
    cut_rows,
    log_sum_exp,
    pad_rows,
    scan,
    sum_rows,
)
from export.model import FamilyConfig, GenerativeModel
from service.manifest import Noise, Role

_NUM_LEVELS = 256
# No component is narrower than this share of a grey level. The even noise within a level has a
# standard deviation of 1/√12 = 0.29 levels, so nothing true is lost, and no spike can form.
_SMALLEST_SIGMA = 0.2


class Config(FamilyConfig):
    """Hyperparameters.

    Attributes:
        hidden: H, number of hidden units.
        components: K, Gaussians per pixel; whole multiples of 16, because ONNX Runtime's
            exponentials have the same bits in every batch only in rows of such lengths.
        init_std: Standard deviation of the initial weights.
    """

    hidden: int = Field(default=96, gt=0)
    components: int = Field(default=16, gt=0, multiple_of=ROW_MULTIPLE)
    init_std: float = Field(default=0.02, gt=0)


class Model(GenerativeModel):
    """p(y_d | y_<d) = Σ_k α_k N(y_d; μ_k, σ_k²), with α, μ and σ from h_d = relu(ρ_d a_d).

    a_d = c + W_<d z_<d is carried from pixel to pixel; it grows with d, which the learnt ρ_d make
    up for. z are the pixels in units of their standard deviation; α = softmax(V^α h + b^α),
    μ = V^μ h + b^μ, σ = exp(V^σ h + b^σ) plus a floor.

    Pixels are dequantized: y = (g + u) / 256. Graphs take and return (256 y - ½) / 255, so 0 is
    the middle of the darkest of 256 intervals and 1 that of the brightest: a picture's grey levels
    are scored in the middle of their intervals. There the density is higher than on average over
    an interval, so figures are measured with noise, whose mean is a bound on the probability of
    the grey levels. log_prob is the density per grey level, log p(y) - D ln 256: so
    -log_prob / (D ln 2) are bits per dim.

    A temperature T takes each α and each Gaussian to the power 1/T: σ is multiplied by √T.

    Source:
        Uria, Murray, Larochelle, "RNADE: The real-valued neural autoregressive
        density-estimator", NIPS 2013, arXiv:1306.0186, equations 5 to 11 and section 4.1.
    """

    density = "exact"
    draws = "planes"
    values = ("continuous",)

    def build(self, config: Config) -> None:
        """Create W (D, H), c (H,), ρ (D,), V (D, 3K, H) and b (D, 3K) for α, μ and log σ."""
        num_dims, hidden, num_rows = self.image.num_dims, config.hidden, 3 * config.components
        self.components = config.components
        self.W = nn.Parameter(config.init_std * torch.randn(num_dims, hidden))
        self.c = nn.Parameter(0.1 * torch.randn(hidden))
        self.rho = nn.Parameter(torch.ones(num_dims))
        self.V = nn.Parameter(config.init_std * torch.randn(num_dims, num_rows, hidden))
        self.b = nn.Parameter(torch.zeros(num_dims, num_rows))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.full((num_dims,), 0.5))
        self.register_buffer("std", torch.ones(num_dims))

    @property
    def noise(self) -> Noise:
        """Two normal draws per pixel: one chooses the component, one goes through it."""
        return Noise(prior="normal", shape=(2, *self.image.shape), latent=False)

    def initialize(self, images: Tensor) -> None:
        """Take mean and spread of each pixel, and put the components on its quantiles."""
        levels = (images.flatten(1).double() + 0.5) / _NUM_LEVELS
        self.mean.copy_(levels.mean(dim=0))
        within = 1 / (12 * _NUM_LEVELS**2)  # variance of the noise in a grey level
        self.std.copy_((levels.var(dim=0) + within).sqrt())
        shares = (torch.arange(self.components) + 0.5) / self.components
        rows = self.standardized(levels).sort(dim=0).values
        means = rows[(shares * len(rows)).long()].t()  # (D, K)
        edges = torch.cat([means[:, :1], means, means[:, -1:]], dim=1)
        widths = (edges[:, 2:] - edges[:, :-2]).clamp(min=0) / 2 + self.floor()[:, None]
        with torch.no_grad():
            self.b.copy_(torch.cat([torch.zeros_like(means), means, widths.log()], dim=1))

    def standardized(self, levels: Tensor) -> Tensor:
        """Turn y, (N, D), into units of each pixel's standard deviation."""
        return (levels - self.mean) / self.std

    def floor(self) -> Tensor:
        """Return the smallest σ of each pixel in these units, (D,)."""
        return _SMALLEST_SIGMA / _NUM_LEVELS / self.std

    def offset(self) -> Tensor:
        """Return what turns log densities of z into those per grey level, (D,)."""
        return -torch.log(self.std) - math.log(_NUM_LEVELS)

    def log_prob(self, images: Tensor) -> Tensor:
        """Return the log density per grey level in nats, (N, C, H, W) -> (N,)."""
        z = self.standardized(to_unit_interval(images.flatten(1)))
        weighted = z.t()[:, :, None] * self.W[:, None]  # (D, N, H)
        activation = self.c + weighted.cumsum(dim=0) - weighted
        hidden = torch.relu(self.rho[:, None, None] * activation)
        rows = torch.baddbmm(self.b[:, None], hidden, self.V.transpose(1, 2))  # (D, N, 3K)
        logits, means, log_sigmas = torch.split(rows, self.components, dim=2)
        sigmas = torch.exp(log_sigmas) + self.floor()[:, None, None]
        if means.requires_grad:
            # Narrow components would otherwise pull a thousand times as hard as wide ones.
            means.register_hook(lambda gradient: gradient * sigmas.detach())  # type: ignore[no-untyped-call]
        conditionals = mixture_log_density(
            z.t()[..., None], logits, means, sigmas, lambda rows: torch.logsumexp(rows, dim=-1)
        )
        return (conditionals + self.offset()[:, None]).sum(dim=0)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the two graphs; both scan over the pixels with one state of (H, N)."""
        return {"generate": Generate(self), "log_prob": LogProb(self)}


def to_unit_interval(images: Tensor) -> Tensor:
    """Turn pixels as graphs take them into y in [0, 1)."""
    return (255 * images + 0.5) / _NUM_LEVELS


def mixture_log_density(
    z: Tensor,
    logits: Tensor,
    means: Tensor,
    sigmas: Tensor,
    log_sum: Callable[[Tensor], Tensor] = log_sum_exp,
) -> Tensor:
    """Return log Σ_k α_k N(z; μ_k, σ_k²) with α = softmax(logits), (…, 1), (…, K) -> (…).

    `log_sum` is the one for graphs; training takes torch's own, which is faster.
    """
    kernels = -0.5 * ((z - means) / sigmas) ** 2 - torch.log(sigmas) - 0.5 * math.log(2 * math.pi)
    return log_sum(logits + kernels) - log_sum(logits)


class Conditionals(nn.Module):
    """What both graphs share: the carried state, and the mixture of one pixel."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.W, self.V, self.b, self.c = model.W, model.V, model.b, model.c
        self.rho, self.components = model.rho, model.components
        self.mean, self.std = nn.Buffer(model.mean), nn.Buffer(model.std)
        self.floor, self.offset = nn.Buffer(model.floor()), nn.Buffer(model.offset())

    def weights(self) -> tuple[Tensor, ...]:
        """Return what the scan slices: W (D, H, 1), ρ (D, 1), V (D, 3K, H), b (D, 3K, 1)."""
        return self.W[:, :, None], self.rho[:, None], self.V, self.b[:, :, None]

    def start(self, rows: Tensor) -> Tensor:
        """Return the first state, (H, N), for rows of shape (N, D)."""
        return self.c[:, None] + 0 * rows[:, 0]

    def standardized(self, images: Tensor) -> Tensor:
        """Turn pixels as graphs take them into z, (N, D) -> (N, D)."""
        return (to_unit_interval(images) - self.mean) / self.std


class Generate(Conditionals):
    """noise -> image; what falls outside of y in [0, 1] is cut off before it is looked at.

    Beyond, where no image is, a conditional may be anything: the state would grow from pixel to
    pixel, in one of some thousand images until nothing is finite.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.before = nn.Buffer(torch.ones(self.components, self.components).triu(1))
        self.lowest = nn.Buffer(-self.mean / self.std)
        self.highest = nn.Buffer((1 - self.mean) / self.std)

    def forward(
        self, noise: Tensor, temperature: Tensor, known: Tensor, known_mask: Tensor
    ) -> Tensor:
        """Sample, (N, 2, C, H, W) -> (N, C, H, W)."""
        shape = known.shape
        noise, temperature, known, known_mask = (
            at_least_two(rows) for rows in (noise, temperature, known, known_mask)
        )
        choice, normal = noise.flatten(2).unbind(dim=1)  # (N, D) each
        uniforms = normal_cdf(choice)
        fixed = self.standardized(known.flatten(1))
        is_fixed = known_mask.flatten(1)
        root = torch.sqrt(temperature)[:, None]
        cool = temperature[:, None]

        def step(activation: Tensor, pixel: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            W, rho, V, b, floor, lowest, highest, uniform, deviate, known_z, known_here = pixel
            rows = affine(b, V, torch.relu(rho * activation)).t()  # (N, 3K)
            logits, means, log_sigmas = torch.split(rows, self.components, dim=1)
            scaled = logits / cool
            weights = torch.exp(scaled - scaled.amax(dim=1, keepdim=True))
            below = torch.mm(weights, self.before)  # (N, K): mass of the components before each
            target = uniform[:, None] * weights.sum(dim=1, keepdim=True)
            chosen = (below <= target).to(weights.dtype).sum(dim=1, keepdim=True) - 1
            is_chosen = (torch.arange(self.components) == chosen).to(weights.dtype)
            mean = (is_chosen * means).sum(dim=1, keepdim=True)
            sigma = (is_chosen * (torch.exp(log_sigmas) + floor)).sum(dim=1, keepdim=True)
            drawn = (mean + root * sigma * deviate[:, None]).t()  # (1, N)
            drawn = torch.minimum(torch.maximum(drawn, lowest), highest)
            z = torch.where(known_here[None] > 0.5, known_z[None], drawn)
            return torch.addmm(activation, W, z), z + 0

        slices = (uniforms, normal, fixed, is_fixed)
        limits = (self.floor, self.lowest, self.highest)
        columns = (*self.weights(), *limits, *(rows.t() for rows in slices))
        values: Tensor
        _, values = scan(step, self.start(fixed), columns)
        levels = values[:, 0].t() * self.std + self.mean
        drawn = ((_NUM_LEVELS * levels - 0.5) / 255).clamp(0, 1)
        images = torch.where(is_fixed > 0.5, known.flatten(1), drawn)
        return images[: shape[0]].reshape(shape)


class LogProb(Conditionals):
    """image -> log_prob, conditional_log_prob, densities per grey level."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score, (N, C, H, W) -> (N,), (N, C, H, W)."""
        z = self.standardized(at_least_two(image.flatten(1)))

        def step(activation: Tensor, pixel: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            W, rho, V, b, value = pixel  # (H, 1), (1,), (3K, H), (3K, 1), (1, N)
            rows = affine(b, V, torch.relu(rho * activation))
            return torch.addmm(activation, W, value), rows + 0

        rows: Tensor
        _, rows = scan(step, self.start(z), (*self.weights(), z.t()[:, None]))  # (D, 3K, N)
        logits, means, log_sigmas = torch.split(rows.permute(2, 0, 1), self.components, dim=2)
        sigmas = torch.exp(log_sigmas) + self.floor[:, None]
        conditionals = mixture_log_density(z[..., None], logits, means, sigmas) + self.offset
        conditionals = conditionals[: image.shape[0]]
        return sum_rows(conditionals), conditionals.reshape(image.shape)


def normal_cdf(values: Tensor) -> Tensor:
    """Return the uniform that a standard normal value corresponds to, ½ (1 + erf(x / √2))."""
    padded = pad_rows(values, 0.0)
    return cut_rows(0.5 * (1 + torch.erf(padded / math.sqrt(2))), values)
