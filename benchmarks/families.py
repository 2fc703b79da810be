"""Measure the families side by side: `python -m benchmarks.families` fills docs/models.md.

Through the graphs of the bundles, on one thread: what an image costs to draw and to score, which
pixels a pixel really depends on, and how sharp samples are. Likelihoods come from the manifests.
Writes the table between the marks of docs/models.md, `families.json` and, with matplotlib, plots.
Timings need a quiet machine.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.data import load_split
from export.graph import Graph, Tensors
from export.recipe import Recipe
from service.manifest import Manifest, Metric, read_manifest, version_folders
from service.noise import draw_importance

FloatArray = NDArray[np.float32]

PAGE = Path("docs/models.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MIN_REPEATS, MIN_SECONDS = 3, 0.5
BATCH = 64
NUM_PROBED = 3
NUM_SHARP = 500
# Protocols that differ only in how training images are binarized.
SAME_TEST_IMAGES = ("mnist-fixed", "mnist-dynamic")
# Of a label in the plot of likelihoods, in powers of ten along both axes.
_LABEL_SIZE = (0.35, 0.02)


def main() -> None:
    """Measure every model of the store, write, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    newest = {name: folder for name, _, folder in version_folders(options.store)}
    measured, fields = [], {}
    for name, folder in sorted(newest.items()):
        manifest = read_manifest(folder)
        print(name, flush=True)
        measured.append(measure(manifest, folder))
        field = receptive_field(manifest, folder)
        if field is not None:
            fields[name] = field
            measured[-1]["receptive_pixels"] = int(field.sum())
    text = json.dumps(measured, indent=2)
    (options.output / "families.json").write_text(text + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(measured)}\n{END}{after}", encoding="utf-8")
    draw(measured, fields, options.output)


def measure(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """Measure one model; times are seconds per image."""
    generate = Graph(folder / "generate.onnx", BATCH)
    prior, num_classes = manifest.noise.prior, len(manifest.labels)
    costs = {}
    for batch in (1, BATCH):
        inputs = generate.neutral_inputs(prior, batch, num_classes)
        costs[str(batch)] = seconds(generate, inputs) / batch
    found: dict[str, Any] = {
        "name": manifest.name,
        "version": manifest.version,
        "family": manifest.family,
        "density": manifest.density,
        "parameters": manifest.num_parameters,
        "sample_s": costs,
        "training_s": manifest.training.seconds,
        "sharpness": sharpness_ratio(manifest, generate),
    }
    for metric in manifest.metrics:
        if metric.name in {"nll", "nll_iwae", "bits_per_dim"}:
            found[metric.name] = metric.model_dump()
        elif metric.name.startswith("frechet") and "floor" not in metric.name:
            found.setdefault("frechet", metric.model_dump())
    path = folder / "log_prob.onnx"
    if path.is_file():
        log_prob = Graph(path, BATCH)
        found["log_prob_s"] = seconds(log_prob, score_inputs(manifest, log_prob, BATCH)) / BATCH
    return found


def score_inputs(manifest: Manifest, graph: Graph, num_images: int) -> Tensors:
    """Return what a log_prob graph takes; a bound draws one sample."""
    rng = np.random.default_rng(0)
    images = (rng.random((num_images, *manifest.image.shape)) < 0.2).astype(np.float32)
    indices = np.arange(num_images, dtype=np.uint64)
    inputs: Tensors = {"image": images, "label": np.zeros(num_images, np.int64)}
    if "noise" in graph.inputs:
        size = manifest.noise.shape[0]
        inputs["noise"] = draw_importance(indices * 0, indices, indices * 0, 1, size)
    return {name: inputs[name] for name in graph.inputs}


def seconds(graph: Graph, inputs: Tensors) -> float:
    """Return the median time of a run."""
    graph(inputs)
    times: list[float] = []
    while len(times) < MIN_REPEATS or sum(times) < MIN_SECONDS:
        began = time.perf_counter()
        graph(inputs)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def receptive_field(manifest: Manifest, folder: Path) -> NDArray[np.bool_] | None:
    """Find the pixels on which the conditional of the middle pixel depends, by changing each.

    Returns:
        Shape (H, W); None without conditionals, or where images are too small to tell.
    """
    _, height, width = manifest.image.shape
    path = folder / "log_prob.onnx"
    if not path.is_file() or min(height, width) < 14 or manifest.labels:
        return None
    graph = Graph(path, BATCH)
    if "conditional_log_prob" not in graph.outputs:
        return None
    middle = (height // 2, width // 2)
    field = np.zeros(height * width, dtype=bool)
    generate = Graph(folder / "generate.onnx", BATCH)
    inputs = generate.neutral_inputs(manifest.noise.prior, NUM_PROBED)
    for image in generate(inputs)["image"]:
        changed = np.repeat(image[None], height * width, axis=0)
        flat = changed.reshape(height * width, -1, height * width)
        diagonal = np.arange(height * width)
        flat[diagonal, :, diagonal] = 1 - flat[diagonal, :, diagonal]
        before = graph({"image": image[None]})["conditional_log_prob"][:, :, *middle]
        after = graph({"image": changed})["conditional_log_prob"][:, :, *middle]
        field |= (after != before).any(axis=1)
    field[middle[0] * width + middle[1]] = False  # its own value, not what it is given
    return field.reshape(height, width)


def sharpness_ratio(manifest: Manifest, generate: Graph) -> float:
    """Return the mean gradient of samples over that of test images: below 1 is blurred."""
    inputs = generate.neutral_inputs(manifest.noise.prior, NUM_SHARP, len(manifest.labels))
    recipe = Recipe.model_validate(manifest.training.recipe)
    return mean_gradient(generate(inputs)["image"]) / mean_gradient(
        load_split(recipe.data).test[:NUM_SHARP].values
    )


def mean_gradient(images: FloatArray) -> float:
    """Return the mean absolute difference of neighbouring pixels."""
    across, down = np.diff(images, axis=3), np.diff(images, axis=2)
    return float(np.abs(across).mean() + np.abs(down).mean())


def table(measured: list[dict[str, Any]]) -> str:
    """Lay the figures out as Markdown, the likeliest of binarized MNIST last."""
    lines = [
        "| model | parameters | likelihood of test images | a sample, ms | 64 at once, ms each "
        "| log_prob, ms each | pixels that a pixel sees |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for found in sorted(measured, key=_order):
        scored = f"{1e3 * found['log_prob_s']:.3f}" if "log_prob_s" in found else "–"
        lines.append(
            f"| [`{found['name']}`](../model_store/{found['name']}/{found['version']}/README.md) "
            f"| {found['parameters']:,} | {_likelihood(found)} "
            f"| {1e3 * found['sample_s']['1']:.2f} | {1e3 * found['sample_s'][str(BATCH)]:.3f} "
            f"| {scored} | {found.get('receptive_pixels', '–')} |"
        )
    return "\n".join(lines)


def _order(found: dict[str, Any]) -> tuple[bool, str, float]:
    figure = found.get("nll") or found.get("nll_iwae")
    if figure is None:
        return True, found["name"], 0.0
    protocol = figure["protocol"].partition(",")[0]
    if protocol in SAME_TEST_IMAGES:
        protocol = SAME_TEST_IMAGES[0]
    return False, protocol, -figure["value"]


def _likelihood(found: dict[str, Any]) -> str:
    figure = found.get("nll") or found.get("nll_iwae")
    if figure is None:
        if "frechet" not in found:
            return "none"
        frechet = found["frechet"]
        return f"none; {frechet['name']} {frechet['value']:.3g}"
    metric = Metric.model_validate(figure)
    sign = "≤ " if found["density"] == "bound" else ""
    bits = Metric.model_validate(found["bits_per_dim"])
    return (
        f"{sign}{metric.value:.2f} ± {metric.std_error:.2f} nats, {bits.value:.3f} bits per dim "
        f"(`{metric.protocol}`)"
    )


def draw(
    measured: list[dict[str, Any]], fields: dict[str, NDArray[np.bool_]], output: Path
) -> None:
    """Draw receptive fields, likelihood against cost, and sharpness; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415, optional
    except ImportError:
        print("no matplotlib, no plots: install the extra `bench`")
        return
    _draw_fields(Figure, fields).savefig(output / "receptive-fields.png", dpi=100)
    _draw_costs(Figure, measured).savefig(output / "likelihood-cost.png", dpi=100)
    _draw_sharpness(Figure, measured).savefig(output / "sharpness.png", dpi=100)


def _draw_fields(new_figure: Any, fields: dict[str, NDArray[np.bool_]]) -> Any:
    columns = min(len(fields), 4)
    rows = -(-len(fields) // columns)
    figure = new_figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    for axis, (name, field) in zip(
        figure.subplots(rows, columns, squeeze=False).flat, fields.items(), strict=False
    ):
        shown = field.astype(float)
        shown[field.shape[0] // 2, field.shape[1] // 2] = 2
        axis.imshow(shown, cmap="Blues", vmax=2)
        axis.set_title(name, fontsize=8)
    for axis in figure.axes:
        axis.set_axis_off()
    return figure


def _draw_costs(new_figure: Any, measured: list[dict[str, Any]]) -> Any:
    figure = new_figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    labelled: list[FloatArray] = []
    for found in sorted(measured, key=_order):
        metric = found.get("nll") or found.get("nll_iwae")
        if metric is None or not metric["protocol"].startswith(SAME_TEST_IMAGES):
            continue
        cost = 1e3 * found["sample_s"]["1"]
        marker = "o" if found["density"] == "exact" else "v"
        axis.plot(cost, metric["value"], marker)
        point = np.log10([cost, metric["value"]])
        is_crowded = any((np.abs(point - other) < _LABEL_SIZE).all() for other in labelled)
        labelled.append(point)
        axis.annotate(
            found["name"],
            (cost, metric["value"]),
            (5, -10 if is_crowded else 3),
            textcoords="offset points",
            fontsize=8,
        )
    axis.set(xscale="log", yscale="log", xlabel="one sample, ms", ylabel="nats per image")
    axis.set_xlim(right=4 * axis.get_xlim()[1])  # for the labels of what is slowest
    axis.set_title("Likelihood against sampling cost; triangles are bounds", fontsize=10)
    return figure


def _draw_sharpness(new_figure: Any, measured: list[dict[str, Any]]) -> Any:
    figure = new_figure(figsize=(7, 0.35 * len(measured) + 1), layout="constrained")
    axis = figure.subplots()
    ordered = sorted(measured, key=lambda found: float(found["sharpness"]))
    colours = {"exact": "tab:blue", "bound": "tab:orange", "implicit": "tab:green"}
    axis.barh(
        [found["name"] for found in ordered],
        [found["sharpness"] for found in ordered],
        color=[colours[found["density"]] for found in ordered],
    )
    axis.axvline(1, ls="--", c="grey")
    axis.set(xlabel="edges in samples ÷ edges in test images")
    axis.set_title("Blurred to the left, noisy to the right", fontsize=10)
    return figure


if __name__ == "__main__":
    main()
