"""Frozen classifiers by which generators are judged: trained here, shipped as small ONNX files.

    export/classifiers/<name>.yaml   the recipe
    export/classifiers/<name>.onnx   image -> probs (N, K), features (N, F)
    export/classifiers/<name>.json   hash and accuracy

Figures of two classifiers cannot be compared, so every figure names the hash of its classifier.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from export.convert import check_graph, write_graph
from export.data import Images, load_split
from export.graph import FloatArray, Graph
from export.model import learning_rate_factor
from export.recipe import DataConfig, Fraction, PositiveInt, Section, TrainingConfig
from export.train import EpochSampler, provenance
from service.manifest import ModelName, Sha256, sha256_of

CLASSIFIERS = Path(__file__).parent / "classifiers"

_NUM_EXAMPLES = 8
_MAX_BATCH_ROWS = 250


class LeNetConfig(Section):
    """Hyperparameters.

    Attributes:
        channels: Feature maps of the two convolutions.
        num_features: F, units before the last layer.
        dropout: Share of the units that are left out of the two dense layers while training.
    """

    channels: tuple[PositiveInt, PositiveInt]
    num_features: PositiveInt
    dropout: Fraction = 0.0


class ClassifierRecipe(Section):
    """Everything needed to make a classifier again."""

    name: ModelName
    description: str
    data: DataConfig
    model: LeNetConfig
    training: TrainingConfig


class Report(BaseModel):
    """What is known of a frozen classifier.

    Attributes:
        sha256: Of the ONNX file.
        accuracy: Share of the test images that it classifies rightly, through ONNX Runtime.
        std_error: Of the accuracy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ModelName
    sha256: Sha256
    accuracy: Annotated[float, Field(ge=0, le=1)]
    std_error: float
    validation_accuracy: Annotated[float, Field(ge=0, le=1)]
    num_test: PositiveInt
    num_parameters: PositiveInt
    classes: tuple[str, ...]
    revision: str
    versions: dict[str, str]


class LeNet(nn.Module):
    """Two convolutions with pooling, a dense layer of features, a softmax.

    Source:
        LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
        1998, section II.B, with ReLU, max pooling and dropout.
    """

    def __init__(self, config: LeNetConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        first, second = config.channels
        height, width = ((size - 4) // 2 for size in shape[1:])
        height, width = (height - 4) // 2, (width - 4) // 2
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(shape[0], first, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.dense = nn.Linear(second * height * width, config.num_features)
        self.output = nn.Linear(config.num_features, num_classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K) and features (N, F) of images in [0, 1]."""
        maps = self.convolutions(image).flatten(1)
        features = functional.relu(self.dense(self.dropout(maps)))
        return self.output(self.dropout(features)), features


class Frozen(nn.Module):
    """image -> probs (N, K), features (N, F), as the graph has them."""

    def __init__(self, lenet: LeNet) -> None:
        super().__init__()
        self.lenet = lenet

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classify."""
        logits, features = self.lenet(image)
        return torch.softmax(logits, dim=1), features


class Classifier:
    """A frozen classifier.

    Args:
        name: One of `classifier_names`.
        folder: Where it is.

    Raises:
        FileNotFoundError: It is not trained.
        ValueError: The ONNX file is not the one that its report describes.
    """

    def __init__(self, name: str, folder: Path = CLASSIFIERS) -> None:
        path = folder / f"{name}.onnx"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `python -m export classifier {name}`")
        self._graph = Graph(path, _MAX_BATCH_ROWS)
        content = path.with_suffix(".json").read_bytes()
        self.report = Report.model_validate_json(content)
        if sha256_of(path) != self.report.sha256:
            raise ValueError(f"{path} is not the file that {name}.json describes")

    def __call__(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return probs (N, K) and features (N, F) of images in [0, 1], shape (N, C, H, W)."""
        outputs = self._graph({"image": images})
        return outputs["probs"], outputs["features"]


def classifier_names(folder: Path = CLASSIFIERS) -> list[str]:
    """List the classifiers that have a recipe."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_classifier_recipe(name: str, folder: Path = CLASSIFIERS) -> ClassifierRecipe:
    """Read a recipe by the name of its classifier.

    Raises:
        ValueError: There is none, or a field breaks its rule.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(classifier_names(folder))
        raise ValueError(f"no classifier {name!r}; there are: {known}")
    return ClassifierRecipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def classifier_for(source: str, folder: Path = CLASSIFIERS) -> Classifier | None:
    """Find the frozen classifier of a data set; None where there is none."""
    for name in classifier_names(folder):
        trained = (folder / f"{name}.onnx").is_file()
        if trained and read_classifier_recipe(name, folder).data.source == source:
            return Classifier(name, folder)
    return None


def make_classifier(recipe: ClassifierRecipe, folder: Path = CLASSIFIERS) -> Report:
    """Train a classifier, freeze it and measure it.

    Args:
        recipe: What to train.
        folder: Where to write `<name>.onnx` and `<name>.json`.

    Returns:
        The report that was written.

    Raises:
        FileNotFoundError: The data is missing.
    """
    about = provenance()  # of the code as it is now, which may be edited while it trains
    split = load_split(recipe.data)
    torch.manual_seed(recipe.training.seed)
    num_classes = len(split.classes)
    lenet = LeNet(recipe.model, split.train.pixels.shape[1:], num_classes)
    fit(lenet, split.train, recipe.training)
    path = folder / f"{recipe.name}.onnx"
    module = Frozen(lenet).eval().requires_grad_(False)
    examples = {"image": split.test[:_NUM_EXAMPLES].values}
    write_graph(module, ("probs", "features"), examples, path)
    check_graph(path, module, examples)
    graph = Graph(path, _MAX_BATCH_ROWS)
    accuracy = accuracy_of(graph, split.test)
    report = Report(
        name=recipe.name,
        sha256=sha256_of(path),
        accuracy=accuracy,
        std_error=math.sqrt(accuracy * (1 - accuracy) / len(split.test)),
        validation_accuracy=accuracy_of(graph, split.validation),
        num_test=len(split.test),
        num_parameters=sum(parameter.numel() for parameter in lenet.parameters()),
        classes=split.classes,
        revision=about["revision"],
        versions=about["versions"],
    )
    text = json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return report


def fit(lenet: LeNet, images: Images, training: TrainingConfig) -> None:
    """Minimize the cross-entropy of the labels by AdamW, in place."""
    optimizer = torch.optim.AdamW(
        lenet.parameters(),
        lr=training.learning_rate,
        betas=training.betas,
        weight_decay=training.weight_decay,
    )
    num_steps = training.epochs * (len(images) // training.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(training, step, num_steps)
    )
    lenet.train()
    for image, label in _batches(images, training):
        loss = functional.cross_entropy(lenet(image)[0], label)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def accuracy_of(graph: Graph, images: Images) -> float:
    """Return the share of images whose most probable class is their label."""
    if not len(images):
        return 0.0
    probs: Any = graph({"image": images.values})["probs"]
    return float((probs.argmax(axis=1) == images.labels).mean())


def _batches(images: Images, training: TrainingConfig) -> Iterator[tuple[Tensor, Tensor]]:
    sampler = EpochSampler(len(images), training.seed)
    for epoch in range(training.epochs):
        sampler.set_epoch(epoch)
        order = np.array([row for _, row in sampler])
        for start in range(0, len(order) - training.batch_size + 1, training.batch_size):
            rows = order[start : start + training.batch_size]
            values = torch.from_numpy(images.pixels[rows] / np.float32(255))
            yield values, torch.from_numpy(images.labels[rows])
