"""The model card of a bundle, with its pictures."""

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from export.data import Images
from export.evaluate import nearest_training_images
from export.graph import FloatArray, Graph
from export.model import GenerativeModel
from export.recipe import FilmConfig
from export.train import FILM_ARRAYS_FILE, read_run
from service.images import UInt8Array, encode_animation, encode_picture, enlarge, grid, to_pixels
from service.manifest import FILM_FILE, GOLDEN_FILE, PREVIEW_FILE, Manifest, Metric, Role

PREVIEW_ROWS = PREVIEW_COLUMNS = 8
NEAREST_FILE = "nearest.png"

_MAX_PREVIEW_COLUMNS = 16
_NUM_NEAREST = 20

_SMALLEST_SCALE, _SHOWN_WIDTH = 2, 56
_FRAME_S, _LAST_FRAME_S = 0.2, 2.0

_DENSITIES = {
    "exact": "exact: the log-likelihood of any image is computed, not estimated",
    "bound": "a lower bound: over the draws of its noise, log-likelihoods are not overstated",
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
        discriminator_loss: Mean over the last epoch, in nats; None without a discriminator.
        film_batches: After how many batches of training each frame of the film was drawn.
    """

    family: str
    finished: bool
    initial_nll: float | None
    discriminator_loss: float | None
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
        discriminator_loss=about["last"].get("d_loss"),
        film_batches=film_batches,
    )


def preview_columns(num_classes: int) -> int:
    """Return how many columns the preview has: a column per class, where these are not too many.

    Args:
        num_classes: Of a class-conditional model; 0 otherwise.
    """
    return num_classes if 2 <= num_classes <= _MAX_PREVIEW_COLUMNS else PREVIEW_COLUMNS


def draw_preview(generate: Graph, model: GenerativeModel) -> bytes:
    """Draw the first images of seed 0 as one PNG; of a conditional model, the classes in turn."""
    columns = preview_columns(model.num_classes if model.is_conditional else 0)
    samples = _first_samples(generate, model, PREVIEW_ROWS * columns)
    return _encode_grid(samples, columns)


def draw_nearest(generate: Graph, model: GenerativeModel, train: Images) -> bytes:
    """Draw the first images of seed 0, each above the training image nearest to it, as one PNG."""
    samples = _first_samples(generate, model, _NUM_NEAREST)
    _, numbers = nearest_training_images(samples, train)
    nearest = Images(train.pixels[numbers], train.labels[numbers]).values
    half = _NUM_NEAREST // 2
    rows = (samples[:half], nearest[:half], samples[half:], nearest[half:])
    return _encode_grid(np.concatenate(rows), half)


def _first_samples(generate: Graph, model: GenerativeModel, num_images: int) -> FloatArray:
    inputs = generate.neutral_inputs(model.noise.prior, num_images, model.num_classes)
    samples: FloatArray = generate(inputs)["image"]
    return samples


def _encode_grid(images: FloatArray, columns: int) -> bytes:
    pixels = to_pixels(images)
    return encode_picture(enlarge(grid(pixels, columns), _scale(pixels)), "png")


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
    num_shown = PREVIEW_ROWS * preview_columns(len(manifest.labels))
    shown = (
        f"images 0 to {num_shown - 1} of seed 0{', the classes in turn' * bool(manifest.labels)}"
    )
    return f"""# {manifest.reference}

{manifest.description}

![{num_shown} images of seed 0]({PREVIEW_FILE})
![The same noise while the weights were learnt]({FILM_FILE})

Left: {shown}. Right: the same noise after 0 to {film[-1]:,} batches of training, \
{len(film)} frames.

| | |
| --- | --- |
| images | {width}×{height}, {colours}, {manifest.image.values} |
| family | `{manifest.family}` |
| density | {_DENSITIES[manifest.density]} |
| noise | {noise.prior}, shape {tuple(noise.shape)}{", a latent" if noise.latent else ""} |
{_classes(manifest)}{_shown(manifest)}| parameters | {manifest.num_parameters:,} |
| can | {", ".join(manifest.operations)} |

{background.family}"""


def _classes(manifest: Manifest) -> str:
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(manifest.labels))
    return f"| classes | {numbered} |\n" if numbered else ""


def _shown(manifest: Manifest) -> str:
    if manifest.density != "bound":
        return ""
    return "| an image is | the mean of p(image given latent), not a draw from it |\n"


def _use(manifest: Manifest, graphs: Mapping[Role, Graph]) -> str:
    names = [name for name in graphs["generate"].inputs if name != "noise"]
    image_shape, noise_shape = (16, *manifest.image.shape), (16, *manifest.noise.shape)
    neutral = {
        "temperature": "np.ones(16, np.float32)",
        "known": f"np.zeros({image_shape}, np.float32)",
        "known_mask": f"np.zeros({image_shape}, np.float32)",
        "label": f"np.arange(16) % {len(manifest.labels)}",
    }
    draw_noise = {
        "uniform": f"rng.uniform(1e-7, 1 - 1e-7, size={noise_shape})",
        "normal": f"rng.standard_normal({noise_shape})",
    }
    inputs = [f'    "noise": {draw_noise[manifest.noise.prior]}.astype(np.float32),']
    inputs += [f'    "{name}": {neutral[name]},' for name in names]
    body = "\n".join(inputs)
    label = "&labels=0" if manifest.labels else ""
    return f"""## Use

From the service:

```sh
curl -f "http://localhost:8000/sample?model={manifest.reference}&n=64&seed=0{label}" -o samples.png
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
    label = f', "label": np.arange(16) % {len(manifest.labels)}' if manifest.labels else ""
    image, noise, more = "images", "", ""
    if manifest.density == "bound":
        shape = (16, 50, *manifest.noise.shape)
        noise = f"noise = rng.standard_normal({shape}, np.float32)  # 50 importance samples\n"
        more = ', "noise": noise'
        if manifest.image.values == "binary":
            image = "(images > 0.5).astype(np.float32)"
    inputs = f'{{"image": {image}{more}{label}}}'
    return f"""
```python
score = onnxruntime.InferenceSession("log_prob.onnx")
{noise}(log_prob,) = score.run(["log_prob"], {inputs})  # (16,), nats
```
"""


def _metrics(manifest: Manifest, background: Background) -> str:
    rows = "\n".join(_metric_row(metric) for metric in manifest.metrics)
    initial = background.initial_nll
    figure = "negative bound" if manifest.density == "bound" else "`nll`"
    step_0 = (
        f"\n\nBefore the first step of training the {figure} was {initial:.1f} nats."
        if initial is not None
        else ""
    )
    return f"""## Measured

| figure | value | standard error | unit | protocol | images |
| --- | --- | --- | --- | --- | --- |
{rows}

Measured through the graphs of this bundle by ONNX Runtime, on images that training never saw \
where the figure is one of test images.{step_0}{_frechet(manifest)}{_adversary(background)}\
{_nearest(manifest)}"""


def _frechet(manifest: Manifest) -> str:
    if not any(metric.name.startswith("frechet_lenet") for metric in manifest.metrics):
        return ""
    return """

`frechet_lenet_…` is the Fréchet distance of features of a small classifier of this project, named \
by the hash of its file (`export/classifiers/`). It is no FID, and comparable only under the same \
hash and counts; `…_of_train`, training images against test images, is the floor."""


def _adversary(background: Background) -> str:
    loss = background.discriminator_loss
    if loss is None:
        return ""
    return f"""

In the last epoch the discriminator's loss was {loss:.3f} nats on average. If it could not tell \
the generator's images from training images, it would be 2·ln 2 = {2 * math.log(2):.3f}."""


def _nearest(manifest: Manifest) -> str:
    if NEAREST_FILE not in manifest.files:
        return ""
    return f"""

![Generated images above the training images nearest to them]({NEAREST_FILE})

The first {_NUM_NEAREST} images of seed 0, each above the training image nearest to it in L2 \
distance of pixels."""


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
    labels = "; `label` holds class numbers, int64" if manifest.labels else ""
    return f"""## Graphs

| file | inputs | outputs | bytes |
| --- | --- | --- | --- |
{rows}

All tensors are float32 with the batch on axis 0{labels}. No graph draws random numbers: the \
same noise gives the same image. `{GOLDEN_FILE}` holds inputs and outputs to check another \
runtime against; `model.json` the hashes."""


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
