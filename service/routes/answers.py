"""What JSON answers hold, for the OpenAPI document and for whoever builds them by hand.

Answers are dictionaries, written without validation because that is faster; these types describe
them. A member that is not required is left out, never null.
"""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads `typing`'s own only from Python 3.12 on

from service.latents import Method
from service.manifest import (
    Calibration,
    Density,
    FileName,
    Graph,
    Image,
    Metric,
    Noise,
    Operation,
    Role,
    Sha256,
    Training,
)
from service.scoring import Binarize, Status

Name = Annotated[str, Field(description="Name of the model that answered.")]
Version = Annotated[int, Field(ge=1, description="Its version.")]
Index = Annotated[int, Field(ge=0, description="Position of the image in the request, from 0.")]
Png = Annotated[
    str,
    Field(description="The image, a PNG file in base64.", json_schema_extra={"format": "byte"}),
]
Latent = Annotated[list[float], Field(description="Code of the image, (latent_dim,).")]
ClassName = Annotated[str, Field(description="Class of the image; of a conditional model.")]
UsedSeed = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern="^[0-9]{1,20}$")],
    Field(description="What the images were drawn from; text of digits above 2⁵³."),
]
Shares = Annotated[dict[str, float | None], Field(description="p(label given image), by class.")]
LogProbs = Annotated[
    dict[str, float | None],
    Field(description="log p(image given label) in nats, by class; null if it is not finite."),
]
NumSamples = Annotated[int, Field(ge=1, description="Samples behind a bound; not of exact ones.")]
Estimator = Annotated[
    Literal["exact", "elbo", "iwae"],
    Field(description="exact, or a lower bound: of one sample (elbo) or of several (iwae)."),
]
ScoreStatus = Annotated[
    Status, Field(description="neg_inf: impossible under the model. non_finite: not computable.")
]


class SampledImage(TypedDict):
    """One image that was drawn."""

    index: Annotated[
        int, Field(ge=0, description="The image depends on (seed, index) alone; see first_index.")
    ]
    png: Png
    label: NotRequired[ClassName]
    latent: NotRequired[Latent]
    log_prob: NotRequired[Annotated[float | None, Field(description="In nats; if included.")]]


class SampleAnswer(TypedDict):
    """Images that were drawn."""

    model: Name
    version: Version
    seed: Annotated[UsedSeed | None, Field(description="null where latents were given.")]
    images: list[SampledImage]


class Frame(TypedDict):
    """One image of a walk (`t`) or of a square (`row`, `column`)."""

    t: NotRequired[
        Annotated[float, Field(ge=0, le=1, description="Place on the path, from 0 to 1.")]
    ]
    row: NotRequired[Annotated[int, Field(ge=0, description="Row in the square.")]]
    column: NotRequired[Annotated[int, Field(ge=0, description="Column in the square.")]]
    png: Png
    latent: Latent
    label: NotRequired[ClassName]


class InterpolateAnswer(TypedDict):
    """A walk or a square."""

    model: Name
    version: Version
    method: Annotated[Method, Field(description="How it was walked between anchors.")]
    frames: list[Frame]


class Preprocess(TypedDict):
    """What was done to the images before they were scored."""

    binarize: Annotated[Binarize | None, Field(description="null for a model of grey levels.")]


class Score(TypedDict):
    """How likely one image is."""

    index: Index
    log_prob: Annotated[
        float | None,
        Field(description="Natural logarithm, in nats per image; null unless status is ok."),
    ]
    bits_per_dim: Annotated[
        float | None,
        Field(description="−log_prob / (num_dims · ln 2); null unless status is ok."),
    ]
    status: ScoreStatus
    std_error: NotRequired[
        Annotated[
            float | None,
            Field(description="In nats; of a bound of more than one importance sample."),
        ]
    ]
    anomaly_score: NotRequired[
        Annotated[
            float | None,
            Field(description="Higher is more unusual; of a calibrated model. null: infinite."),
        ]
    ]
    p_value: NotRequired[
        Annotated[
            float | None,
            Field(ge=0, le=1, description="Share of ordinary images that are at least as unusual."),
        ]
    ]
    per_dim: NotRequired[
        Annotated[
            list[list[float | None]] | list[list[list[float | None]]],
            Field(description="−log p(x_i given x_<i) in nats, (H, W) or (H, W, C)."),
        ]
    ]


class LogProbAnswer(TypedDict):
    """How likely images are."""

    model: Name
    version: Version
    density: Annotated[Density, Field(description="exact, or a lower bound.")]
    estimator: Estimator
    num_importance_samples: NotRequired[NumSamples]
    num_dims: Annotated[int, Field(ge=1, description="Values per image, C·H·W.")]
    preprocess: Preprocess
    results: list[Score]


class Classification(TypedDict):
    """Which class one image belongs to."""

    index: Index
    label: Annotated[str | None, Field(description="The likeliest class; null unless ok.")]
    probs: Shares
    log_prob: LogProbs
    status: ScoreStatus


class ClassifyAnswer(TypedDict):
    """Which classes images belong to, all classes equally likely beforehand."""

    model: Name
    version: Version
    density: Annotated[Density, Field(description="exact, or a lower bound.")]
    estimator: Estimator
    num_importance_samples: NotRequired[NumSamples]
    results: list[Classification]


class Posterior(TypedDict):
    """Where one image lies in latent space: a normal distribution for each coordinate."""

    index: Index
    mean: Annotated[list[float], Field(description="(latent_dim,).")]
    log_var: Annotated[list[float], Field(description="Logarithm of the variance, (latent_dim,).")]


class EncodeAnswer(TypedDict):
    """Latents of images."""

    model: Name
    version: Version
    latents: list[Posterior]


class ReconstructedImage(TypedDict):
    """One image, encoded and decoded again."""

    index: Index
    png: Png


class ReconstructAnswer(TypedDict):
    """Images, encoded and decoded again."""

    model: Name
    version: Version
    images: list[ReconstructedImage]


class Limits(TypedDict):
    """What a request may ask for."""

    max_rows: Annotated[int, Field(ge=1, description="Images per request.")]
    max_body_bytes: Annotated[int, Field(ge=1, description="Bytes of a request's body.")]
    max_timeout_ms: Annotated[int, Field(ge=0, description="Longest deadline.")]
    max_importance_samples: NotRequired[
        Annotated[int, Field(ge=1, description="Samples per image; of a bound.")]
    ]


class ModelDescription(TypedDict):
    """All that a client may want to know of a version of a model."""

    name: Annotated[str, Field(description="What requests call it.")]
    version: Version
    family: Annotated[str, Field(description="Kind of model.")]
    description: str
    density: Annotated[
        Density, Field(description="What is known of the likelihood; implicit: nothing.")
    ]
    image: Image
    noise: Noise
    labels: Annotated[list[str], Field(description="Names of the classes, by number; or none.")]
    ordering: Annotated[
        Literal["raster"] | None, Field(description="In which order pixels are drawn, if they are.")
    ]
    num_parameters: Annotated[int, Field(ge=1)]
    graphs: Annotated[dict[Role, Graph], Field(description="The ONNX files, by role.")]
    files: Annotated[dict[FileName, Sha256], Field(description="Other files and their SHA-256.")]
    metrics: Annotated[list[Metric], Field(description="Measured figures.")]
    calibration: Annotated[
        Calibration | None, Field(description="What p-values are ranked among, if there are any.")
    ]
    training: Training
    operations: Annotated[list[Operation], Field(description="What can be asked of it.")]
    options: Annotated[
        list[str], Field(description="Fields of requests that it takes and not every model does.")
    ]
    versions: Annotated[list[int], Field(description="All versions of the model, rising.")]
    limits: Limits
    links: Annotated[
        dict[Literal["card", "preview", "film"], str], Field(description="Paths of its files.")
    ]


class ModelList(TypedDict):
    """The newest version of every model."""

    models: list[ModelDescription]
    default: Annotated[
        str | None, Field(description="The model of requests that name none, if there is one.")
    ]


class Liveness(TypedDict):
    """The process answers."""

    status: Literal["alive"]


class Readiness(TypedDict):
    """Whether traffic should come here."""

    status: Literal["ready", "not ready"]
    reason: NotRequired[Annotated[str, Field(description="Why not.")]]
    models: Annotated[list[str], Field(description="What is served, as name@version.")]
    broken: NotRequired[
        Annotated[dict[str, str], Field(description="What cannot be served, and why.")]
    ]
