"""One ONNX file as a function of arrays, run in batches on a single CPU thread."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.noise import Prior, draw

FloatArray = NDArray[np.float32]
Tensors = dict[str, NDArray[Any]]


class Graph:
    """An ONNX Runtime session whose inputs and outputs all have rows on axis 0.

    Args:
        path: The ONNX file.
        max_batch_rows: More rows than this are run in several batches, which bounds memory.
    """

    def __init__(self, path: Path, max_batch_rows: int = 64) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `python -m export convert` first")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        self._max_batch_rows = max_batch_rows
        self.inputs: dict[str, Any] = {i.name: i.shape for i in self._session.get_inputs()}
        self.outputs: dict[str, Any] = {o.name: o.shape for o in self._session.get_outputs()}

    def __call__(self, inputs: Tensors) -> Tensors:
        """Run all rows.

        Args:
            inputs: Arrays by name, all of the same length.

        Returns:
            Outputs by name.
        """
        num_rows = len(next(iter(inputs.values())))
        step = self._max_batch_rows
        batches = [self._run(inputs, slice(i, i + step)) for i in range(0, num_rows, step)]
        return {
            name: np.concatenate([batch[index] for batch in batches])
            for index, name in enumerate(self.outputs)
        }

    def _run(self, inputs: Tensors, rows: slice) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self._session.run(
            list(self.outputs), {name: values[rows] for name, values in inputs.items()}
        )
        return outputs

    def neutral_inputs(self, prior: Prior, num_images: int, num_classes: int = 0) -> Tensors:
        """Return what a generate graph takes for plain samples of seed 0, indices from 0 on.

        The temperature is 1, no pixel is known, and the classes take turns.

        Args:
            prior: Of the noise.
            num_images: Number of rows.
            num_classes: Of a class-conditional model.
        """
        indices = np.arange(num_images, dtype=np.uint64)
        inputs = {
            name: np.zeros((num_images, *shape[1:]), dtype=np.float32)
            for name, shape in self.inputs.items()
        }
        inputs["noise"] = draw(prior, indices * 0, indices, self.inputs["noise"][1:])
        if "temperature" in inputs:
            inputs["temperature"] += 1
        if "label" in inputs:
            inputs["label"] = np.arange(num_images) % num_classes
        return inputs
