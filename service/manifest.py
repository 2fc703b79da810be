"""What a bundle is: one version of one model on disk, and the manifest that describes it.

    model_store/<name>/<version>/
        model.json       the manifest below
        generate.onnx    noise [, label] -> image             every model
        log_prob.onnx    image [, label] -> log_prob          density exact
        log_prob.onnx    image, noise [, label] -> log_prob, log_weight      density bound
        encode.onnx      image [, label] -> mean, log_var     models with an encoder
        golden.npz       <graph>.<tensor>: inputs and outputs that a right graph reproduces
        calibration.npz  scores of held-out images         exact or bound, with a validation part
        README.md        the model card
        preview.png      images of seed 0
        film.webp        the same noise drawn at points of the training

Written by `export`, read by `service`, defined here once.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.noise import Prior

MANIFEST_FILE = "model.json"
GOLDEN_FILE = "golden.npz"
CARD_FILE = "README.md"
PREVIEW_FILE = "preview.png"
FILM_FILE = "film.webp"

Density = Literal["exact", "bound", "implicit"]
Role = Literal["generate", "log_prob", "encode"]
Values = Literal["binary", "8-bit", "continuous"]
Operation = Literal[
    "sample", "interpolate", "log_prob", "classify", "complete", "encode", "reconstruct"
]

ModelName = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]
PositiveInt = Annotated[int, Field(gt=0)]


class Document(BaseModel):
    """A part of the manifest: immutable, and strict about unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Image(Document):
    """The images that a model makes and scores.

    Attributes:
        shape: (C, H, W).
        values: What a pixel can be. Graphs see pixels in [0, 1]; a `binary` graph sees 0 and 1.
    """

    shape: tuple[Literal[1, 3], PositiveInt, PositiveInt]
    values: Values

    @property
    def num_dims(self) -> int:
        """Number of values per image, C·H·W."""
        channels, height, width = self.shape
        return channels * height * width


class Noise(Document):
    """What the generator consumes.

    Attributes:
        prior: Distribution of the noise.
        shape: Shape of one row.
        latent: Whether the noise is a smooth code of the image, so that one can walk in it.
    """

    prior: Prior
    shape: tuple[PositiveInt, ...]
    latent: bool

    @model_validator(mode="after")
    def _latent_is_a_vector(self) -> Self:
        if self.latent and len(self.shape) != 1:
            raise ValueError(f"a latent has shape (D,), got {self.shape}")
        return self


class Graph(Document):
    """One ONNX file with named inputs and outputs.

    Attributes:
        max_batch_rows: Largest batch worth running at once; more rows only add latency.
        activation_bytes: Most that one node of the graph puts out, where that was measured: per
            row, or per importance sample of a row.
    """

    file: Annotated[str, Field(pattern=r"^[a-z_]+\.onnx$")]
    sha256: Sha256
    num_bytes: PositiveInt
    max_batch_rows: PositiveInt
    activation_bytes: PositiveInt | None = None


class Calibration(Document):
    """Scores of images that were held out of training, which make a score a p-value.

    Attributes:
        num_images: Held-out images, all of them.
        num_ranked: Those among which an image is ranked; the others tell what is usual.
    """

    num_images: PositiveInt
    num_ranked: PositiveInt


class Metric(Document):
    """A measured figure, with what is needed to compare it: protocol, count, spread, unit."""

    name: str
    value: float
    std_error: float | None = None
    unit: str
    protocol: str
    num_images: PositiveInt


class Source(Document):
    """The data that a model was trained on."""

    name: str
    licence: str
    origin: str
    num_train: PositiveInt
    num_validation: Annotated[int, Field(ge=0)]
    num_test: Annotated[int, Field(ge=0)]


class Training(Document):
    """How the weights came about; the recipe makes them again."""

    data: Source
    recipe: dict[str, Any]
    seed: int
    seconds: Annotated[float, Field(ge=0)]
    machine: str
    revision: str
    versions: dict[str, str]
    created: str


class Manifest(Document):
    """The manifest of a bundle, stored as `model.json`.

    Attributes:
        labels: Names of the classes of a class-conditional model, whose graphs take their numbers
            as `label` (N,), int64; empty for any other model.
    """

    schema_version: Literal[1] = 1
    name: ModelName
    version: PositiveInt
    family: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    description: str
    density: Density
    image: Image
    noise: Noise
    labels: tuple[str, ...] = ()
    ordering: Literal["raster"] | None = None
    num_parameters: PositiveInt
    graphs: dict[Role, Graph]
    files: dict[FileName, Sha256]
    metrics: tuple[Metric, ...] = ()
    calibration: Calibration | None = None
    training: Training

    @model_validator(mode="after")
    def _graphs_fit_the_density(self) -> Self:
        if "generate" not in self.graphs:
            raise ValueError("every model has a generate graph")
        if ("log_prob" in self.graphs) != (self.density != "implicit"):
            raise ValueError(f"density {self.density!r} does not fit graphs {sorted(self.graphs)}")
        if "encode" in self.graphs and not self.noise.latent:
            raise ValueError("an encoder needs a latent to encode to")
        if self.density == "bound" and (not self.noise.latent or self.noise.prior != "normal"):
            raise ValueError("a bound draws importance samples of a latent with a normal prior")
        return self

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"two classes share a name: {', '.join(self.labels)}")
        return self

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What the graphs allow a client to ask for."""
        operations: list[Operation] = ["sample"]
        if self.noise.latent:
            operations.append("interpolate")
        if "log_prob" in self.graphs:
            operations.append("log_prob")
            if self.labels:
                operations.append("classify")
        if self.ordering is not None:
            operations.append("complete")
        if "encode" in self.graphs:
            operations += ["encode", "reconstruct"]
        return tuple(operations)

    @property
    def reference(self) -> str:
        """Name and version as clients write them: `nade-mnist@1`."""
        return f"{self.name}@{self.version}"


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of a bundle.

    Raises:
        OSError: There is no readable manifest.
        ValueError: It breaks a rule; the text names the field.
    """
    return Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a bundle."""
    text = manifest.model_dump_json(indent=2)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hash a file, in lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version_folders(store: Path) -> list[tuple[str, int, Path]]:
    """List the bundles of a store as (name, version, folder), sorted; other entries are skipped."""
    # Never into hidden folders: what is being published there may be gone a moment later.
    return sorted(
        (model.name, int(folder.name), folder)
        for model in store.glob("[!.]*/")
        for folder in model.glob("*/")
        if re.fullmatch(r"[1-9][0-9]*", folder.name)
    )
