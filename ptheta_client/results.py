"""What calls return.

Fields that an answer does not have are None: what a server knows depends on the model, on what was
asked for, and on its version.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from ptheta_client.images import UInt8Array, to_pictures

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Document = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Answer:
    """What every answer of a model tells.

    Attributes:
        model: Its name.
        version: Its version.
    """

    model: str
    version: int

    @property
    def reference(self) -> str:
        """Name and version as requests take them: `nade-mnist@1`."""
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, eq=False)
class Images(Answer):
    """Images of a model.

    Attributes:
        images: Grey levels 0…255, shape (n, H, W) or (n, H, W, 3).
    """

    images: UInt8Array

    def pictures(self) -> list[PillowImage.Image]:
        """Return them as PIL images."""
        return to_pictures(self.images)


@dataclass(frozen=True, eq=False)
class Samples(Images):
    """Images that were drawn.

    Attributes:
        seed: What they were drawn from; None where latents were given.
        indices: Image i is a function of (seed, indices[i]) alone.
        labels: Class of each, of a class-conditional model.
        latents: Shape (n, D), where asked for.
        log_prob: In nats, (n,), where asked for; −∞ and NaN are both NaN.
    """

    seed: int | None
    indices: tuple[int, ...]
    labels: tuple[str, ...] | None = None
    latents: Float32Array | None = None
    log_prob: Float64Array | None = None


@dataclass(frozen=True, eq=False)
class Walk(Images):
    """Frames along a path through latent space, or of a grid between four latents.

    Attributes:
        method: How it walked.
        t: Where on the path each frame is, from 0 to 1; None of a grid.
        latents: Shape (n, D).
        labels: Class of each frame, of a class-conditional model.
    """

    method: str
    t: tuple[float, ...] | None = None
    latents: Float32Array | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Latents(Answer):
    """The posterior over the latents of each image, a diagonal normal distribution.

    Attributes:
        mean: Shape (n, D).
        log_var: Shape (n, D).
    """

    mean: Float32Array
    log_var: Float32Array


@dataclass(frozen=True, eq=False)
class Score:
    """How likely one image is.

    Attributes:
        index: Its place among the images that were sent.
        log_prob: In nats; −∞ where `status` is `neg_inf`, NaN where it is `non_finite`.
        bits_per_dim: −log_prob / (num_dims · ln 2).
        status: `ok`, `neg_inf` or `non_finite`.
        std_error: Of a bound estimated from several samples, in nats.
        p_value: Of 1 / p_value ordinary images about one looks as unusual.
        anomaly_score: Higher is more unusual.
        per_dim: Surprise of each pixel in nats, (H, W) or (H, W, 3), where asked for; NaN where it
            is not finite.
    """

    index: int
    log_prob: float
    bits_per_dim: float
    status: str
    std_error: float | None = None
    p_value: float | None = None
    anomaly_score: float | None = None
    per_dim: Float64Array | None = None


@dataclass(frozen=True, eq=False)
class Scores(Answer):
    """How likely images are.

    Attributes:
        density: `exact` or `bound`.
        estimator: `exact`, `elbo` or `iwae`.
        num_dims: Values per image, C·H·W.
        results: One per image, in the order in which they were sent.
        num_importance_samples: Of a bound.
        preprocess: What was done to the images first.
    """

    density: str
    estimator: str
    num_dims: int
    results: tuple[Score, ...]
    num_importance_samples: int | None = None
    preprocess: Document = field(default_factory=dict)

    @property
    def log_prob(self) -> Float64Array:
        """Of all images, in nats, (n,)."""
        return np.array([result.log_prob for result in self.results])

    @property
    def bits_per_dim(self) -> Float64Array:
        """Of all images, (n,)."""
        return np.array([result.bits_per_dim for result in self.results])


@dataclass(frozen=True, eq=False)
class Classification:
    """What class one image is of.

    Attributes:
        index: Its place among the images that were sent.
        label: The likeliest class; None where the image is possible in none.
        probs: p(label given image) by name of the class; NaN then.
    """

    index: int
    label: str | None
    probs: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Classifications(Answer):
    """What classes images are of.

    Attributes:
        results: One per image, in the order in which they were sent.
    """

    results: tuple[Classification, ...]

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The likeliest class of each image."""
        return tuple(result.label for result in self.results)


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """A model that can be asked.

    Attributes:
        density: `exact`, `bound` or `implicit`.
        operations: What it can do, `sample` and so on.
        versions: All that are served.
        image_shape: (C, H, W).
        values: `binary`, `8-bit` or `continuous`.
        labels: Names of its classes; empty if it is not conditional.
        latent_dim: Length of its latents; None if it has none.
        limits: Of one request, `max_rows` and so on.
        document: All that the server says: metrics, training, files, links.
    """

    name: str
    version: int
    family: str
    description: str
    density: str
    operations: tuple[str, ...]
    versions: tuple[int, ...]
    image_shape: tuple[int, int, int]
    values: str
    labels: tuple[str, ...]
    latent_dim: int | None
    limits: Mapping[str, int]
    document: Document = field(repr=False)

    @property
    def reference(self) -> str:
        """Name and version as requests take them: `nade-mnist@1`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, eq=False)
class Readiness:
    """Whether a server is ready for traffic.

    Attributes:
        is_ready: Whether it is.
        reason: Why not.
        models: References of what it serves.
        broken: What it cannot serve, and why.
    """

    is_ready: bool
    reason: str | None
    models: tuple[str, ...]
    broken: Mapping[str, str]
