"""Variational autoencoder: a latent behind each image, and a bound on its likelihood."""

import math
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from export.layers import exp, log_mean_exp, sum_rows
from export.likelihoods import LIKELIHOODS
from export.model import Batch, FamilyConfig, GenerativeModel
from service.manifest import Image, Noise, Role

# Decodings at once where no gradient is needed: as many as stay in a core's cache.
_MAX_DECODINGS = 1024


class Config(FamilyConfig):
    """Hyperparameters.

    Attributes:
        latent_dim: D, length of a latent.
        hidden: Width of the one dense hidden layer of encoder and decoder.
        encoder_channels: Feature maps of the encoder; each stage halves height and width.
        decoder_channels: Feature maps of the decoder, from the smallest map on; each stage doubles
            height and width. Without any stage both networks are dense.
        num_importance_samples: k of the bound that training raises: 1 is the ELBO.
        elbo_epochs: Epochs that raise the ELBO in any case. Its gradient costs a k-th, and early
            on, when the posterior still moves, a tighter bound gains nothing.
        conditional: Whether encoder and decoder are told the class, so that the bound is one on
            log p(x given label).
    """

    latent_dim: int = Field(default=32, gt=0)
    hidden: int = Field(default=256, gt=0)
    encoder_channels: tuple[int, ...] = (32, 64)
    decoder_channels: tuple[int, ...] = (32, 8)
    num_importance_samples: int = Field(default=1, gt=0)
    elbo_epochs: int = Field(default=0, ge=0)
    conditional: bool = False


class Model(GenerativeModel):
    """p(x) = ∫ p(x|z) N(z; 0, I) dz, with the posterior q(z|x) = N(mean, diag exp(log_var)).

    With z_k drawn from q and w_k = p(x|z_k) p(z_k) / q(z_k|x), log 1/K Σ_k w_k is below log p(x)
    on average, and grows with K: K = 1 is the ELBO, more is the importance-weighted bound. An
    image is drawn by one latent, and shown as the mean of p(x|z): for binary data the
    probability of a 1, as a grey level. p(x|z) takes pixels as independent: Bernoulli for binary
    images, a discretized logistic for those of 256 levels.

    Source:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2013, arXiv:1312.6114, equations 3 and
        10; Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2015,
        arXiv:1509.00519, equations 8 and 14.
    """

    density = "bound"
    values = tuple(LIKELIHOODS)

    def build(self, config: Config) -> None:
        """Create encoder and decoder."""
        if config.conditional and not self.num_classes:
            raise ValueError("a conditional model needs data with classes")
        self.config = config
        self.likelihood = LIKELIHOODS[self.image.values]()
        num_classes = self.num_classes if config.conditional else 0
        self.encoder = Encoder(config, self.image, num_classes)
        self.decoder = Decoder(config, self.image, self.likelihood.num_outputs, num_classes)

    @property
    def noise(self) -> Noise:
        """A Gaussian latent."""
        return Noise(prior="normal", shape=(self.config.latent_dim,), latent=True)

    def initialize(self, images: Tensor) -> None:
        """Start as the independent model: the decoder gives the mean image for every latent."""
        mean = images.float().mean(dim=0) / 255
        with torch.no_grad():
            self.decoder.bias.copy_(self.likelihood.initial_outputs(mean).flatten(0, 1))

    def log_weights(self, images: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x), in nats.

        Args:
            images: Shape (N, C, H, W), in [0, 1].
            noise: Standard normal, shape (N, K, D); z_k = mean + exp(log_var / 2)·noise_k.
            labels: Classes of a conditional model, shape (N,).

        Returns:
            Shape (N, K).
        """
        return self._log_weights(images, noise, labels, *self.encoder(images, labels))

    def _log_weights(
        self, images: Tensor, noise: Tensor, labels: Tensor | None, mean: Tensor, log_var: Tensor
    ) -> Tensor:
        latents = mean[:, None] + exp(log_var / 2)[:, None] * noise
        # The normalizing constants of p(z) and q(z|x) cancel.
        log_ratio = sum_rows(noise.square() - latents.square() + log_var[:, None]) / 2
        return self.log_likelihood(images, latents, labels) + log_ratio

    def log_likelihood(
        self, images: Tensor, latents: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Return log p(x|z) in nats, (N, C, H, W) and (N, K, D) -> (N, K)."""
        num_rows, num_samples, _ = latents.shape
        if labels is not None:
            labels = labels[:, None].expand(-1, num_samples).flatten()
        outputs = self.decoder(latents.flatten(0, 1), labels).float()
        outputs = outputs.reshape(
            num_rows, num_samples, self.likelihood.num_outputs, self.image.num_dims
        )
        return sum_rows(self.likelihood.log_prob(images.flatten(1)[:, None], outputs))

    def elbo(
        self,
        images: Tensor,
        noise: Tensor,
        labels: Tensor | None,
        mean: Tensor,
        log_var: Tensor,
    ) -> Tensor:
        """Return log p(x|z) - KL(q(z|x) ‖ p(z)) in nats, the divergence in closed form, (N,)."""
        latents = mean[:, None] + exp(log_var / 2)[:, None] * noise
        divergence = (mean.square() + log_var.exp() - log_var - 1).sum(dim=1) / 2
        return self.log_likelihood(images, latents, labels)[:, 0] - divergence

    def doubly_reparameterized(
        self,
        images: Tensor,
        noise: Tensor,
        share: Tensor,
        labels: Tensor | None,
        mean: Tensor,
        log_var: Tensor,
    ) -> Tensor:
        """Return log w of drawn samples, whose gradient is the bound's on average, (N, 1).

        The gradient of log q with respect to its own parameters, which is all noise where the
        posterior fits, is replaced by one through the latent: the encoder's is
        Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ, of which one term is drawn with the probabilities w̃_k.

        Args:
            images: Shape (N, C, H, W).
            noise: That of the sample which was drawn for each image, shape (N, 1, D).
            share: Its w̃, shape (N, 1).
            labels: Classes of a conditional model, shape (N,).
            mean: Of the posteriors, shape (N, D).
            log_var: Of the posteriors, shape (N, D).

        Source:
            Tucker, Lawson, Gu, Maddison, "Doubly Reparameterized Gradient Estimators for Monte
            Carlo Objectives", 2018, arXiv:1810.04152, the IWAE estimator.
        """
        moving = mean[:, None] + exp(log_var / 2)[:, None] * noise
        latents = torch.lerp(moving.detach(), moving, share[..., None])
        mean, log_var = mean.detach()[:, None], log_var.detach()[:, None]
        distance = (latents - mean).square() * exp(-log_var)
        log_ratio = sum_rows(distance - latents.square() + log_var) / 2
        return self.log_likelihood(images, latents, labels) + log_ratio

    def batch_log_prob(self, batch: Batch) -> Tensor:
        """Return the bound that training raises, on fresh noise, (N,)."""
        images, labels = self._unpack(batch)
        noise = self._draw_noise(len(images), self._num_samples())
        weights = self._affordable_log_weights(images, noise, labels, *self.encoder(images, labels))
        return log_mean_exp(weights)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return a loss whose gradient is that of the negative bound.

        For k > 1 the gradient Σ_k w̃_k ∇log w_k is estimated without bias by one of its terms,
        drawn with the probabilities w̃_k = w_k / Σ w: k forward passes and one backward pass
        (Burda et al., end of section 3). With respect to the encoder it is that of
        `doubly_reparameterized`.
        """
        images, labels = self._unpack(batch)
        num_samples = self._num_samples()
        posterior = self.encoder(images, labels)
        noise = self._draw_noise(len(images), num_samples)
        if num_samples == 1:
            bound = self.elbo(images, noise, labels, *posterior)
            loss = -bound.mean()
        else:
            with torch.no_grad():
                weights = self._affordable_log_weights(images, noise, labels, *posterior)
                bound = log_mean_exp(weights)
                shares = torch.softmax(weights, dim=1)
                chosen = torch.multinomial(shares, 1)
                noise = noise.gather(1, chosen[..., None].expand(-1, -1, noise.shape[2]))
                share = shares.gather(1, chosen)
            loss = -self.doubly_reparameterized(images, noise, share, labels, *posterior).mean()
        self.log("train_nll", -bound.mean(), prog_bar=True, on_epoch=True)
        return loss

    def _affordable_log_weights(
        self, images: Tensor, noise: Tensor, labels: Tensor | None, mean: Tensor, log_var: Tensor
    ) -> Tensor:
        parts = torch.split(noise, max(1, _MAX_DECODINGS // len(images)), dim=1)
        weights = [self._log_weights(images, part, labels, mean, log_var) for part in parts]
        return torch.cat(weights, dim=1)

    def _unpack(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        images, labels = batch
        return images, labels if self.config.conditional else None

    def _num_samples(self) -> int:
        is_early = self._trainer is not None and self.current_epoch < self.config.elbo_epochs
        return 1 if is_early else self.config.num_importance_samples

    def _draw_noise(self, num_rows: int, num_samples: int) -> Tensor:
        return torch.randn(num_rows, num_samples, self.config.latent_dim, device=self.device)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return decoder, bound and encoder; those of a conditional model take `label` too."""
        if self.config.conditional:
            return {
                "generate": GenerateClass(self),
                "log_prob": LogProbClass(self),
                "encode": EncodeClass(self),
            }
        return {"generate": Generate(self), "log_prob": LogProb(self), "encode": Encode(self)}


class Encoder(nn.Module):
    """image (N, C, H, W) in [0, 1] -> mean and log_var of q(z|x), (N, D) each."""

    def __init__(self, config: Config, image: Image, num_classes: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        width_in: int
        width_in, height, width = image.shape
        for width_out in config.encoder_channels:
            stages += [nn.Conv2d(width_in, width_out, 4, 2, 1), nn.SiLU()]
            width_in, height, width = width_out, height // 2, width // 2
        self.stages = nn.Sequential(*stages)
        self.hidden = nn.Linear(width_in * height * width, config.hidden)
        self.classes = nn.Embedding(num_classes, config.hidden) if num_classes else None
        self.posterior = nn.Linear(config.hidden, 2 * config.latent_dim)

    def forward(self, image: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode images."""
        hidden = self.hidden(self.stages(image - 0.5).flatten(1))
        if self.classes is not None:
            hidden = hidden + self.classes(label)
        mean, log_var = self.posterior(functional.silu(hidden)).float().chunk(2, dim=1)
        return mean, log_var


class Decoder(nn.Module):
    """latent (N, D) -> parameters of p(x|z), (N, P·C, H, W).

    A stage doubles the map by a convolution to four times the channels, which it lays out as
    2×2 pixels: on a CPU twice as fast as a transposed convolution of the same reach.

    Source:
        Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
        Sub-Pixel Convolutional Neural Network", 2016, arXiv:1609.05158, equation 4.
    """

    def __init__(self, config: Config, image: Image, num_outputs: int, num_classes: int) -> None:
        super().__init__()
        channels, height, width = image.shape
        scale = 2 ** len(config.decoder_channels)
        if height % scale or width % scale:
            raise ValueError(
                f"{len(config.decoder_channels)} stages double the size {scale} times in all, so "
                f"height and width must be multiples of {scale}; the images are {height}×{width}"
            )
        widths = (*config.decoder_channels, num_outputs * channels)
        self.start = (widths[0], height // scale, width // scale)
        self.hidden = nn.Linear(config.latent_dim, config.hidden)
        self.classes = nn.Embedding(num_classes, config.hidden) if num_classes else None
        self.project = nn.Linear(config.hidden, math.prod(self.start))
        stages: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            stages += [nn.SiLU(), nn.Conv2d(width_in, 4 * width_out, 3, 1, 1), nn.PixelShuffle(2)]
        self.stages = nn.Sequential(*stages)
        self.bias = nn.Parameter(torch.zeros(num_outputs * channels, height, width))

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """Decode latents."""
        hidden = self.hidden(latent)
        if self.classes is not None:
            hidden = hidden + self.classes(label)
        features = self.project(functional.silu(hidden)).reshape(-1, *self.start)
        outputs: Tensor = self.stages(features).float() + self.bias
        return outputs


class Generate(nn.Module):
    """noise -> the mean image of p(x|z) in [0, 1]."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.decoder, self.likelihood = model.decoder, model.likelihood
        self.shape = model.image.shape

    def forward(self, noise: Tensor) -> Tensor:
        """Decode, (N, D) -> (N, C, H, W)."""
        return self.decode(noise, None)

    def decode(self, noise: Tensor, label: Tensor | None) -> Tensor:
        """Decode, perhaps as a class, (N, D) and (N,) -> (N, C, H, W)."""
        outputs = self.decoder(noise, label)
        return self.likelihood.mean(outputs.reshape(-1, self.likelihood.num_outputs, *self.shape))


class GenerateClass(Generate):
    """noise, label -> the mean image of p(x|z, label) in [0, 1]."""

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        """Decode, (N, D) and (N,) -> (N, C, H, W)."""
        return self.decode(noise, label)


class LogProb(nn.Module):
    """image, noise (N, K, D) -> log 1/K Σ w (N,), and log w (N, K) for those who want more."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Bound the log-likelihood in nats."""
        weights = self.model.log_weights(image, noise)
        return log_mean_exp(weights), weights


class LogProbClass(LogProb):
    """image, noise, label -> the same for log p(x given label)."""

    def forward(self, image: Tensor, noise: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Bound the log-likelihood in nats."""
        weights = self.model.log_weights(image, noise, label)
        return log_mean_exp(weights), weights


class Encode(nn.Module):
    """image -> mean, log_var of q(z|x)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode, (N, C, H, W) -> (N, D), (N, D)."""
        mean, log_var = self.encoder(image)
        return mean, log_var


class EncodeClass(Encode):
    """image, label -> mean, log_var of q(z|x, label)."""

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Encode, (N, C, H, W) and (N,) -> (N, D), (N, D)."""
        mean, log_var = self.encoder(image, label)
        return mean, log_var
