"""Tensors on the wire of the Open Inference Protocol: JSON, then bytes in the order of names."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from service.batcher import Rows
from service.errors import (
    InvalidRequestError,
    MalformedRequestError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)
from service.routes.endpoint import json_bytes, validate_json
from service.routes.fields import RequestModel
from service.tensors import Tensor

HEADER_LENGTH = "inference-header-content-length"

DATATYPES = {
    "bool": "BOOL",
    **{
        f"{kind}int{bits}": f"{kind}int{bits}".upper()
        for kind in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}
"""NumPy's names of types, and those of the protocol."""

_MAX_TENSORS = 16
_MAX_AXES = 8
_ENCODINGS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class Parameters(RequestModel):
    """Parameters of a request or a tensor: those of other servers are refused by name."""

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, values: Any) -> Any:
        foreign = sorted(set(values) - cls.model_fields.keys()) if isinstance(values, dict) else ()
        if foreign:
            possible = ", ".join(cls.model_fields)
            raise ValueError(f"not offered here: {', '.join(foreign)[:200]}; possible: {possible}")
        return values


class InputParameters(Parameters):
    """How an input is sent."""

    binary_data_size: int | None = Field(
        default=None, ge=0, description="Bytes of this tensor after the JSON."
    )


class OutputParameters(Parameters):
    """How an output is wanted."""

    binary_data: bool | None = Field(default=None, description="As bytes after the JSON.")


class RequestParameters(Parameters):
    """What goes for the whole request."""

    timeout: int | None = Field(
        default=None,
        ge=0,
        le=86_400_000_000,
        description="Deadline in microseconds, queueing included; 0 is the server's.",
    )
    binary_data_output: bool = Field(
        default=False, description="Outputs as bytes, where they do not say otherwise."
    )


class InputTensor(RequestModel):
    """A named array, whose data is here or after the JSON."""

    name: str = Field(max_length=64, description="Of the graph's input.")
    shape: list[int] = Field(max_length=_MAX_AXES, description="Axis 0 is the batch.")
    datatype: str = Field(max_length=16, description="FP32, INT64, …: the input's own.")
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = Field(default=None, description="Row by row, flat or nested.")


class RequestedOutput(RequestModel):
    """An output that the answer shall tell."""

    name: str = Field(max_length=64, description="Of the graph's output.")
    parameters: OutputParameters = OutputParameters()


class InferRequest(RequestModel):
    """The inputs of a graph, and which outputs are wanted: all, where none is named."""

    id: str | None = Field(default=None, max_length=256, description="Told again in the answer.")
    parameters: RequestParameters = RequestParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=_MAX_TENSORS)
    outputs: list[RequestedOutput] | None = Field(default=None, max_length=_MAX_TENSORS)


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo the compression of a body, never past a limit.

    Raises:
        UnsupportedMediaTypeError: It is compressed in a way that is not offered.
        PayloadTooLargeError: It would be larger than the limit.
        MalformedRequestError: It is damaged.
    """
    if encoding in {"", "identity"}:
        return body
    if encoding not in _ENCODINGS:
        raise UnsupportedMediaTypeError(encoding, ["identity", *_ENCODINGS])
    inflate = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        content = inflate.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedRequestError(f"the body is no {encoding}") from error
    if len(content) > max_bytes:
        raise PayloadTooLargeError(max_bytes)
    if not inflate.eof or inflate.unused_data:
        raise MalformedRequestError(f"the body is no whole {encoding}")
    return content


def parse(
    body: bytes, header_length: str | None, wanted: Mapping[str, Tensor]
) -> tuple[InferRequest, Rows]:
    """Read a request.

    Args:
        body: JSON, and after it the data of the tensors that say their `binary_data_size`.
        header_length: How many bytes of the body are JSON, in digits; None for all.
        wanted: The graph's inputs.

    Raises:
        MalformedRequestError: The body is no JSON, or shorter or longer than it says.
        InvalidRequestError: A field breaks its rule.
    """
    size = len(body) if header_length is None else _size(header_length, len(body))
    asked = validate_json(body[:size], InferRequest)
    arrays: dict[str, NDArray[Any]] = {}
    for position, tensor in enumerate(asked.inputs):
        if tensor.name in arrays or tensor.name not in wanted:
            problem = "is given twice" if tensor.name in arrays else "is no input of this model"
            raise _blame(position, tensor, f"{problem}; it takes {', '.join(wanted)}")
        declared = wanted[tensor.name]
        if tensor.datatype != DATATYPES[declared.dtype]:
            text = f"has datatype {tensor.datatype}, must be {DATATYPES[declared.dtype]}"
            raise _blame(position, tensor, text)
        num_bytes = tensor.parameters.binary_data_size
        if (num_bytes is None) == (tensor.data is None):
            raise _blame(position, tensor, "needs either data or binary_data_size")
        try:
            if num_bytes is None:
                array = _from_json(tensor, declared.dtype)
            else:
                array = _from_bytes(tensor, declared.dtype, body[size : size + num_bytes])
                size += num_bytes
        except ValueError as error:
            raise _blame(position, tensor, str(error)) from error
        arrays[tensor.name] = array
    if size != len(body):
        raise MalformedRequestError(f"{len(body) - size} bytes follow the last tensor")
    return asked, arrays


def choose_outputs(asked: InferRequest, possible: Mapping[str, Tensor]) -> dict[str, bool]:
    """Tell which outputs are wanted, and whether as bytes.

    Raises:
        InvalidRequestError: The graph has no such output, or it is asked for twice.
    """
    default = asked.parameters.binary_data_output
    if not asked.outputs:
        return dict.fromkeys(possible, default)
    chosen: dict[str, bool] = {}
    for position, output in enumerate(asked.outputs):
        if output.name in chosen or output.name not in possible:
            problem = "is asked for twice" if output.name in chosen else "is no output"
            text = f"{output.name!r} {problem}; possible: {', '.join(possible)}"
            raise InvalidRequestError(f"outputs: {text}", [(f"/outputs/{position}", text)])
        is_binary = output.parameters.binary_data
        chosen[output.name] = default if is_binary is None else is_binary
    return chosen


def encode(head: Mapping[str, Any], outputs: Rows, chosen: Mapping[str, bool]) -> tuple[bytes, int]:
    """Write an answer.

    Args:
        head: Its members but the outputs.
        outputs: The arrays.
        chosen: Which of them to tell, and whether as bytes.

    Returns:
        The body, and how many bytes of it are JSON.

    Raises:
        InvalidRequestError: A value is not finite, which JSON cannot say.
    """
    told, pieces = [], []
    for name, is_binary in chosen.items():
        array = np.ascontiguousarray(outputs[name])
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": array.shape,
        }
        if is_binary:
            piece = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            pieces.append(piece)
            tensor["parameters"] = {"binary_data_size": len(piece)}
        elif not np.isfinite(array).all():
            raise InvalidRequestError.of_field(
                "outputs", f"{name} is not finite everywhere, which JSON cannot say: ask for bytes"
            )
        else:
            tensor["data"] = array.reshape(-1).tolist()
        told.append(tensor)
    header = json_bytes({**head, "outputs": told})
    return b"".join([header, *pieces]), len(header)


def _size(text: str, limit: int) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) <= limit):
        raise MalformedRequestError(
            f"{HEADER_LENGTH} must be the bytes of JSON that the body begins with, from 1 to "
            f"{limit}, not {text[:20]!r}"
        )
    return int(text)


def _from_json(tensor: InputTensor, dtype: str) -> NDArray[Any]:
    try:
        given = np.array(tensor.data)
    except (ValueError, OverflowError) as error:
        raise ValueError("has data that is no array of numbers") from error
    _check_count(tensor.shape, given.size)
    if given.dtype.kind not in ("iuf" if np.dtype(dtype).kind == "f" else "i"):
        raise ValueError(f"has data that is not {DATATYPES[dtype]}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and that is refused
        return given.astype(dtype).reshape(tensor.shape)


def _from_bytes(tensor: InputTensor, dtype: str, data: bytes) -> NDArray[Any]:
    little = np.dtype(dtype).newbyteorder("<")
    num_bytes = tensor.parameters.binary_data_size or 0
    if len(data) < num_bytes:
        raise ValueError(f"has only {len(data)} of its {num_bytes} bytes")
    if num_bytes % little.itemsize:
        raise ValueError(f"has {num_bytes} bytes, no multiple of {little.itemsize}")
    _check_count(tensor.shape, num_bytes // little.itemsize)
    # A copy of its own is aligned, wherever in the body the data began.
    return np.frombuffer(data, little).astype(dtype).reshape(tensor.shape)


def _check_count(shape: Sequence[int], count: int) -> None:
    if any(size < 0 for size in shape) or math.prod(shape) != count:
        raise ValueError(f"has {count} values, which do not fill shape {list(shape)}")


def _blame(position: int, tensor: InputTensor, text: str) -> InvalidRequestError:
    return InvalidRequestError(f"inputs: {tensor.name!r} {text}", [(f"/inputs/{position}", text)])
