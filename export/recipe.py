"""Recipes: everything needed to make a shipped model again, as validated YAML."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.manifest import ModelName, Values

RECIPES = Path(__file__).parent / "recipes"

Binarization = Literal["fixed", "dynamic", "threshold", "none"]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a recipe: immutable, and strict about unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """Which images, and how they are prepared.

    Attributes:
        source: A known data set (`python -m export data`), or the path of an .npz or of a folder.
        binarization: How grey levels become 0 and 1: drawn once (`fixed`), drawn anew in every
            epoch of training (`dynamic`; the test part stays fixed), at one half (`threshold`),
            or not at all.
        num_validation: The last so many training images are kept out of training.
        test_fraction: Share of a user's own images that is kept for testing.
        size: Images of a folder are scaled to this height and width.
        channels: Images of a folder become grey (1) or RGB (3).
        pool: Blocks of so many by so many pixels become one, their mean; before binarization.
        crop: Height and width of the part around the centre that is kept; after binarization, so
            that its bits are those of the whole images.
        dequantize: Grey level g becomes a real number, drawn evenly from the 1/256 of [0, 1) that
            belongs to it: anew in every epoch of training, once for validation and test.
        mutation: Share of the pixels of training images that become any grey level. A model of
            such images knows the background, what most pictures have in common, and little else.
    """

    source: str
    binarization: Binarization = "none"
    num_validation: Annotated[int, Field(ge=0)] = 0
    test_fraction: Fraction = 0.1
    size: PositiveInt = 28
    channels: Literal[1, 3] = 1
    pool: PositiveInt = 1
    crop: PositiveInt | None = None
    dequantize: bool = False
    mutation: Fraction = 0.0

    @model_validator(mode="after")
    def _only_greys_are_dequantized(self) -> Self:
        if (self.dequantize or self.mutation) and self.binarization != "none":
            raise ValueError("dequantize and mutation need binarization: none")
        return self

    @property
    def values(self) -> Values:
        """What a pixel can be."""
        if self.binarization != "none":
            return "binary"
        return "continuous" if self.dequantize else "8-bit"


class TrainingConfig(Section):
    """How long and by which optimizer.

    Attributes:
        warmup_steps: Steps over which the learning rate rises linearly from 0.
        gradient_clip: Largest norm of the gradient; 0 for none.
        ema_decay: Decay per step of the moving average of the weights that is shipped; 0 for none.
        precision: `bf16-mixed` multiplies matrices in bfloat16, about 1.6 times as fast for
            convolutions on a recent CPU.
    """

    seed: int = 0
    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    gradient_clip: Annotated[float, Field(ge=0)] = 0.0
    ema_decay: Fraction = 0.0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


class Pretraining(Section):
    """An earlier training of the same model on the same images.

    Training starts with the weights that it ends with, instead of those that the seed gives.

    Attributes:
        binarization: How it makes bits of grey levels; by default as the training that follows.
        training: How long it is and by which optimizer.
    """

    binarization: Binarization | None = None
    training: TrainingConfig


class FilmConfig(Section):
    """The training film: one grid of images, drawn from the same noise as the weights change."""

    rows: PositiveInt = 4
    columns: PositiveInt = 8
    frames: Annotated[int, Field(ge=2)] = 24


class Recipe(Section):
    """A recipe; `model` is validated by the family's own `Config`."""

    name: ModelName
    family: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    description: str
    data: DataConfig
    model: dict[str, Any] = {}
    pretraining: Pretraining | None = None
    training: TrainingConfig
    film: FilmConfig = FilmConfig()
    max_batch_rows: PositiveInt = 64

    @model_validator(mode="after")
    def _pixels_stay_what_they_are(self) -> Self:
        before = self.before()
        if before and before.data.values != self.data.values:
            raise ValueError(
                f"pretraining on {before.data.values} images cannot start a model of "
                f"{self.data.values} ones"
            )
        return self

    def before(self) -> "Recipe | None":
        """Return the recipe of the pretraining, if there is any."""
        if self.pretraining is None:
            return None
        binarization = self.pretraining.binarization or self.data.binarization
        data = self.data.model_copy(update={"binarization": binarization})
        changes = {"data": data, "training": self.pretraining.training, "pretraining": None}
        return self.model_copy(update=changes)

    @property
    def protocol(self) -> str:
        """Name under which results are comparable, such as `mnist-fixed`."""
        data = self.data
        parts = [Path(data.source).name]
        parts += [f"pool{data.pool}"] if data.pool > 1 else []
        parts += [f"crop{data.crop}"] if data.crop else []
        names = {"binary": data.binarization, "8-bit": "8-bit", "continuous": "dequantized"}
        return "-".join([*parts, names[data.values]])


def recipe_names() -> list[str]:
    """List the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a shipped recipe by name, or any recipe by path.

    Args:
        name_or_path: `nade-mnist`, or `my/recipe.yaml`.
        overrides: Changes such as `training.epochs=3`; values are YAML.

    Raises:
        ValueError: There is no such recipe, or a field breaks its rule.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(recipe_names())
        raise ValueError(f"no recipe {name_or_path!r}; shipped ones: {known}; or give a .yaml path")
    fields = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds no fields, but {fields!r}")
    for override in overrides or []:
        _set(fields, override)
    return Recipe.model_validate(fields)


def _set(fields: dict[str, Any], override: str) -> None:
    dotted, separator, value = override.partition("=")
    if not separator:
        raise ValueError(f"override {override!r} is not of the form section.field=value")
    *sections, field = dotted.split(".")
    for section in sections:
        fields = fields.setdefault(section, {})
        if not isinstance(fields, dict):
            raise ValueError(f"override {override!r}: {section} is no section of a recipe")
    fields[field] = _parse(value, f"override {override!r}")


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not YAML: {' '.join(str(error).split())}") from error
