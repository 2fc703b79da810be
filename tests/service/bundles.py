"""Tiny bundles, made in milliseconds: sound ones that show every role, and long runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx.parser
from numpy.typing import NDArray

from service.anomaly import CALIBRATION_FILE, code_bits
from service.graph import Session
from service.manifest import (
    CARD_FILE,
    FILM_FILE,
    GOLDEN_FILE,
    PREVIEW_FILE,
    Calibration,
    Density,
    Graph,
    Image,
    Manifest,
    Noise,
    Role,
    Source,
    Training,
    Values,
    read_manifest,
    sha256_of,
    write_manifest,
)
from service.noise import draw, draw_importance

HEIGHT, WIDTH, LATENT_DIM = 4, 8, 3
MAX_BATCH_ROWS = 16
NUM_GOLDEN = 6

TRAINING = Training(
    data=Source(
        name="none", licence="none", origin="made up", num_train=1, num_validation=0, num_test=0
    ),
    recipe={},
    seed=0,
    seconds=0,
    machine="none",
    revision="none",
    versions={},
    created="2000-01-01T00:00:00+00:00",
)

# Pixel 0 is never on (its likelihood is zero), and the last one has no likelihood at all.
NEVER_ON, UNDEFINED = (0, 0), (HEIGHT - 1, WIDTH - 1)


def write_graph(path: Path, text: str) -> None:
    """Write a graph that is given in ONNX's own text syntax, without its head."""
    head = '<ir_version: 10, opset_import: ["" : 21]>\n'
    path.write_bytes(onnx.parser.parse_model(head + text).SerializeToString())


def constant(array: NDArray[Any]) -> str:
    """Write an array as a node of that syntax."""
    shape = ", ".join(map(str, array.shape))
    values = ", ".join(f"{value:.8g}" for value in array.ravel())
    return f"Constant <value = float[{shape}] {{{values}}}> ()"


def latent_generator(channels: int, gain: float = 1.0) -> str:
    """Return sigmoid(noise · weight) as a picture."""
    size = channels * HEIGHT * WIDTH
    weight = gain * np.random.default_rng(0).normal(size=(LATENT_DIM, size))
    return f"""
    generate (float[N, {LATENT_DIM}] noise) => (float[N, {channels}, {HEIGHT}, {WIDTH}] image) {{
        weight = {constant(weight)}
        logits = MatMul (noise, weight)
        probs = Sigmoid (logits)
        shape = Constant <value_ints = [-1, {channels}, {HEIGHT}, {WIDTH}]> ()
        image = Reshape (probs, shape)
    }}"""


def class_generator(num_classes: int) -> str:
    """Return sigmoid(noise · weight + the class's own picture); every class looks different."""
    size = HEIGHT * WIDTH
    weight, classes = np.random.default_rng(0).normal(size=(2, max(LATENT_DIM, num_classes), size))
    return f"""
    generate (float[N, {LATENT_DIM}] noise, int64[N] label)
            => (float[N, 1, {HEIGHT}, {WIDTH}] image) {{
        weight = {constant(weight[:LATENT_DIM])}
        classes = {constant(classes[:num_classes])}
        of_noise = MatMul (noise, weight)
        of_class = Gather <axis = 0> (classes, label)
        logits = Add (of_noise, of_class)
        probs = Sigmoid (logits)
        shape = Constant <value_ints = [-1, 1, {HEIGHT}, {WIDTH}]> ()
        image = Reshape (probs, shape)
    }}"""


def class_completer(num_classes: int) -> str:
    """Return what is known, and else the class's own grey: number / num_classes."""
    shape = f"float[N, 1, {HEIGHT}, {WIDTH}]"
    return f"""
    generate ({shape} noise, int64[N] label, {shape} known, {shape} known_mask)
            => ({shape} image) {{
        half = Constant <value_float = 0.5> ()
        count = Constant <value_float = {num_classes:.1f}> ()
        column = Constant <value_ints = [-1, 1, 1, 1]> ()
        zero = Constant <value_float = 0.0> ()
        number = Cast <to = 1> (label)
        share = Div (number, count)
        grey = Reshape (share, column)
        silence = Mul (noise, zero)
        picture = Add (silence, grey)
        is_known = Greater (known_mask, half)
        image = Where (is_known, known, picture)
    }}"""


def class_log_prob() -> str:
    """Return −label·Σx: no density, but a function of both that is easy to check."""
    return f"""
    log_prob (float[N, 1, {HEIGHT}, {WIDTH}] image, int64[N] label) => (float[N] log_prob) {{
        axes = Constant <value_ints = [1, 2, 3]> ()
        brightness = ReduceSum <keepdims = 0> (image, axes)
        number = Cast <to = 1> (label)
        product = Mul (brightness, number)
        log_prob = Neg (product)
    }}"""


def binary_generator() -> str:
    """Return independent pixels with a temperature."""
    return f"""
    generate (float[N, 1, {HEIGHT}, {WIDTH}] noise, float[N] temperature)
            => (float[N, 1, {HEIGHT}, {WIDTH}] image) {{
        logits = {constant(np.log(pixel_probs()) - np.log1p(-pixel_probs()))}
        column = Constant <value_ints = [-1, 1, 1, 1]> ()
        divisor = Reshape (temperature, column)
        scaled = Div (logits, divisor)
        probs = Sigmoid (scaled)
        is_on = Less (noise, probs)
        image = Cast <to = 1> (is_on)
    }}"""


def pixel_probs() -> NDArray[np.float64]:
    """Return how likely each pixel of the binary model is on."""
    probs = np.linspace(0.2, 0.8, HEIGHT * WIDTH).reshape(1, 1, HEIGHT, WIDTH)
    probs[0, 0][NEVER_ON] = probs[0, 0][UNDEFINED] = 1e-30
    return probs


def binary_log_prob() -> str:
    """Return the log-likelihood of those pixels; see `NEVER_ON` and `UNDEFINED`."""
    on, off = pixel_probs(), 1 - pixel_probs()
    on[0, 0][NEVER_ON], on[0, 0][UNDEFINED] = 0, -1
    shape = f"float[N, 1, {HEIGHT}, {WIDTH}]"
    return f"""
    log_prob ({shape} image) => (float[N] log_prob, {shape} conditional_log_prob) {{
        half = Constant <value_float = 0.5> ()
        on = {constant(on)}
        off = {constant(off)}
        is_on = Greater (image, half)
        likelihood = Where (is_on, on, off)
        conditional_log_prob = Log (likelihood)
        axes = Constant <value_ints = [1, 2, 3]> ()
        log_prob = ReduceSum <keepdims = 0> (conditional_log_prob, axes)
    }}"""


def square_log_prob(channels: int, *, has_conditionals: bool) -> str:
    """Return −x² per value, and its sum: no density, but a function that is easy to check."""
    shape = f"float[N, {channels}, {HEIGHT}, {WIDTH}]"
    more = f", {shape} conditional_log_prob" if has_conditionals else ""
    return f"""
    log_prob ({shape} image) => (float[N] log_prob{more}) {{
        square = Mul (image, image)
        conditional_log_prob = Neg (square)
        axes = Constant <value_ints = [1, 2, 3]> ()
        log_prob = ReduceSum <keepdims = 0> (conditional_log_prob, axes)
    }}"""


# A posterior that is near the true one and wider, so that weights have a small spread.
DECODER = np.random.default_rng(1).normal(size=(HEIGHT * WIDTH, LATENT_DIM)) / 8
ENCODER = DECODER / 2
POSTERIOR_STD = 1.2


def linear_bound(*, conditional: bool = False) -> str:
    """Return the bound of a linear-Gaussian autoencoder, up to constants.

    p(x|z) = N(z·DECODERᵀ, I), q(z|x) = N(x·ENCODER, POSTERIOR_STD²·I); of a conditional one, x is
    the image less a tenth of the label's number.
    """
    size = HEIGHT * WIDTH
    row = f"float[N, 1, {HEIGHT}, {WIDTH}] image, float[N, K, {LATENT_DIM}] noise"
    centred = """
        number = Cast <to = 1> (label)
        tenth = Constant <value_float = 0.1> ()
        scaled = Mul (number, tenth)
        shift = Unsqueeze (scaled, first)
        x = Sub (pixels, shift)"""
    return f"""
    log_prob ({row}{", int64[N] label" if conditional else ""})
            => (float[N] log_prob, float[N, K] log_weight) {{
        flat = Constant <value_ints = [-1, {size}]> ()
        first = Constant <value_ints = [1]> ()
        last = Constant <value_ints = [2]> ()
        half = Constant <value_float = 0.5> ()
        std = Constant <value_float = {POSTERIOR_STD}> ()
        encoder = {constant(ENCODER)}
        decoder = {constant(DECODER.T)}
        pixels = Reshape (image, flat)
        {centred if conditional else "x = Identity (pixels)"}
        mean = MatMul (x, encoder)
        centre = Unsqueeze (mean, first)
        step = Mul (noise, std)
        z = Add (centre, step)
        decoded = MatMul (z, decoder)
        wide = Unsqueeze (x, first)
        error = Sub (wide, decoded)
        square_error = Mul (error, error)
        total_error = ReduceSum <keepdims = 0> (square_error, last)
        square_noise = Mul (noise, noise)
        square_latent = Mul (z, z)
        difference = Sub (square_noise, square_latent)
        total_difference = ReduceSum <keepdims = 0> (difference, last)
        both = Sub (total_difference, total_error)
        halved = Mul (both, half)
        entropy = Constant <value_float = {LATENT_DIM * np.log(POSTERIOR_STD):.8g}> ()
        log_weight = Add (halved, entropy)
        log_sum = ReduceLogSumExp <keepdims = 0> (log_weight, first)
        count = Shape <start = 1, end = 2> (noise)
        samples = Cast <to = 1> (count)
        log_number = Log (samples)
        log_prob = Sub (log_sum, log_number)
    }}"""


def linear_encoder() -> str:
    """Return the posterior of `linear_bound`."""
    return f"""
    encode (float[N, 1, {HEIGHT}, {WIDTH}] image)
            => (float[N, {LATENT_DIM}] mean, float[N, {LATENT_DIM}] log_var) {{
        flat = Constant <value_ints = [-1, {HEIGHT * WIDTH}]> ()
        encoder = {constant(ENCODER)}
        x = Reshape (image, flat)
        mean = MatMul (x, encoder)
        zero = Constant <value_float = 0.0> ()
        zeros = Mul (mean, zero)
        constant = Constant <value_float = {2 * np.log(POSTERIOR_STD):.8g}> ()
        log_var = Add (zeros, constant)
    }}"""


def identity_generator() -> str:
    """Return the noise itself as a picture."""
    shape = f"float[N, 1, {HEIGHT}, {WIDTH}]"
    return f"generate ({shape} noise) => ({shape} image) {{ image = Identity (noise) }}"


def slow_generator() -> str:
    """Return a picture after as many steps as the square of the largest noise: 10¹² for 10⁶."""
    size = HEIGHT * WIDTH
    return f"""
    generate (float[N, {LATENT_DIM}] noise) => (float[N, 1, {HEIGHT}, {WIDTH}] image) {{
        largest = ReduceMax <keepdims = 0> (noise)
        square = Mul (largest, largest)
        steps = Cast <to = 7> (square)
        yes = Constant <value = bool {{1}}> ()
        weight = {constant(np.ones((LATENT_DIM, size)))}
        start = MatMul (noise, weight)
        end = Loop (steps, yes, start) <
            body = step (int64 i, bool go, float[N, {size}] state)
                    => (bool go_on, float[N, {size}] next) {{
                go_on = Identity (go)
                next = Sin (state)
            }}>
        probs = Sigmoid (end)
        shape = Constant <value_ints = [-1, 1, {HEIGHT}, {WIDTH}]> ()
        image = Reshape (probs, shape)
    }}"""


def fragile_generator() -> str:
    """Return a picture that is not finite where a latent is negative."""
    size = HEIGHT * WIDTH
    return f"""
    generate (float[N, {LATENT_DIM}] noise) => (float[N, 1, {HEIGHT}, {WIDTH}] image) {{
        weight = {constant(np.full((LATENT_DIM, size), 1 / LATENT_DIM))}
        root = Sqrt (noise)
        mean = MatMul (root, weight)
        shape = Constant <value_ints = [-1, 1, {HEIGHT}, {WIDTH}]> ()
        image = Reshape (mean, shape)
    }}"""


def write_bundle(
    store: Path,
    name: str,
    graphs: Mapping[Role, str],
    *,
    version: int = 1,
    channels: int = 1,
    values: Values = "8-bit",
    prior: Literal["normal", "uniform"] = "normal",
    latent: bool = True,
    labels: tuple[str, ...] = (),
    ordering: Literal["raster"] | None = None,
) -> Path:
    """Write a sound bundle.

    Args:
        store: Where to; the folder `<name>/<version>` is made.
        name: The model's name.
        graphs: Text of each graph.
        version: Its version.
        channels: Of its images.
        values: What a pixel can be.
        prior: Of its noise.
        latent: Whether its noise is a latent, or one number per pixel.
        labels: Its classes.
        ordering: In which order it draws, if pixel by pixel.

    Returns:
        The bundle's folder.
    """
    folder = store / name / str(version)
    folder.mkdir(parents=True)
    image = Image(shape=(1 if channels == 1 else 3, HEIGHT, WIDTH), values=values)
    noise = Noise(prior=prior, shape=(LATENT_DIM,) if latent else image.shape, latent=latent)
    for role, text in graphs.items():
        write_graph(folder / f"{role}.onnx", text)
    golden: dict[str, Any] = golden_arrays(folder, list(graphs), noise, len(labels))
    np.savez(folder / GOLDEN_FILE, **golden)
    (folder / CARD_FILE).write_text(f"# {name}\n")
    (folder / PREVIEW_FILE).write_bytes(b"a picture")
    (folder / FILM_FILE).write_bytes(b"a film")
    files = (GOLDEN_FILE, CARD_FILE, PREVIEW_FILE, FILM_FILE)
    manifest = Manifest(
        name=name,
        version=version,
        family="tiny",
        description="Made up.",
        density=density_of(graphs),
        image=image,
        noise=noise,
        labels=labels,
        ordering=ordering,
        num_parameters=1,
        graphs={role: describe_graph(folder / f"{role}.onnx") for role in graphs},
        files={file: sha256_of(folder / file) for file in files},
        training=TRAINING,
    )
    write_manifest(folder, manifest)
    return folder


def density_of(graphs: Mapping[Role, str]) -> Density:
    """Tell from its graphs what a model knows of its likelihood."""
    if "log_prob" not in graphs:
        return "implicit"
    return "bound" if "log_weight" in graphs["log_prob"] else "exact"


def describe_graph(path: Path) -> Graph:
    """Describe a graph for the manifest."""
    return Graph(
        file=path.name,
        sha256=sha256_of(path),
        num_bytes=path.stat().st_size,
        max_batch_rows=MAX_BATCH_ROWS,
    )


def golden_arrays(
    folder: Path, roles: list[Role], noise: Noise, num_classes: int
) -> dict[str, NDArray[Any]]:
    """Run graphs on a few rows and name the arrays as a bundle does."""
    indices = np.arange(NUM_GOLDEN, dtype=np.uint64)
    inputs: dict[str, NDArray[Any]] = {
        "noise": draw(noise.prior, indices * 0, indices, noise.shape),
        "temperature": np.ones(NUM_GOLDEN, np.float32),
        "label": np.arange(NUM_GOLDEN) % max(num_classes, 1),
    }
    inputs["known"] = inputs["known_mask"] = np.zeros((NUM_GOLDEN, 1, HEIGHT, WIDTH), np.float32)
    golden: dict[str, NDArray[Any]] = {}
    for role in roles:
        session = Session(folder / f"{role}.onnx")
        taken = {name: inputs[name] for name in session.inputs}
        if role == "log_prob" and "noise" in taken:
            taken["noise"] = draw_importance(indices * 0, indices, indices * 0, 2, LATENT_DIM)
        made = session.run(taken)
        inputs |= {name: array for name, array in made.items() if name == "image"}
        golden |= {f"{role}.{name}": array for name, array in (taken | made).items()}
    return golden


def write_store(store: Path) -> Path:
    """Write one model of every kind, one of them in two versions."""
    for version, gain in ((1, 1.0), (2, 2.0)):
        graph = latent_generator(1, gain)
        write_bundle(store, "tiny-latent", {"generate": graph}, version=version)
    write_bundle(
        store,
        "tiny-binary",
        {"generate": binary_generator(), "log_prob": binary_log_prob()},
        values="binary",
        prior="uniform",
        latent=False,
    )
    write_bundle(
        store,
        "tiny-grey",
        {
            "generate": identity_generator(),
            "log_prob": square_log_prob(1, has_conditionals=False),
        },
        prior="uniform",
        latent=False,
    )
    write_bundle(
        store,
        "tiny-rgb",
        {"generate": latent_generator(3), "log_prob": square_log_prob(3, has_conditionals=True)},
        channels=3,
        prior="uniform",
    )
    return store


def write_vae_store(store: Path) -> Path:
    """Write a model with a bound and an encoder, and others that have neither."""
    write_bundle(
        store,
        "tiny-vae",
        {
            "generate": latent_generator(1),
            "log_prob": linear_bound(),
            "encode": linear_encoder(),
        },
    )
    return write_store(store)


def add_calibration(folder: Path, arrays: Mapping[str, NDArray[np.float64]]) -> None:
    """Calibrate a bundle by such scores of held-out images.

    Args:
        folder: The bundle's folder.
        arrays: `<preparation>.log_prob` and `<preparation>.code_bits`, (n,) each.
    """
    with np.load(folder / GOLDEN_FILE) as golden:
        probe = code_bits(golden["log_prob.image"])
    with (folder / CALIBRATION_FILE).open("wb") as file:
        np.savez(file, allow_pickle=False, **({"golden.code_bits": probe} | dict(arrays)))
    manifest = read_manifest(folder)
    files = {**manifest.files, CALIBRATION_FILE: sha256_of(folder / CALIBRATION_FILE)}
    calibration = Calibration(num_images=100, num_ranked=80)
    write_manifest(folder, manifest.model_copy(update={"calibration": calibration, "files": files}))
