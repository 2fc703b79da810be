"""The tensors of a model's graphs, for clients that know graphs and no operations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.batcher import Outcome, Rows
from service.bounds import rows_per_image
from service.errors import InvalidRequestError
from service.graph import LABEL, NEUTRAL_INPUTS
from service.manifest import Manifest, Role
from service.model import Model

T = TypeVar("T")

VARIABLE = -1
"""A size that each request chooses."""

MAX_NOISE = 1e6

# What ONNX Runtime calls a type, where NumPy calls it otherwise.
_ELEMENT_TYPES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; axis 0 is the batch.

    Attributes:
        dtype: NumPy's name of the type.
        row_shape: Shape without the batch axis, `VARIABLE` where each request chooses.
        is_optional: Whether a request may leave it out; see `NEUTRAL_INPUTS` for what it gets.
    """

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    is_optional: bool = False

    def check(self, array: NDArray[Any]) -> None:
        """Refuse an array of another shape.

        Raises:
            InvalidRequestError: It does not fit.
        """
        sizes = array.shape[1:]
        fits = array.ndim == 1 + len(self.row_shape) and all(
            size == wanted or (wanted == VARIABLE and size > 0)
            for size, wanted in zip(sizes, self.row_shape, strict=True)
        )
        if not fits or not len(array):
            shape, wanted_shape = list(array.shape), [VARIABLE, *self.row_shape]
            raise InvalidRequestError.of_field(
                "inputs",
                f"{self.name} has shape {shape}, must be {wanted_shape} with at least one row",
            )


def inputs_of(model: Model, role: Role) -> dict[str, Tensor]:
    """List what a graph takes, by name and in its order."""
    manifest = model.manifest
    return {name: _input(name, role, manifest) for name in model.graphs[role].session.inputs}


def outputs_of(model: Model, role: Role) -> dict[str, Tensor]:
    """List what a graph returns, by name and in its order."""
    types = model.graphs[role].session.output_types
    return {name: _output(name, *declared) for name, declared in types.items()}


def check_inputs(model: Model, role: Role, arrays: Rows, max_rows: int, max_samples: int) -> None:
    """Refuse arrays that the graph cannot take, before anything is queued.

    Args:
        model: The model.
        role: Which of its graphs.
        arrays: What a request sends, each of its tensor's type.
        max_rows: Most rows per request.
        max_samples: Most importance samples per row of a bound.

    Raises:
        InvalidRequestError: A tensor is missing, of a wrong shape, or has a value that the graph
            gives no meaning to.
    """
    wanted = inputs_of(model, role)
    for name, tensor in wanted.items():
        if name in arrays:
            tensor.check(arrays[name])
            problem = _value_problem(name, arrays[name], model.manifest)
            if problem:
                raise InvalidRequestError.of_field("inputs", f"{name} {problem}")
        elif not tensor.is_optional:
            raise InvalidRequestError.of_field("inputs", f"{name} is missing")
    if ("known" in arrays) != ("known_mask" in arrays):
        raise InvalidRequestError.of_field("inputs", "known and known_mask go together")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InvalidRequestError.of_field("inputs", f"numbers of rows differ: {listed}")
    num_rows = next(iter(counts.values()))
    if num_rows > max_rows:
        raise InvalidRequestError.of_field(
            "inputs", f"at most {max_rows} rows per request, not {num_rows}"
        )
    if role == "log_prob" and "noise" in arrays:
        _check_samples(model, arrays["noise"], max_samples)


async def run_tensors(
    model: Model, role: Role, arrays: Rows, finish: Callable[[Rows], T], *, timeout_s: float
) -> Outcome[T]:
    """Run a graph on the rows of a request, through the same queue as every other operation.

    Args:
        model: The model.
        role: Which of its graphs.
        arrays: Inputs that `check_inputs` has let pass.
        finish: Makes the answer of the graph's outputs, in a worker thread.
        timeout_s: Deadline, queueing included.

    Raises:
        ProblemError: As the model's operations.
    """
    match role:
        case "generate":
            return await model.generate(arrays, finish, timeout_s=timeout_s)
        case "log_prob":
            return await model.log_prob(
                arrays["image"],
                lambda outputs: finish(_as_declared(model, role, outputs)),
                labels=arrays.get(LABEL),
                noise=arrays.get("noise"),
                timeout_s=timeout_s,
            )
        case "encode":
            return await model.encode(
                arrays["image"], finish, labels=arrays.get(LABEL), timeout_s=timeout_s
            )


def _input(name: str, role: Role, manifest: Manifest) -> Tensor:
    shapes: dict[str, tuple[int, ...]] = {
        "noise": manifest.noise.shape,
        "temperature": (),
        LABEL: (),
    }
    row_shape = shapes.get(name, manifest.image.shape)
    if name == "noise" and role == "log_prob":
        row_shape = (VARIABLE, *row_shape)  # any number of importance samples
    dtype = "int64" if name == LABEL else "float32"
    return Tensor(name, dtype, row_shape, is_optional=name in NEUTRAL_INPUTS)


def _output(name: str, declared: str, shape: tuple[int | str, ...]) -> Tensor:
    element = declared.removeprefix("tensor(").removesuffix(")")
    sizes = tuple(size if isinstance(size, int) else VARIABLE for size in shape[1:])
    return Tensor(name, _ELEMENT_TYPES.get(element, element), sizes)


def _as_declared(model: Model, role: Role, outputs: Mapping[str, NDArray[Any]]) -> Rows:
    # A bound is added up in double precision, but its graph declares single.
    types = {name: tensor.dtype for name, tensor in outputs_of(model, role).items()}
    return {name: outputs[name].astype(dtype, copy=False) for name, dtype in types.items()}


def _value_problem(name: str, array: NDArray[Any], manifest: Manifest) -> str | None:
    """Say what is wrong with the values of an input; NaN fails every comparison."""
    if name == LABEL:
        num_classes = len(manifest.labels)
        is_class = (array >= 0) & (array < num_classes)
        return None if is_class.all() else f"must be from 0 to {num_classes - 1}"
    if name == "temperature":
        is_positive = (array > 0) & np.isfinite(array)
        return None if is_positive.all() else "must be above 0 and finite"
    if name == "noise" and manifest.noise.prior == "normal":
        is_sane = np.abs(array) <= MAX_NOISE
        return None if is_sane.all() else f"must be finite, from {-MAX_NOISE:g} to {MAX_NOISE:g}"
    if name == "known_mask" or (name != "noise" and manifest.image.values == "binary"):
        return None if ((array == 0) | (array == 1)).all() else "must be 0 or 1 everywhere"
    lowest, highest = 0.0, 1.0
    if name != "noise" and manifest.image.values == "continuous":
        # A grey level stands for an interval of real numbers, and is in the middle of it.
        lowest, highest = -0.5 / 255, 255.5 / 255
    is_inside = (array >= np.float32(lowest)) & (array <= np.float32(highest))
    return None if is_inside.all() else f"must be from {lowest:.6g} to {highest:.6g}"


def _check_samples(model: Model, noise: NDArray[Any], max_samples: int) -> None:
    num_images, num_samples = noise.shape[:2]
    if num_samples > max_samples:
        raise InvalidRequestError.of_field(
            "inputs", f"noise: at most {max_samples} samples per image, not {num_samples}"
        )
    num_rows = num_images * rows_per_image(num_samples)
    limit = model.graphs["log_prob"].max_queue_rows
    if num_rows > limit:
        raise InvalidRequestError.of_field(
            "inputs",
            f"noise: {num_images} images with {num_samples} samples are {num_rows} rows of "
            f"importance samples, at most {limit} are possible",
        )
