"""The model card of a bundle, with its pictures."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from export.graph import Graph
from export.recipe import FilmConfig
from export.train import FILM_ARRAYS_FILE, read_run
from service.images import UInt8Array, encode_animation, encode_picture, enlarge, grid, to_pixels
from service.manifest import FILM_FILE, GOLDEN_FILE, PREVIEW_FILE, Manifest, Metric, Role
from service.noise import Prior

PREVIEW_ROWS = PREVIEW_COLUMNS = 8

_SMALLEST_SCALE, _SHOWN_WIDTH = 2, 56
_FRAME_S, _LAST_FRAME_S = 0.2, 2.0

_DENSITIES = {
    "exact": "exact: the log-likelihood of any image is computed, not estimated",
    "bound": "a lower bound: log-likelihoods are never overstated",
    "implicit": "implicit: the model draws images, but cannot say how likely one is",
}
_LIMITS = {
    "exact": "A likelihood says how well pixels are predicted; it is no measure of looks, and "
    "images of another kind can be *more* likely than the training images (simple ones often "
    "are). Do not use a raw log_prob as an alarm for unusual images.",
    "bound": "The bound is below the log-likelihood by an unknown gap; do not use it as an alarm "
    "for unusual images without calibration.",
    "implicit": "Nothing guarantees that every kind of training image can be drawn, and a latent "
    "far from the prior's shell gives images that mean nothing.",
}


@dataclass(frozen=True)
class Background:
    """What a card tells besides the manifest.

    Attributes:
        family: The family's own words: formula and source.
        finished: Whether training came to its end.
        initial_nll: Test NLL before the first step, in nats; None for an implicit density.
        film_batches: After how many batches of training each frame of the film was drawn.
    """

    family: str
    finished: bool
    initial_nll: float | None
    film_batches: tuple[int, ...]


def read_background(family: str, run: Path) -> Background:
    """Gather the background of a run."""
    about = read_run(run)
    module = import_module(f"export.families.{family}")
    paragraphs = f"{inspect.getdoc(module)}\n\n{inspect.getdoc(module.Model)}".split("\n\n")
    with np.load(_film_path(run)) as arrays:
        film_batches = tuple(int(number) for number in arrays["num_batches"])
    return Background(
        family="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs),
        finished=about["finished"],
        initial_nll=about["initial_nll"],
        film_batches=film_batches,
    )


def draw_preview(generate: Graph, prior: Prior) -> bytes:
    """Draw the images of seed 0, indices 0 to 63, as one PNG."""
    inputs = generate.neutral_inputs(prior, PREVIEW_ROWS * PREVIEW_COLUMNS)
    pixels = to_pixels(generate(inputs)["image"])
    picture = grid(pixels, PREVIEW_COLUMNS)
    return encode_picture(enlarge(picture, _scale(pixels)), "png")


def draw_film(run: Path, config: FilmConfig) -> bytes:
    """Turn the frames of a run into an endless WebP that holds its last frame for two seconds.

    Raises:
        FileNotFoundError: The run has no film.
    """
    with np.load(_film_path(run)) as arrays:
        frames = [enlarge(grid(frame, config.columns), _scale(frame)) for frame in arrays["frames"]]
    durations_s = [_FRAME_S] * (len(frames) - 1) + [_LAST_FRAME_S]
    return encode_animation(frames, "webp", durations_s)


def _scale(pixels: UInt8Array) -> int:
    """Return how far to enlarge images (N, H, W[, C]), so that small ones can be seen."""
    width: int = pixels.shape[2]
    return max(_SMALLEST_SCALE, _SHOWN_WIDTH // width)


def _film_path(run: Path) -> Path:
    path = run / FILM_ARRAYS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: let `python -m export train` come to its end")
    return path


def render_card(manifest: Manifest, graphs: Mapping[Role, Graph], background: Background) -> str:
    """Write the model card, in Markdown.

    Args:
        manifest: What the card is of.
        graphs: Its graphs by role, for the shapes of their tensors.
        background: What the manifest does not hold.
    """
    sections = (
        _introduction(manifest, background),
        _use(manifest, graphs),
        _metrics(manifest, background),
        _graphs(manifest, graphs),
        _training(manifest, background),
        f"## Intended use and limits\n\nTeaching, comparison and play with images of "
        f"{manifest.training.data.name}. {_LIMITS[manifest.density]}",
    )
    return "\n\n".join(sections) + "\n"


def _introduction(manifest: Manifest, background: Background) -> str:
    channels, height, width = manifest.image.shape
    colours = "grey" if channels == 1 else "RGB"
    noise = manifest.noise
    film = background.film_batches
    return f"""# {manifest.reference}

{manifest.description}

![64 images of seed 0]({PREVIEW_FILE})
![The same noise while the weights were learnt]({FILM_FILE})

Left: images 0 to 63 of seed 0. Right: the same noise after 0 to {film[-1]:,} batches of training, \
{len(film)} frames.

| | |
| --- | --- |
| images | {width}×{height}, {colours}, {manifest.image.values} |
| family | `{manifest.family}` |
| density | {_DENSITIES[manifest.density]} |
| noise | {noise.prior}, shape {tuple(noise.shape)}{", a latent" if noise.latent else ""} |
| parameters | {manifest.num_parameters:,} |
| can | {", ".join(manifest.operations)} |

{background.family}"""


def _use(manifest: Manifest, graphs: Mapping[Role, Graph]) -> str:
    names = [name for name in graphs["generate"].inputs if name != "noise"]
    image_shape, noise_shape = (16, *manifest.image.shape), (16, *manifest.noise.shape)
    neutral = {
        "temperature": "np.ones(16, np.float32)",
        "known": f"np.zeros({image_shape}, np.float32)",
        "known_mask": f"np.zeros({image_shape}, np.float32)",
    }
    draw_noise = {
        "uniform": f"rng.uniform(1e-7, 1 - 1e-7, size={noise_shape})",
        "normal": f"rng.standard_normal({noise_shape})",
    }
    inputs = [f'    "noise": {draw_noise[manifest.noise.prior]}.astype(np.float32),']
    inputs += [f'    "{name}": {neutral[name]},' for name in names]
    body = "\n".join(inputs)
    return f"""## Use

From the service:

```sh
curl "http://localhost:8000/sample?model={manifest.reference}&n=64&seed=0" --output samples.png
```

Without it, by ONNX Runtime and NumPy alone:

```python
import numpy as np
import onnxruntime

rng = np.random.default_rng()
generate = onnxruntime.InferenceSession("generate.onnx")
(images,) = generate.run(["image"], {{
{body}
}})  # {image_shape}, pixels in [0, 1]
```
{_use_log_prob(manifest)}""".rstrip()


def _use_log_prob(manifest: Manifest) -> str:
    if "log_prob" not in manifest.graphs:
        return ""
    return """
```python
score = onnxruntime.InferenceSession("log_prob.onnx")
(log_prob,) = score.run(["log_prob"], {"image": images})  # (16,), nats
```
"""


def _metrics(manifest: Manifest, background: Background) -> str:
    rows = "\n".join(_metric_row(metric) for metric in manifest.metrics)
    initial = background.initial_nll
    step_0 = (
        f"\n\nBefore the first step of training the `nll` was {initial:.1f} nats."
        if initial is not None
        else ""
    )
    return f"""## Measured

| figure | value | standard error | unit | protocol | images |
| --- | --- | --- | --- | --- | --- |
{rows}

Measured through the graphs of this bundle by ONNX Runtime, on images that training never saw \
where the figure is one of test images.{step_0}"""


def _metric_row(metric: Metric) -> str:
    error = "–" if metric.std_error is None else f"{metric.std_error:.2g}"
    value = f"{metric.value:.2f}" if metric.value >= 10 else f"{metric.value:.4g}"
    return (
        f"| `{metric.name}` | {value} | ± {error} | {metric.unit} | "
        f"{metric.protocol} | {metric.num_images:,} |"
    )


def _graphs(manifest: Manifest, graphs: Mapping[Role, Graph]) -> str:
    rows = "\n".join(
        f"| `{manifest.graphs[role].file}` | {_tensors(graphs[role].inputs)} | "
        f"{_tensors(graphs[role].outputs)} | {manifest.graphs[role].num_bytes:,} |"
        for role in manifest.graphs
    )
    return f"""## Graphs

| file | inputs | outputs | bytes |
| --- | --- | --- | --- |
{rows}

All tensors are float32 with the batch on axis 0. No graph draws random numbers: the same noise \
gives the same image. `{GOLDEN_FILE}` holds inputs and outputs to check another runtime against; \
`model.json` the hashes."""


def _tensors(shapes: dict[str, Any]) -> str:
    return ", ".join(
        f"`{name}` ({', '.join(['N', *map(str, shape[1:])])}{',' if len(shape) == 1 else ''})"
        for name, shape in shapes.items()
    )


def _training(manifest: Manifest, background: Background) -> str:
    training = manifest.training
    data = training.data
    versions = ", ".join(f"{name} {version}" for name, version in training.versions.items())
    unfinished = "" if background.finished else "\n\n**Training was stopped before its end.**"
    return f"""## Training

| | |
| --- | --- |
| data | {data.name}: {data.origin} |
| licence of the data | {data.licence} |
| images | {data.num_train:,} for training, {data.num_validation:,} for validation, \
{data.num_test:,} for tests |
| seed | {training.seed} |
| seconds | {training.seconds:,.1f} |
| machine | {training.machine} |
| code | {training.revision} |
| libraries | {versions} |
| created | {training.created} |{unfinished}

The recipe:

```json
{json.dumps(training.recipe, indent=2, ensure_ascii=False)}
```"""
