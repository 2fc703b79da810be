"""One ONNX Runtime session, and its batcher."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.batcher import Batcher, Rows, Stop, StoppedError
from service.device import CPU, Device
from service.images import to_pixels
from service.manifest import Manifest, Role
from service.metrics import GraphMetrics
from service.noise import draw, draw_labels, truncate
from service.workers import Workers

SEED, INDEX = "seed", "index"
"""Rows may name their noise by seed and index (both uint64) instead of carrying it."""

TRUNCATION = "truncation"
"""Rows that name their noise may pull it to the centre of the prior, (N,)."""

LABEL = "label"
"""The class of each row, int64; rows that name their noise may leave it to the seed."""

logger = logging.getLogger(__name__)

NEUTRAL_INPUTS = {"temperature": 1.0, "known": 0.0, "known_mask": 0.0}
"""What a generator gets where a call says nothing: draw at temperature 1, nothing is known."""


class Session:
    """An ONNX graph in memory, run by the calling thread.

    Args:
        path: The ONNX file.
        device: Where to run it.
        activation_bytes: Most that a node puts out, if that is known: per row, or per importance
            sample of a row.

    Raises:
        onnxruntime's own exceptions: The file is no graph that it can run.
    """

    def __init__(
        self, path: Path, device: Device = CPU, activation_bytes: int | None = None
    ) -> None:
        options = onnxruntime.SessionOptions()
        # Several runs at once beat one wide run; each stays on its thread.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # An arena of each graph's own would keep what its largest batch took, in every process.
        options.enable_cpu_mem_arena = False
        self._session = onnxruntime.InferenceSession(
            path, options, providers=list(device.providers)
        )
        self.device = device
        self._activation_bytes = activation_bytes
        used, wanted = self._session.get_providers()[0], device.providers[0][0]
        self._memory = "cpu" if used == "CPUExecutionProvider" else "cuda"
        if used != wanted:
            logger.warning("%s runs on %s: %s could not start", path, used, wanted)
        self.inputs = [tensor.name for tensor in self._session.get_inputs()]
        self.outputs = [tensor.name for tensor in self._session.get_outputs()]
        self.output_types = {
            tensor.name: (tensor.type, tuple(tensor.shape))
            for tensor in self._session.get_outputs()
        }

    def run(self, inputs: Rows, stop: Stop | None = None) -> dict[str, NDArray[Any]]:
        """Run one batch.

        Args:
            inputs: All inputs of the graph, the batch on axis 0.
            stop: Ends the run early on request.

        Returns:
            All outputs by name.

        Raises:
            StoppedError: The run was stopped.
        """
        num_rows = len(next(iter(inputs.values())))
        padding = self.device.batch_size(num_rows) - num_rows
        if padding:
            inputs = {name: _repeat_last_row(array, padding) for name, array in inputs.items()}
        options = onnxruntime.RunOptions()
        options.log_severity_level = 4  # what fails is raised; the runtime need not print it too
        if stop is not None:
            stop.on_request(lambda: setattr(options, "terminate", True))
        try:
            outputs = self._run_in_pieces(inputs, options)
        except Exception as error:
            if stop is not None and stop.requested:
                raise StoppedError from error
            raise
        if padding:
            outputs = [output[:num_rows] for output in outputs]
        return dict(zip(self.outputs, outputs, strict=True))

    def _run_in_pieces(self, inputs: Rows, options: onnxruntime.RunOptions) -> list[NDArray[Any]]:
        num_rows = len(next(iter(inputs.values())))
        row_bytes = self._activation_bytes
        if row_bytes is not None and "log_weight" in self.outputs:
            row_bytes *= inputs["noise"].shape[1]
        step = self.device.piece_rows(num_rows, row_bytes)
        if step == num_rows:
            return self._run(inputs, options)
        pieces = [
            self._run({name: array[i : i + step] for name, array in inputs.items()}, options)
            for i in range(0, num_rows, step)
        ]
        return [np.concatenate(outputs) for outputs in zip(*pieces, strict=True)]

    def _run(self, inputs: Rows, options: onnxruntime.RunOptions) -> list[NDArray[Any]]:
        if not self.device.pads_batches:
            outputs: list[NDArray[Any]] = self._session.run(None, dict(inputs), options)
            return outputs
        # On a GPU, inputs go straight from their arrays to the device, and outputs stay there
        # until all of them are computed, instead of one synchronous copy after the other.
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self.outputs:
            binding.bind_output(name, self._memory)
        self._session.run_with_iobinding(binding, options)
        copied: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return copied


class Graph:
    """A graph of a bundle that many calls share.

    Args:
        session: The graph.
        role: Which graph of the bundle it is.
        manifest: What the bundle says of itself.
        workers: Where to run.
        max_queue_rows: Most rows that wait.
        max_wait_s: How long to wait for company.
        metrics: Hears of calls, runs and results that are not finite.
    """

    def __init__(
        self,
        session: Session,
        role: Role,
        manifest: Manifest,
        workers: Workers,
        *,
        max_queue_rows: int,
        max_wait_s: float,
        metrics: GraphMetrics,
    ) -> None:
        self.session = session
        self.metrics = metrics
        self.manifest = manifest
        self.max_queue_rows = max_queue_rows
        self.batcher = Batcher(
            self.run,
            workers,
            max_batch_rows=manifest.graphs[role].max_batch_rows,
            max_queue_rows=max_queue_rows,
            max_wait_s=max_wait_s,
            observer=metrics,
        )

    def run(self, parts: Sequence[Rows], stop: Stop | None = None) -> dict[str, NDArray[Any]]:
        """Run the rows of several calls as one batch, drawing the noise of those that name seeds.

        Args:
            parts: Inputs of each call. Left out ones are neutral: temperature 1, nothing known,
                any class.
            stop: Ends the run early on request.

        Returns:
            All outputs, the rows in the order of the parts. A generator tells its `noise` and
            `label` too, and of each `image` whether it `is_finite` (N,) and its grey levels
            `pixels` as of `to_pixels`: once per batch, which is cheaper than once per call.
        """
        counts = [len(next(iter(part.values()))) for part in parts]
        inputs = {name: self._gather(name, parts, counts) for name in self.session.inputs}
        outputs = self.session.run(inputs, stop)
        if "image" in outputs:
            told = inputs.keys() & {"noise", LABEL}
            outputs |= {name: inputs[name] for name in told}
            images = outputs["image"]
            outputs["is_finite"] = np.isfinite(images).all(axis=(1, 2, 3))
            outputs["pixels"] = to_pixels(images)
        return outputs

    def _gather(self, name: str, parts: Sequence[Rows], counts: Sequence[int]) -> NDArray[Any]:
        if name == "noise" and any(SEED in part for part in parts):
            return self._draw_noise(parts)
        if all(name in part for part in parts):
            return as_numbers(np.ascontiguousarray(_joined(name, parts)))
        if name == LABEL:
            return self._draw_labels(parts)
        neutral = NEUTRAL_INPUTS[name]
        shape = () if name == "temperature" else self.manifest.image.shape
        gathered = np.full((sum(counts), *shape), neutral, dtype=np.float32)
        start = 0
        for part, count in zip(parts, counts, strict=True):
            if name in part:
                gathered[start : start + count] = part[name]
            start += count
        return gathered

    def _draw_noise(self, parts: Sequence[Rows]) -> NDArray[np.float32]:
        noise = self.manifest.noise
        named = [part for part in parts if SEED in part]
        drawn = draw(noise.prior, _joined(SEED, named), _joined(INDEX, named), noise.shape)
        if len(named) == len(parts) and not any(TRUNCATION in part for part in parts):
            return drawn
        pieces, start = [], 0
        for part in parts:
            if SEED not in part:
                pieces.append(part["noise"])
                continue
            piece = drawn[start : start + len(part[SEED])]
            start += len(piece)
            if TRUNCATION in part:
                piece = truncate(piece, part[TRUNCATION], noise.prior)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _draw_labels(self, parts: Sequence[Rows]) -> NDArray[np.int64]:
        open_parts = [part for part in parts if LABEL not in part]
        seeds, indices = _joined(SEED, open_parts), _joined(INDEX, open_parts)
        drawn = iter(draw_labels(seeds, indices, len(self.manifest.labels)))
        pieces = [
            part[LABEL] if LABEL in part else np.fromiter(drawn, np.int64, len(part[SEED]))
            for part in parts
        ]
        return np.concatenate(pieces)


def as_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Turn pixels of a byte each, false or true, into what graphs take; others are that already."""
    return values.astype(np.float32) if values.dtype == np.bool_ else values


def _joined(name: str, parts: Sequence[Rows]) -> NDArray[Any]:
    rows = [part[name] for part in parts]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _repeat_last_row(array: NDArray[Any], times: int) -> NDArray[Any]:
    return np.concatenate([array, np.repeat(array[-1:], times, axis=0)])
