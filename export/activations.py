"""How much memory a graph takes for each row of a batch."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from export.graph import Graph, Tensors
from service.manifest import GOLDEN_FILE, Role


def golden_inputs_of(folder: Path, role: Role) -> Tensors:
    """Read the inputs of the golden rows of a graph.

    Args:
        folder: A bundle.
        role: The graph.

    Returns:
        Inputs by name; of importance samples only the first of each row.
    """
    with np.load(folder / GOLDEN_FILE, allow_pickle=False) as golden:
        inputs = {name: golden[f"{role}.{name}"] for name in Graph(folder / f"{role}.onnx").inputs}
    if role == "log_prob" and "noise" in inputs:
        inputs["noise"] = inputs["noise"][:, :1]
    return inputs


def activation_bytes(path: Path, inputs: Tensors) -> int:
    """Measure the most that one node puts out per row, in loops as well as outside of them.

    What does not grow with the batch, such as constants, is not counted.

    Args:
        path: The ONNX file.
        inputs: Its inputs, at least two rows.

    Returns:
        Bytes, at least 1.

    Raises:
        ValueError: There are fewer than two rows.
    """
    num_rows = len(next(iter(inputs.values())))
    if num_rows < 2:
        raise ValueError("how memory grows with the rows is seen from two rows on, got one")
    # Halves of the eight golden rows: some graphs fill their rows up to fours.
    fewer = num_rows // 2
    half = _output_bytes(path, {name: array[:fewer] for name, array in inputs.items()})
    whole = _output_bytes(path, inputs)
    grown = max(whole[node] - half.get(node, 0) for node in whole)
    return max(1, grown // (num_rows - fewer))


def _output_bytes(path: Path, inputs: Tensors) -> dict[str, int]:
    """Return what each node puts out in a run, by the node's name."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    sizes: dict[str, int] = {}
    for event in events:
        if event["cat"] == "Node" and "output_size" in event["args"]:
            size = int(event["args"]["output_size"])
            sizes[event["name"]] = max(size, sizes.get(event["name"], 0))
    return sizes
