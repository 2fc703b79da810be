"""From a trained model to ONNX: one file per role, checked against torch, with golden arrays."""

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim

from export.data import Images, load_split
from export.graph import FloatArray, Graph, Tensors
from export.model import GenerativeModel
from export.operators import TRANSLATIONS
from export.recipe import Recipe
from export.train import load_model
from service.manifest import GOLDEN_FILE, Role
from service.noise import draw, draw_importance

BUNDLE_FOLDER = "bundle"

OUTPUTS: dict[Role, tuple[str, ...]] = {
    "generate": ("image",),
    "log_prob": ("log_prob", "conditional_log_prob"),
    "encode": ("mean", "log_var"),
}
_BOUND_OUTPUTS = ("log_prob", "log_weight")
NUM_GOLDEN_ROWS = 8
NUM_GOLDEN_SAMPLES = 5

# Torch and ONNX Runtime add in different orders. Pixels pass a tanh or a sigmoid, which leaves
# 1e-6; a sum over hundreds of pixels leaves 1e-4 nats; larger sums have a few units in the last
# place, which the relative part allows for. Binary pixels are compared exactly.
TOLERANCES: dict[str, float] = {
    "image": 1e-4,
    "log_prob": 1e-3,
    "conditional_log_prob": 1e-3,
    "log_weight": 1e-3,
}
_DEFAULT_TOLERANCE = 1e-4
_RELATIVE_TOLERANCE = 1e-6

_CHECKED_BATCHES = (1, 2, 7)
_MAX_BATCH_ROWS = 1 << 16  # torch wants a bound; memory is bounded by the service
_MAX_SAMPLES = 1 << 16
_CHATTY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def convert(recipe: Recipe, run: Path) -> Path:
    """Convert the trained model of a run into the graphs of a bundle.

    Args:
        recipe: What was trained.
        run: Folder of the run.

    Returns:
        The folder of the graphs and of the golden arrays.

    Raises:
        FileNotFoundError: The run has no checkpoint, or the data is missing.
        ValueError: A graph does not give what the model gives.
    """
    split = load_split(recipe.data)
    model = load_model(recipe, run, split).requires_grad_(False)
    bundle = run / BUNDLE_FOLDER
    bundle.mkdir(exist_ok=True)
    for stale in bundle.iterdir():
        stale.unlink()
    golden: Tensors = {}
    for role, module in model.shipped_graphs().items():
        inputs = golden_inputs(model, module, split.test)
        path = bundle / f"{role}.onnx"
        export_graph(module, role, inputs, path)
        drawn = role == "generate" and model.density == "exact"
        exact = drawn and model.image.values == "binary"
        # Among 256 levels there are 255 borders, and of thousands of draws some fall so near one
        # that rounding decides; all later pixels of the image then follow another path.
        spare_share = 0.5 if drawn and model.image.values == "8-bit" else 0.0
        outputs = check_graph(path, module, inputs, exact=exact, spare_share=spare_share)
        golden |= {f"{role}.{name}": values for name, values in (inputs | outputs).items()}
    # Last, so that a bundle with golden arrays is a whole one.
    np.savez_compressed(bundle / GOLDEN_FILE, **golden)  # type: ignore[arg-type]
    return bundle


def golden_inputs(model: GenerativeModel, module: nn.Module, test: Images) -> Tensors:
    """Choose inputs that reach everything a graph can do, one array per argument of `forward`.

    Eight rows: the noise of seed 0 (for a bound, that of five importance samples), temperatures
    from ½ to 2, a known upper half in every second row, images of the test part, and the classes
    in turn.

    Raises:
        ValueError: `forward` has an argument that bundles do not know.
    """
    indices = np.arange(NUM_GOLDEN_ROWS, dtype=np.uint64)
    images = np.resize(test[:NUM_GOLDEN_ROWS].values, (NUM_GOLDEN_ROWS, *model.image.shape))
    known_mask = np.zeros_like(images)
    known_mask[::2, :, : images.shape[2] // 2] = 1
    names = inspect.signature(module.forward).parameters

    def draw_noise() -> FloatArray:
        if _is_bound(names):
            zeros, (latent_dim,) = indices * 0, model.noise.shape
            return draw_importance(zeros, indices, zeros, NUM_GOLDEN_SAMPLES, latent_dim)
        return draw(model.noise.prior, indices * 0, indices, model.noise.shape)

    known: dict[str, Callable[[], NDArray[Any]]] = {
        "noise": draw_noise,
        "temperature": lambda: np.geomspace(0.5, 2, NUM_GOLDEN_ROWS).astype(np.float32),
        "known": lambda: images,
        "known_mask": lambda: known_mask,
        "image": lambda: images,
        "label": lambda: np.arange(NUM_GOLDEN_ROWS) % model.num_classes,
    }
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{type(module).__name__}.forward takes {', '.join(unknown)}; graphs take "
            f"{', '.join(known)}"
        )
    return {name: known[name]() for name in names}


def export_graph(module: nn.Module, role: Role, inputs: Tensors, path: Path) -> None:
    """Write a module as the graph of a role; arguments as of `write_graph`."""
    if role == "log_prob" and _is_bound(inputs):
        write_graph(module, _BOUND_OUTPUTS, inputs, path, sampled=("noise", "log_weight"))
    else:
        write_graph(module, OUTPUTS[role], inputs, path)


def write_graph(
    module: nn.Module,
    outputs: Sequence[str],
    inputs: Tensors,
    path: Path,
    *,
    sampled: Sequence[str] = (),
) -> None:
    """Write a module as one ONNX file with a free batch axis and nothing but the computation.

    Args:
        module: What to convert; the arguments of its `forward` name the inputs.
        outputs: Names of the outputs.
        inputs: Example inputs by name; several rows.
        path: Where to write.
        sampled: Inputs and outputs whose axis 1 is free too: it counts importance samples.
    """
    batch = Dim("batch", min=1, max=_MAX_BATCH_ROWS)
    samples = Dim("samples", min=1, max=_MAX_SAMPLES)
    with _quiet_exporter():
        # Traced here, because the ONNX exporter's own attempts at a scan end in a fallback that
        # leaves operators without an ONNX counterpart.
        traced = torch.export.export(
            module.eval(),
            tuple(torch.from_numpy(values) for values in inputs.values()),
            dynamic_shapes=tuple(
                {0: batch, 1: samples} if name in sampled else {0: batch} for name in inputs
            ),
            strict=False,
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table=TRANSLATIONS,
        )
    assert program is not None
    content = program.model_proto
    _strip(content)
    prune(content.graph)
    for tensor in (*content.graph.input, *content.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
        if tensor.name in sampled:
            tensor.type.tensor_type.shape.dim[1].dim_param = "samples"
    onnx.checker.check_model(content, full_check=True)
    path.write_bytes(content.SerializeToString(deterministic=True))


def check_graph(
    path: Path, module: nn.Module, inputs: Tensors, *, exact: bool = False, spare_share: float = 0.0
) -> Tensors:
    """Compare a graph with the module that it was made from, at several batch sizes.

    Args:
        path: The graph.
        module: The module.
        inputs: Inputs by name.
        exact: Whether outputs must be equal, as binary pixels must.
        spare_share: Share of a batch's rows, rounded up, that may differ all the same.

    Returns:
        What the graph gives for all rows.

    Raises:
        ValueError: They disagree by more than the tolerance.
    """
    graph = Graph(path)
    for num_rows in (*_CHECKED_BATCHES, len(next(iter(inputs.values())))):
        rows = {name: realigned(values[-num_rows:]) for name, values in inputs.items()}
        outputs = graph(rows)
        expected = run_module(module, rows)
        for (name, values), reference in zip(outputs.items(), expected, strict=True):
            tolerance = 0.0 if exact else TOLERANCES.get(name, _DEFAULT_TOLERANCE)
            what = f"{path.name}, batch {num_rows}, {name}"
            _compare(what, values, reference, tolerance, spare_share)
    return outputs


def run_module(module: nn.Module, inputs: Tensors) -> tuple[FloatArray, ...]:
    """Run a module on arrays, in evaluation mode."""
    with torch.no_grad():
        outputs = module.eval()(*(torch.from_numpy(values.copy()) for values in inputs.values()))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(output.numpy() for output in outputs)


def realigned(values: NDArray[Any]) -> NDArray[Any]:
    """Copy an array to an address that is aligned for its elements and for nothing more.

    Kernels may treat the ends of a vector register apart; a view of a well aligned array would
    never show it.
    """
    buffer = np.empty(values.size + 1, dtype=values.dtype)
    copy = buffer[1:].reshape(values.shape)
    copy[...] = values
    return copy


def _compare(
    what: str, values: FloatArray, reference: FloatArray, tolerance: float, spare_share: float
) -> None:
    if values.shape != reference.shape:
        raise ValueError(f"{what}: ONNX Runtime gives {values.shape}, torch {reference.shape}")
    relative = _RELATIVE_TOLERANCE if tolerance else 0.0
    close = np.isclose(values, reference, rtol=relative, atol=tolerance)
    num_wrong = int((~close.reshape(len(close), -1).all(axis=1)).sum())
    if num_wrong > math.ceil(spare_share * len(close)):
        worst = float(np.abs(values - reference).max())
        raise ValueError(
            f"{what}: ONNX Runtime and torch differ by up to {worst:.3g}, allowed is {tolerance:g}"
        )


def _is_bound(names: Iterable[str]) -> bool:
    # A likelihood that takes noise is estimated.
    return {"image", "noise"} <= set(names)


def _strip(message: Message) -> None:
    """Remove notes of the exporter: they hold stack traces, and with them paths of a machine."""
    for field, value in message.ListFields():
        if field.name in {"metadata_props", "doc_string", "value_info"}:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                _strip(part)


def prune(graph: onnx.GraphProto) -> set[str]:
    """Remove initializers that nothing reads: ONNX Runtime would complain at every start.

    Returns:
        The names that are read in the graph and in those inside of it.
    """
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input)
        for attribute in node.attribute:
            # A field that is only looked at stays unset; one that is changed would not.
            inner = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for graph_inside in inner:
                read |= prune(graph_inside)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return read


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide what the exporter says of its own code; what goes wrong is raised, not logged."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY_LOGGERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
