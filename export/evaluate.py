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

from export.convert import BUNDLE_FOLDER
from export.data import Images, load_split
from export.graph import FloatArray, Graph
from export.recipe import Recipe
from export.train import new_model
from service.images import decode_npy, encode_npy, to_pixels
from service.manifest import Metric

METRICS_FILE = "metrics.json"
NUM_COMPARED = 1000
DISTANCE_UNIT = "L2 distance of pixels in [0, 1]"

_TIMEOUT_S = 300


def evaluate(recipe: Recipe, run: Path) -> tuple[Metric, ...]:
    """Measure the converted model of a run and write the figures beside its graphs.

    Models with a density: `nll` and `bits_per_dim` of the whole test part; on 8-bit images, beside
    them, what lossless picture files of the same images take. Others:
    `nearest_train_distance` of samples, next to the same figure of test images; were samples
    copies of training images, theirs would be far smaller.

    Raises:
        FileNotFoundError: The run is not converted, or the data is missing.
    """
    bundle = run / BUNDLE_FOLDER
    split = load_split(recipe.data)
    metrics: tuple[Metric, ...]
    path = bundle / "log_prob.onnx"
    if path.is_file():
        graph = Graph(path, recipe.max_batch_rows)
        log_prob = np.concatenate([graph({"image": i})["log_prob"] for i in _batches(split.test)])
        metrics = density_metrics(log_prob, split.test, recipe.protocol)
        if recipe.data.binarization == "none":
            metrics += file_size_metrics(split.test[:NUM_COMPARED], recipe.protocol)
    else:
        generate = Graph(bundle / "generate.onnx", recipe.max_batch_rows)
        prior = new_model(recipe, split).noise.prior
        samples = generate(generate.neutral_inputs(prior, NUM_COMPARED))["image"]
        metrics = copying_metrics(samples, split.train, split.test, recipe.protocol)
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
    nats_per_bit_per_dim = math.prod(images.pixels.shape[1:]) * math.log(2)
    bits = mean_metric("bits_per_dim", -log_prob / nats_per_bit_per_dim, "bits per dim", protocol)
    return nll, bits


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
) -> tuple[Metric, Metric]:
    """Compare how near samples and test images lie to the training images."""
    of_samples = nearest_distances(samples, train)
    of_test = nearest_distances(test[:NUM_COMPARED].values, train)
    return (
        mean_metric("nearest_train_distance", of_samples, DISTANCE_UNIT, protocol),
        mean_metric("nearest_train_distance_of_test", of_test, DISTANCE_UNIT, protocol),
    )


def nearest_distances(images: FloatArray, train: Images) -> NDArray[np.float64]:
    """Return the L2 distance of each image to the nearest training image.

    Args:
        images: Shape (N, C, H, W), in [0, 1].
        train: Training images.

    Returns:
        Shape (N,).
    """
    rows = images.reshape(len(images), -1)
    smallest = np.full(len(rows), np.inf, dtype=np.float32)
    for chunk in _batches(train):
        candidates = chunk.reshape(len(chunk), -1)
        # |a - b|² - |a|² is one matrix product, but rounding spoils small distances: it only
        # finds the nearest one, whose distance is then computed from the difference.
        squared = (candidates**2).sum(axis=1) - 2 * rows @ candidates.T
        nearest = candidates[squared.argmin(axis=1)]
        smallest = np.minimum(smallest, np.linalg.norm(rows - nearest, axis=1))
    return smallest.astype(np.float64)


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

    Args:
        url: Address of the service.
        model_name: The model, with or without `@version`.
        recipe: Gives the data and the protocol.
        batch: Images per request.

    Raises:
        OSError: The service does not answer.
        ValueError: It refuses, or its answer has the wrong length; the text quotes it.
    """
    query = urllib.parse.urlencode({"model": model_name, "format": "npy"})
    address = f"{url.rstrip('/')}/log_prob?{query}"
    answers = []
    for images in _batches(load_split(recipe.data).test, batch):
        log_prob = _ask_log_prob(address, to_pixels(images))
        if log_prob.shape != (len(images),):
            raise ValueError(f"{address} answered {log_prob.shape} to {len(images)} images")
        answers.append(log_prob)
    return mean_metric("nll", -np.concatenate(answers), "nats", recipe.protocol)


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


def _batches(images: Images, num_rows: int = 1000) -> Iterator[FloatArray]:
    """Hand out images in [0, 1], shape (n, C, H, W), without holding them all as floats."""
    for start in range(0, len(images), num_rows):
        yield images[start : start + num_rows].values
