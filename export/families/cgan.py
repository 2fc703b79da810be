"""Conditional GAN: a DCGAN that is told the class, with a projection discriminator."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from export.adversarial import AdversarialModel
from export.families import dcgan
from export.model import Batch
from service.manifest import Image, Role

_INIT_STD = 0.3


class Config(dcgan.Config):
    """Hyperparameters: those of DCGAN."""


class Model(AdversarialModel):
    """image = G(latent, label), latent ~ N(0, I); the density is implicit.

    The class enters the generator as scale and shift of every batch normalization, and the
    discriminator as D(x, y) = ψ(φ(x)) + v_y·φ(x): one vector per class beside the unconditional
    score. That is the shape which log p(x, y)/p_θ(x, y) has where classes are softmax of a linear
    function of features. Otherwise as `dcgan`: spectral norm, non-saturating losses whose value at
    p_θ = p_data is 2·ln 2 for the discriminator, and a moving average of the generator.

    Source:
        Miyato, Koyama, "cGANs with Projection Discriminator", 2018, arXiv:1802.05637, equation 4
        and section 4 (conditional batch normalization).
    """

    def build_players(self, config: Config) -> None:
        """Create generator and discriminator.

        Raises:
            ValueError: The images have no classes.
        """
        if not self.num_classes:
            raise ValueError("cgan needs images with classes; these have none: take dcgan")
        self.generator = Generator(config, self.image, self.num_classes)
        self.discriminator = Discriminator(config, self.image, self.num_classes)

    def condition(self, batch: Batch) -> tuple[Tensor, ...]:
        """Tell both players the labels; generated images take those of the training images."""
        return (batch[1],)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return the generator, with pixels in [0, 1]."""
        return {"generate": Generate(self.generator)}


class ConditionalBatchNorm2d(nn.Module):
    """Batch normalization whose scale and shift belong to the class."""

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm2d(num_channels, affine=False)
        self.scale = nn.Embedding(num_classes, num_channels)
        self.shift = nn.Embedding(num_classes, num_channels)
        # Apart from the start: at Adam's pace, classes that begin alike take thousands of steps
        # to become different.
        nn.init.normal_(self.scale.weight, 1.0, _INIT_STD)
        nn.init.normal_(self.shift.weight, 0.0, _INIT_STD)

    def forward(self, maps: Tensor, label: Tensor) -> Tensor:
        """Normalize, (N, C, H, W), (N,) -> (N, C, H, W)."""
        scale, shift = self.scale(label)[..., None, None], self.shift(label)[..., None, None]
        normalized: Tensor = scale * self.normalize(maps) + shift
        return normalized


class Generator(dcgan.Generator):
    """latent (N, D), label (N,) -> image (N, C, H, W) in [-1, 1]."""

    def __init__(self, config: Config, image: Image, num_classes: int) -> None:
        super().__init__(config, image)
        for index, stage in enumerate(self.stages):
            if isinstance(stage, nn.BatchNorm2d):
                self.stages[index] = ConditionalBatchNorm2d(stage.num_features, num_classes)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        """Decode latents."""
        features = self.project(latent).reshape(-1, *self.start)
        for stage in self.stages:
            is_conditional = isinstance(stage, ConditionalBatchNorm2d)
            features = stage(features, label) if is_conditional else stage(features)
        pixels: Tensor = features.tanh()
        return pixels


class Discriminator(dcgan.Discriminator):
    """image (N, C, H, W) in [-1, 1], label (N,) -> logit (N,) of being real."""

    def __init__(self, config: Config, image: Image, num_classes: int) -> None:
        super().__init__(config, image)
        self.projection = spectral_norm(nn.Embedding(num_classes, self.num_features))

    def forward(self, image: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        """Judge images and whether they fit their labels."""
        features = self.stages(image).flatten(1)
        score: Tensor = self.score(features)[:, 0] + (self.projection(label) * features).sum(dim=1)
        return score.float()  # the losses stay in single precision


class Generate(nn.Module):
    """noise (N, D), label (N,) -> image in [0, 1]."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:
        """Sample, (N, D), (N,) -> (N, C, H, W)."""
        pixels: Tensor = self.generator(noise, label)
        return (pixels + 1) / 2
