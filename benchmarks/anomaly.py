"""Tell ordinary images from others: `python -m benchmarks.anomaly MODEL [--background RUN]`.

Compares raw likelihood, input complexity, a likelihood ratio and the score that the service tells,
on images like those of the training and on others, and measures how often ordinary images raise a
false alarm. Everything runs through the graphs of the bundle. Writes `anomaly.json` and, with
matplotlib, the pictures of docs/anomaly.md.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.__main__ import runs_folder
from export.convert import BUNDLE_FOLDER
from export.data import load_split
from export.graph import Graph
from export.recipe import Recipe
from service.anomaly import CALIBRATION_FILE, AnomalyScore, code_bits, read_calibration
from service.manifest import GOLDEN_FILE, read_manifest, version_folders

Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]

ALPHAS = (0.01, 0.05)
_NATS_PER_BIT = float(np.log(2))
_CHUNK = 500


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anomaly", description=__doc__)
    parser.add_argument("model", help="a calibrated model of 8-bit images in the store")
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    parser.add_argument("--others", default="mnist", help="data set of other images")
    parser.add_argument("--background", help="run of a background model, converted")
    parser.add_argument("--images", type=int, default=2000, help="images of each kind")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    folder = next(f for name, _, f in version_folders(options.store) if name == options.model)
    scores = {
        kind: score(folder, images, options.background)
        for kind, images in kinds(folder, options.others, options.images)
    }
    result = {
        "model": read_manifest(folder).reference,
        "background": options.background,
        "kinds": summarize(scores),
        "false_alarms": false_alarms(scores),
    }
    text = json.dumps(result, indent=2)
    (options.output / "anomaly.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    draw(scores, options.output)


def kinds(folder: Path, others: str, count: int) -> Iterator[tuple[str, FloatArray]]:
    """Yield the kinds of images, ordinary ones first, all of their unseen test part."""
    recipe = Recipe.model_validate(read_manifest(folder).training.recipe)
    ordinary = load_split(recipe.data).test.values
    plain = {"binarization": "none"}
    foreign = load_split(recipe.data.model_copy(update=plain | {"source": others})).test.values
    rng = np.random.default_rng(0)
    some = ordinary[:count]
    yield "ordinary", ordinary
    yield others, foreign[:count]
    yield "upside down", np.ascontiguousarray(some[:, :, ::-1])
    yield "mirrored", np.ascontiguousarray(some[:, :, :, ::-1])
    yield "noise", rng.integers(0, 256, some.shape).astype(np.float32) / np.float32(255)
    levels = rng.integers(0, 256, (count, 1, 1, 1)).astype(np.float32) / np.float32(255)
    yield "constant", np.broadcast_to(levels, some.shape).copy()


def score(folder: Path, images: FloatArray, background: str | None) -> dict[str, Array]:
    """Return every score of images, (N,) each; all are higher the more unusual an image is."""
    log_prob = log_prob_of(folder / "log_prob.onnx", images)
    complexity = code_bits(images)
    calibration = _calibration_of(folder)
    told = calibration.scores(log_prob, complexity)
    scores = {
        "log_prob": log_prob,
        "minus log p": -log_prob,
        "S": -log_prob / _NATS_PER_BIT - complexity,
        "service": told,
        "p_value": calibration.p_values(told),
        "complexity": complexity,
    }
    if background is not None:
        graph = runs_folder() / background / BUNDLE_FOLDER / "log_prob.onnx"
        scores["likelihood ratio"] = log_prob_of(graph, images) - log_prob
    return scores


def log_prob_of(path: Path, images: FloatArray) -> Array:
    """Score images in nats, (N,)."""
    graph = Graph(path)
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    return np.concatenate([graph({"image": chunk})["log_prob"] for chunk in chunks]).astype(float)


def auroc(ordinary: Array, others: Array) -> float:
    """Return how often another image scores higher than an ordinary one; ties count half."""
    ranked = np.sort(ordinary)
    below = np.searchsorted(ranked, others, side="left")
    up_to = np.searchsorted(ranked, others, side="right")
    return float((below + up_to).mean() / 2 / len(ranked))


def summarize(scores: dict[str, dict[str, Array]]) -> dict[str, dict[str, Any]]:
    """Tell of each kind its mean figures and how well each score finds it."""
    ordinary = scores["ordinary"]
    detectors = [name for name in ordinary if name not in {"log_prob", "p_value", "complexity"}]
    return {
        kind: {
            "images": len(of_kind["log_prob"]),
            "log_prob": round(float(of_kind["log_prob"].mean()), 1),
            "complexity_bits": round(float(of_kind["complexity"].mean()), 1),
            "auroc": {name: round(auroc(ordinary[name], of_kind[name]), 4) for name in detectors},
            "alarms_at_0.01": round(float((of_kind["p_value"] <= 0.01).mean()), 4),
        }
        for kind, of_kind in scores.items()
    }


def false_alarms(scores: dict[str, dict[str, Array]]) -> dict[str, float]:
    """Return the share of ordinary images with a p-value of at most α."""
    p_values = scores["ordinary"]["p_value"]
    return {str(alpha): round(float((p_values <= alpha).mean()), 4) for alpha in ALPHAS}


def draw(scores: dict[str, dict[str, Array]], output: Path) -> None:
    """Draw histograms of log_prob and of the score, and ROC curves; nothing without matplotlib."""
    try:
        import matplotlib  # noqa: PLC0415
    except ModuleNotFoundError:
        print("no matplotlib, no plots: install the extra `bench`")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for kind, of_kind in scores.items():
        low = max(of_kind["log_prob"].min(), -6500)
        look: dict[str, Any] = {"density": True, "histtype": "step", "linewidth": 1.5}
        left.hist(of_kind["log_prob"], bins=np.linspace(low, 0, 80), **look)
        shown = np.minimum(of_kind["service"], 4000)
        right.hist(shown, bins=np.linspace(0, 4000, 80), label=kind, **look)
    left.set(xlabel="log_prob, nats", yticks=[], title="The likelihood alone", ylim=(0, 0.004))
    right.set(
        xlabel="anomaly_score, bits; 4,000 and more at 4,000",
        yticks=[],
        title="The score",
        ylim=(0, 0.004),
    )
    right.legend(frameon=False)
    figure.savefig(output / "anomaly-histograms.png", dpi=110)

    ordinary = scores["ordinary"]
    others = [kind for kind in scores if kind != "ordinary"]
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, kind in zip(axes, others, strict=False):
        for name in ("minus log p", "S", "likelihood ratio", "service"):
            if name in ordinary:
                edges = np.sort(ordinary[name])[::-1]
                caught = [(scores[kind][name] >= edge).mean() for edge in edges[::20]]
                rates = np.arange(0, len(edges), 20) / len(edges)
                axis.plot(rates, caught, label=name)
        axis.set(title=kind, xlabel="false alarms")
    axes[0].set(ylabel="caught")
    axes[-1].legend(frameon=False)
    figure.savefig(output / "anomaly-roc.png", dpi=110)


def _calibration_of(folder: Path) -> AnomalyScore:
    with np.load(folder / GOLDEN_FILE, allow_pickle=False) as golden:
        calibration = read_calibration(folder / CALIBRATION_FILE, golden["log_prob.image"])
    return calibration["none"]


if __name__ == "__main__":
    main()
