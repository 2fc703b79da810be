"""Where graphs run: ONNX Runtime's execution providers, and what suits each."""

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

import onnxruntime

from service.memory import LARGEST_ACTIVATION

logger = logging.getLogger(__name__)

DeviceName = Literal["auto", "cpu", "cuda", "tensorrt"]
Provider = tuple[str, dict[str, Any]]

_CPU: Provider = ("CPUExecutionProvider", {})


@dataclass(frozen=True)
class Device:
    """A choice of execution providers.

    Attributes:
        name: What graphs run on.
        providers: For ONNX Runtime, best first; the CPU takes what the others cannot.
        pads_batches: Whether batches are filled up to a power of two. A GPU plans its memory and
            its kernels anew for every size that it sees, so there should be few.
        max_activation_bytes: Most that a node should put out in one run; a larger batch is run in
            pieces.
    """

    name: Literal["cpu", "cuda", "tensorrt"]
    providers: tuple[Provider, ...]
    pads_batches: bool
    max_activation_bytes: int | None = None

    def batch_size(self, num_rows: int) -> int:
        """Return how many rows a run of `num_rows` gets."""
        return 1 << (num_rows - 1).bit_length() if self.pads_batches else num_rows

    def piece_rows(self, num_rows: int, row_bytes: int | None) -> int:
        """Return how many rows to run at once so that `num_rows` are done in equal pieces.

        Args:
            num_rows: Rows to run, at least one.
            row_bytes: Most that a node puts out per row, if that is known.
        """
        if self.max_activation_bytes is None or row_bytes is None:
            return num_rows
        most = max(1, self.max_activation_bytes // row_bytes)
        return math.ceil(num_rows / math.ceil(num_rows / most))


# A run of more rows is no faster once its activations fill a core's cache, but takes more memory,
# and a process keeps the most that it ever took.
CPU = Device("cpu", (_CPU,), pads_batches=False, max_activation_bytes=LARGEST_ACTIVATION)


def may_use_gpu(asked: DeviceName) -> bool:
    """Tell whether graphs may run on a GPU, without touching it."""
    providers = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
    return asked != "cpu" and bool(providers & set(onnxruntime.get_available_providers()))


def choose_device(asked: DeviceName, memory_bytes: int) -> Device:
    """Choose the best device there is; a missing GPU is told in the log, and no reason to stop.

    Args:
        asked: What the operator wants; `auto` takes CUDA where it is there.
        memory_bytes: Most that the runtime's arena may take of the GPU's memory, per graph.
    """
    available = onnxruntime.get_available_providers()
    if asked == "cpu":
        return CPU
    if asked == "auto" and "CUDAExecutionProvider" not in available:
        return CPU
    arena = {"gpu_mem_limit": memory_bytes, "arena_extend_strategy": "kSameAsRequested"}
    cuda: Provider = ("CUDAExecutionProvider", arena)
    if asked in {"auto", "cuda"}:
        wanted = Device("cuda", (cuda, _CPU), pads_batches=True)
    else:
        tensorrt = ("TensorrtExecutionProvider", {"trt_max_workspace_size": memory_bytes})
        wanted = Device("tensorrt", (tensorrt, cuda, _CPU), pads_batches=True)
    provider = wanted.providers[0][0]
    if provider in available:
        onnxruntime.preload_dlls()  # CUDA's libraries, where pip brought them
        return wanted
    logger.warning(
        "PTHETA_DEVICE is %s, but this ONNX Runtime has no %s (it has %s): running on the CPU. "
        "Install the `gpu` extra on a machine with a GPU.",
        asked,
        provider,
        ", ".join(available),
    )
    return CPU
