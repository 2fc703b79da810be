"""Measure what the model card claims, through ONNX Runtime or through a running service."""

import io
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from export.bounds import (
    NUM_IMPORTANCE_SAMPLES,
    both_bounds,
    predicted_classes,
    protocol_of_samples,
)
from export.classifier import Classifier, classifier_for
from export.convert import BUNDLE_FOLDER
from export.data import Images, Split, load_split
from export.graph import FloatArray, Graph, Tensors
from export.quality import NUM_SAMPLES, quality_metrics
from export.recipe import Recipe
from export.train import new_model
from service.images import decode_npy, encode_npy, to_pixels
from service.manifest import Metric

METRICS_FILE = "metrics.json"
BASELINES_FILE = "baselines.json"
NUM_COMPARED = 1000
NUM_CLASSIFIED = 2000
NUM_CLASSIFYING_SAMPLES = 10
DISTANCE_UNIT = "L2 distance of pixels in [0, 1]"

_TIMEOUT_S = 300
_CHUNK = 1000


def evaluate(recipe: Recipe, run: Path) -> tuple[Metric, ...]:
    """Measure the converted model of a run and write the figures beside its graphs.

    Models with an exact density: `nll` and `bits_per_dim` of the whole test part; on 8-bit images,
    beside them, what lossless picture files of the same images take. With a bound: `nll_elbo`,
    `nll_iwae` and `bits_per_dim`, whose protocols tell K; class-conditional ones also
    `bayes_accuracy`. Others: how near the samples come to training images, and what the frozen
    classifier of the data set, if there is one, sees in them (`export.quality`). Figures of other
    models that a benchmark has left in the run follow.

    Raises:
        FileNotFoundError: The run is not converted, or the data is missing.
    """
    bundle = run / BUNDLE_FOLDER
    split = load_split(recipe.data)
    metrics: tuple[Metric, ...]
    path = bundle / "log_prob.onnx"
    if path.is_file():
        graph = Graph(path, recipe.max_batch_rows)
        if "noise" in graph.inputs:
            metrics = bound_metrics(graph, split.test, recipe.protocol)
        else:
            log_prob = score_test_part(graph, split.test)
            metrics = density_metrics(log_prob, split.test, recipe.protocol)
            if recipe.data.values == "8-bit":
                metrics += file_size_metrics(split.test[:NUM_COMPARED], recipe.protocol)
    else:
        metrics = sample_metrics(recipe, split, bundle / "generate.onnx")
    metrics += read_baselines(run)
    text = json.dumps([metric.model_dump() for metric in metrics], indent=2)
    (bundle / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
    return metrics


def read_metrics(bundle: Path) -> tuple[Metric, ...]:
    """Read the figures of a bundle.

    Raises:
        FileNotFoundError: It is not evaluated.
    """
    path = bundle / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m export evaluate` first")
    return tuple(Metric.model_validate(fields) for fields in json.loads(path.read_bytes()))


def read_baselines(run: Path) -> tuple[Metric, ...]:
    """Read what a benchmark measured of simpler models on the same data; often nothing."""
    path = run / BASELINES_FILE
    if not path.is_file():
        return ()
    return tuple(Metric.model_validate(fields) for fields in json.loads(path.read_bytes()))


def sample_metrics(recipe: Recipe, split: Split, path: Path) -> tuple[Metric, ...]:
    """Measure the samples of seed 0, indices from 0 on; of a conditional model, classes in turn."""
    generate = Graph(path, recipe.max_batch_rows)
    model = new_model(recipe, split)
    protocol = recipe.protocol
    classifier = fitting_classifier(recipe)
    num_samples = NUM_SAMPLES if classifier else NUM_COMPARED
    inputs = generate.neutral_inputs(model.noise.prior, num_samples, model.num_classes)
    samples = generate(inputs)["image"]
    copying = copying_metrics(samples[:NUM_COMPARED], split.train, split.test, protocol)
    if classifier is None:
        return copying
    asked = inputs.get("label")
    quality = quality_metrics(samples, asked, classifier, split.train, split.test, protocol)
    return *quality, *copying


def fitting_classifier(recipe: Recipe) -> Classifier | None:
    """Find the frozen classifier of a recipe's images; it knows whole pictures of grey levels."""
    data = recipe.data
    is_plain = data.values == "8-bit" and data.pool == 1 and data.crop is None
    return classifier_for(data.source) if is_plain else None


def score_test_part(graph: Graph, test: Images) -> NDArray[np.floating]:
    """Score the test images in nats, given their own labels where the model is conditional.

    Returns:
        Shape (N,).
    """
    scores = []
    for start in range(0, len(test), _CHUNK):
        chunk = test[start : start + _CHUNK]
        inputs: Tensors = {"image": chunk.values, "label": chunk.labels}
        scores.append(graph({name: inputs[name] for name in graph.inputs})["log_prob"])
    return np.concatenate(scores)


def density_metrics(
    log_prob: NDArray[np.floating], images: Images, protocol: str
) -> tuple[Metric, Metric]:
    """Sum up the log-likelihoods of test images.

    Args:
        log_prob: In nats, shape (N,).
        images: The images, which give the number of dims.
        protocol: Name under which the figures are comparable.

    Returns:
        The mean negative log-likelihood in nats per image, and in bits per dim.
    """
    nll = mean_metric("nll", -log_prob, "nats", protocol)
    return nll, bits_metric(log_prob, images, protocol)


def bound_metrics(
    graph: Graph, test: Images, protocol: str, num_samples: int = NUM_IMPORTANCE_SAMPLES
) -> tuple[Metric, ...]:
    """Sum up the bounds of test images: the ELBO beside the tightest one that is affordable.

    Args:
        graph: The log_prob graph.
        test: The images; conditional models are given their labels.
        protocol: Name under which the figures are comparable, without K.
        num_samples: K of the importance-weighted bound.
    """
    elbo, iwae = both_bounds(graph, test, num_samples)
    of_one, of_many = (protocol_of_samples(protocol, k) for k in (1, num_samples))
    metrics = (
        mean_metric("nll_iwae", -iwae, "nats", of_many),
        mean_metric("nll_elbo", -elbo, "nats", of_one),
        bits_metric(iwae, test, of_many),
    )
    if "label" not in graph.inputs:
        return metrics
    some = test[:NUM_CLASSIFIED]
    num_classes = int(test.labels.max()) + 1
    predicted = predicted_classes(graph, some, num_classes, NUM_CLASSIFYING_SAMPLES)
    accuracy = mean_metric(
        "bayes_accuracy",
        (predicted == some.labels).astype(np.float64),
        "share of images",
        protocol_of_samples(protocol, NUM_CLASSIFYING_SAMPLES),
    )
    return *metrics, accuracy


def bits_metric(log_prob: NDArray[np.floating], images: Images, protocol: str) -> Metric:
    """Tell log-likelihoods in bits per dim: −log_prob / (num_dims · ln 2)."""
    nats_per_bit = math.prod(images.pixels.shape[1:]) * math.log(2)
    return mean_metric("bits_per_dim", -log_prob / nats_per_bit, "bits per dim", protocol)


def file_size_metrics(images: Images, protocol: str) -> tuple[Metric, ...]:
    """Measure lossless picture files of images, each in a file of its own, as small as Pillow can.

    A likelihood in bits is the size that a perfect coder would need. Headers count here, some
    60 bytes of a PNG and 30 of a WebP: on small pictures a good part of the file.
    """
    options: dict[str, dict[str, Any]] = {
        "png": {"optimize": True},
        "webp": {"lossless": True, "quality": 100, "method": 6},
    }
    pictures = [
        PillowImage.fromarray(pixels) for pixels in to_pixels(np.ascontiguousarray(images.values))
    ]
    num_dims = math.prod(images.pixels.shape[1:])
    metrics = []
    for name, choices in options.items():
        sizes = []
        for picture in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, name, **choices)
            sizes.append(8 * buffer.tell() / num_dims)
        unit = "bits per dim, one file per image, headers included"
        metrics.append(mean_metric(f"{name}_file", np.array(sizes), unit, protocol))
    return tuple(metrics)


def copying_metrics(
    samples: FloatArray, train: Images, test: Images, protocol: str
) -> tuple[Metric, ...]:
    """Compare how near samples and test images lie to the training images.

    Returns:
        `nearest_train_distance` of samples, the same figure of test images, and the smallest
        distance of a sample: were samples copies of training images, theirs would be far smaller.
    """
    of_samples, _ = nearest_training_images(samples, train)
    of_test, _ = nearest_training_images(test[:NUM_COMPARED].values, train)
    return (
        mean_metric("nearest_train_distance", of_samples, DISTANCE_UNIT, protocol),
        mean_metric("nearest_train_distance_of_test", of_test, DISTANCE_UNIT, protocol),
        Metric(
            name="smallest_train_distance",
            value=float(of_samples.min()),
            unit=DISTANCE_UNIT,
            protocol=protocol,
            num_images=len(samples),
        ),
    )


def nearest_training_images(
    images: FloatArray, train: Images
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Find the training image nearest to each image.

    Args:
        images: Shape (N, C, H, W), in [0, 1].
        train: Training images.

    Returns:
        The L2 distances, shape (N,), and the numbers of the training images, shape (N,).
    """
    rows = images.reshape(len(images), -1)
    smallest = np.full(len(rows), np.inf, dtype=np.float32)
    numbers = np.zeros(len(rows), dtype=np.int64)
    for start, chunk in zip(range(0, len(train), _CHUNK), _batches(train), strict=True):
        candidates = chunk.reshape(len(chunk), -1)
        # |a - b|² - |a|² is one matrix product, but rounding spoils small distances: it only
        # finds the nearest one, whose distance is then computed from the difference.
        squared = (candidates**2).sum(axis=1) - 2 * rows @ candidates.T
        nearest = squared.argmin(axis=1)
        distances = np.linalg.norm(rows - candidates[nearest], axis=1)
        numbers = np.where(distances < smallest, start + nearest, numbers)
        smallest = np.minimum(smallest, distances)
    return smallest.astype(np.float64), numbers


def mean_metric(name: str, values: NDArray[np.floating], unit: str, protocol: str) -> Metric:
    """Average a figure over images, with the standard error of the mean."""
    exact = values.astype(np.float64)
    std_error = float(exact.std(ddof=1) / math.sqrt(len(exact))) if len(exact) > 1 else None
    return Metric(
        name=name,
        value=float(exact.mean()),
        std_error=std_error,
        unit=unit,
        protocol=protocol,
        num_images=len(exact),
    )


def evaluate_over_http(url: str, model_name: str, recipe: Recipe, batch: int = 1000) -> Metric:
    """Measure the negative log-likelihood of the test part through a running service.

    Of a bound it is the ELBO, by one draw of its noise per image; of a class-conditional model log
    p(x given its label).

    Args:
        url: Address of the service.
        model_name: The model, with or without `@version`.
        recipe: Gives the data and the protocol.
        batch: Images per request.

    Raises:
        OSError: The service does not answer.
        ValueError: It refuses, or its answer has the wrong length; the text quotes it. Or the
            figure is one of dequantized images, which cannot be sent as grey levels.
    """
    if recipe.data.dequantize:
        raise ValueError(
            "the figures of the card are of dequantized images; the service takes grey levels and "
            "scores the middle of each, which is another figure"
        )
    split = load_split(recipe.data)
    model = new_model(recipe, split)
    name, protocol = "nll", recipe.protocol
    if model.density == "bound":
        name, protocol = "nll_elbo", protocol_of_samples(recipe.protocol, 1)
    answers = []
    for start in range(0, len(split.test), batch):
        part = split.test[start : start + batch]
        images = part.values
        fields = {"model": model_name, "format": "npy"}
        if model.is_conditional:
            fields["labels"] = ",".join(map(str, part.labels.tolist()))
        address = f"{url.rstrip('/')}/log_prob?{urllib.parse.urlencode(fields)}"
        log_prob = _ask_log_prob(address, to_pixels(images))
        if log_prob.shape != (len(images),):
            raise ValueError(f"{address} answered {log_prob.shape} to {len(images)} images")
        answers.append(log_prob)
    return mean_metric(name, -np.concatenate(answers), "nats", protocol)


def _ask_log_prob(address: str, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address} is no http address")
    request = urllib.request.Request(
        address, encode_npy(pixels), {"Content-Type": "application/x-npy"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            content: bytes = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            detail = error.read(2000).decode("utf-8", "replace")
        raise ValueError(f"{address} answered {error.code}: {detail}") from error
    return decode_npy(content).astype(np.float64)


def _batches(images: Images, num_rows: int = _CHUNK) -> Iterator[FloatArray]:
    """Hand out images in [0, 1], shape (n, C, H, W), without holding them all as floats."""
    for start in range(0, len(images), num_rows):
        yield images[start : start + num_rows].values
