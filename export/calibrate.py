"""Score held-out images, against which a service ranks those of its clients."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bounds import log_weights
from export.data import Images, load_split
from export.graph import Graph
from export.recipe import Recipe
from service.anomaly import CALIBRATION_FILE, AnomalyScore, code_bits
from service.manifest import (
    GOLDEN_FILE,
    Calibration,
    Manifest,
    read_manifest,
    sha256_of,
    write_manifest,
)
from service.scoring import binarize

# With fewer, a p-value of 0.01 would rest on no more than one image.
MIN_HELD_OUT = 125

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]


def calibrate(recipe: Recipe, folder: Path) -> Calibration | None:
    """Score the validation part through a bundle's graph and store the scores beside it.

    The images take the way of a client's images: grey levels, which the service prepares. A binary
    model gets one set of scores for each way to binarize. A class-conditional model is given the
    labels. A bound is that of one importance sample, the ELBO that clients get by default.

    Args:
        recipe: Gives the data; its validation part was never trained on.
        folder: The bundle, with its graphs and golden arrays.

    Returns:
        What the manifest tells; None where the density is implicit or too few images were held out.
    """
    path = folder / "log_prob.onnx"
    if not path.is_file() or recipe.data.num_validation < MIN_HELD_OUT:
        return None
    graph = Graph(path, recipe.max_batch_rows)
    grey = recipe.data.model_copy(update={"binarization": "none", "dequantize": False})
    held_out = load_split(grey).validation
    arrays: dict[str, Array] = {"golden.code_bits": code_bits(_golden_images(folder))}
    is_binary = recipe.data.values == "binary"
    for preparation in ("threshold", "stochastic") if is_binary else ("none",):
        images = held_out
        if preparation != "none":
            values = binarize(held_out.values, preparation, seed=0)
            images = Images((255 * values).astype(np.uint8), held_out.labels)
        scores = _score(graph, images)
        if not np.isfinite(scores).all():
            logger.warning("%s: a held-out image has no likelihood, so no p-values", recipe.name)
            return None
        arrays[f"{preparation}.log_prob"] = scores
        arrays[f"{preparation}.code_bits"] = code_bits(images.values)
    with (folder / CALIBRATION_FILE).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    ranked = AnomalyScore.calibrate(scores, arrays[f"{preparation}.code_bits"]).ranked
    return Calibration(num_images=len(held_out), num_ranked=len(ranked))


def calibrate_published(recipe: Recipe, folder: Path) -> Manifest:
    """Add a calibration to a published bundle that has none.

    Raises:
        ValueError: It has one, has no likelihood, or too few images were held out.
    """
    manifest = read_manifest(folder)
    if manifest.calibration is not None:
        raise ValueError(f"{manifest.reference} is calibrated; a published version does not change")
    calibration = calibrate(recipe, folder)
    if calibration is None:
        raise ValueError(
            f"{manifest.reference} cannot be calibrated: its density is {manifest.density}, and "
            f"{recipe.data.num_validation} images were held out of its training "
            f"(data.num_validation); {MIN_HELD_OUT} are needed"
        )
    files = {**manifest.files, CALIBRATION_FILE: sha256_of(folder / CALIBRATION_FILE)}
    changed = manifest.model_copy(update={"calibration": calibration, "files": files})
    write_manifest(folder, changed)
    return changed


def _score(graph: Graph, images: Images) -> Array:
    if "noise" in graph.inputs:
        weights = log_weights(graph, images, num_samples=1)
        return np.concatenate([batch[:, 0] for batch in weights])
    inputs: dict[str, NDArray[Any]] = {"image": images.values, "label": images.labels}
    outputs = graph({name: inputs[name] for name in graph.inputs})
    return outputs["log_prob"].astype(np.float64)


def _golden_images(folder: Path) -> NDArray[np.float32]:
    with np.load(folder / GOLDEN_FILE, allow_pickle=False) as golden:
        images: NDArray[np.float32] = golden["log_prob.image"]
    return images
