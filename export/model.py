"""What every family offers to training, conversion and evaluation."""

import inspect
import math
from abc import ABC, abstractmethod
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Literal

import lightning
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from export import families
from export.recipe import Recipe, TrainingConfig
from service.manifest import Density, Image, Noise, Role, Values

Batch = tuple[Tensor, Tensor]


class FamilyConfig(BaseModel):
    """Hyperparameters of a family; every family file has its own `Config` beside its `Model`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerativeModel(lightning.LightningModule, ABC):
    """A model of one family: how it is trained, and the graphs that it becomes.

    A family with a tractable likelihood or bound defines `log_prob` and is trained by maximum
    likelihood as written here; others override the training hooks.

    Attributes:
        density: Whether log p is exact, bounded, or only implied by the generator.
        draws: What follows what, each along the raster, in a family that draws value by value:
            pixels, with all of their channels, or one plane of a channel after the other.
        values: What a pixel may be.

    Args:
        config: The family's hyperparameters.
        image: The images to model.
        num_classes: Number of labels; 0 without.
        training: Optimizer and schedule.
    """

    density: ClassVar[Density]
    draws: ClassVar[Literal["pixels", "planes"] | None] = None
    values: ClassVar[tuple[Values, ...]] = ("binary", "8-bit", "continuous")

    def __init__(
        self, config: FamilyConfig, image: Image, num_classes: int, training: TrainingConfig
    ) -> None:
        super().__init__()
        self.image = image
        self.num_classes = num_classes
        self.training_config = training
        self.build(config)

    @abstractmethod
    def build(self, config: Any) -> None:
        """Create the parameters."""

    @property
    @abstractmethod
    def noise(self) -> Noise:
        """What the generator consumes."""

    @abstractmethod
    def graphs(self) -> dict[Role, nn.Module]:
        """Return a module per role; the arguments of its `forward` name the graph's inputs.

        `generate` takes `noise` and perhaps `temperature`, `known` and `known_mask`, and returns
        the image. `log_prob` takes `image` and returns log_prob (N,) in nats and, for exact
        models, conditional_log_prob (N, C, H, W). Both graphs of a class-conditional model take
        `label` too: class numbers, shape (N,), int64.
        """

    def shipped_graphs(self) -> dict[Role, nn.Module]:
        """Return the modules that a bundle gets: `graphs`, or a form of them that runs anywhere.

        May take seconds, unlike `graphs`.
        """
        return self.graphs()

    @property
    def is_conditional(self) -> bool:
        """Whether the graphs ask for a class."""
        return "label" in inspect.signature(self.graphs()["generate"].forward).parameters

    @property
    def ordering(self) -> Literal["raster"] | None:
        """The order in which pixels are drawn, if the first rows of an image come first in it.

        Only then is what a model draws given these rows a draw from p(rest | rows): a red plane
        that is drawn as a whole does not know of the green above it.
        """
        by_pixel = self.draws == "pixels" or (self.draws == "planes" and self.image.shape[0] == 1)
        return "raster" if by_pixel else None

    def num_parameters(self) -> int:
        """Count the free parameters of the shipped model."""
        return sum(parameter.numel() for parameter in self.parameters())

    def initialize(self, images: Tensor) -> None:
        """Choose initial values that depend on the data; called once, before the first step.

        Args:
            images: All training images, shape (N, C, H, W), uint8.
        """

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x), or a lower bound on it, in nats.

        Args:
            images: Shape (N, C, H, W), in [0, 1].

        Returns:
            Shape (N,).
        """
        raise TypeError(f"{type(self).__name__} is {self.density}: it has no log_prob")

    def batch_log_prob(self, batch: Batch) -> Tensor:
        """Return log p of the images of a batch, in nats, shape (N,).

        A class-conditional family gives log p(x given label) here, with the labels in batch[1].
        """
        return self.log_prob(batch[0])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the mean negative log-likelihood of a batch and the penalty, in nats per image."""
        nll = -self.batch_log_prob(batch).mean()
        self.log("train_nll", nll, prog_bar=True, on_epoch=True)
        return nll + self.penalty()

    def penalty(self) -> Tensor | float:
        """Return what training minimizes beside the negative log-likelihood, in nats per image.

        A prior over the weights belongs here: −log p(weights) over the number of training images.
        """
        return 0.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the mean negative log-likelihood of held-out images, in nats per image."""
        if self.density != "implicit":
            nll = -self.batch_log_prob(batch).mean()
            self.log("val_nll", nll, prog_bar=True, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        """Use AdamW with the recipe's schedule, one step of it per batch.

        Only matrices and kernels decay: a bias that must be far from 0, such as that of a pixel
        which is always black, is no sign of overfitting.
        """
        training = self.training_config
        weights = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in self.parameters() if parameter.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": weights, "weight_decay": training.weight_decay},
                {"params": biases, "weight_decay": 0.0},
            ],
            lr=training.learning_rate,
            betas=training.betas,
        )
        # A run that stops early, to go on later, follows the schedule of the whole.
        share = training.epochs / (self.trainer.max_epochs or training.epochs)
        num_steps = round(self.trainer.estimated_stepping_batches * share)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(training, step, num_steps)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def learning_rate_factor(training: TrainingConfig, step: int, num_steps: int) -> float:
    """Return what the learning rate is multiplied by at a step: warm-up, then the schedule."""
    warmup = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    if training.schedule == "constant":
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))


def family_names() -> list[str]:
    """List the families: the modules of `export.families`."""
    return sorted(module.name for module in iter_modules(families.__path__))


def build_model(recipe: Recipe, image: Image, num_classes: int) -> GenerativeModel:
    """Create the model of a recipe, untrained.

    Raises:
        ValueError: There is no such family, its hyperparameters break a rule, or it does not
            model images of this kind.
    """
    if recipe.family not in family_names():
        raise ValueError(f"no family {recipe.family!r}; there are: {', '.join(family_names())}")
    family = import_module(f"export.families.{recipe.family}")
    if image.values not in family.Model.values:
        raise ValueError(
            f"{recipe.family} models {' and '.join(family.Model.values)} images, these are "
            f"{image.values}: set data.binarization or data.dequantize"
        )
    config: FamilyConfig = family.Config.model_validate(recipe.model)
    model: GenerativeModel = family.Model(config, image, num_classes, recipe.training)
    return model
