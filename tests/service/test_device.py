"""A device is chosen by what is there; a missing GPU is told of and no reason to stop."""

import logging

import onnxruntime
import pytest

from service.device import CPU, DeviceName, choose_device
from service.memory import LARGEST_ACTIVATION

GPU_PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the runtime claim a GPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_PROVIDERS)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the runtime claim the CPU alone."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_PROVIDERS[-1:])


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("asked", "name"),
    [("auto", "cuda"), ("cuda", "cuda"), ("tensorrt", "tensorrt"), ("cpu", "cpu")],
)
def test_with_a_gpu_the_wish_is_granted(asked: DeviceName, name: str) -> None:
    device = choose_device(asked, memory_bytes=10**9)
    assert device.name == name
    assert device.providers[-1] == ("CPUExecutionProvider", {})
    if name == "cuda":
        assert device.providers[0][1]["gpu_mem_limit"] == 10**9


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_without_a_gpu_the_cpu_is_taken_silently(
    asked: DeviceName, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_device(asked, memory_bytes=1) is CPU
    assert not caplog.records


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("asked", ["cuda", "tensorrt"])
def test_without_the_gpu_that_was_asked_for_the_log_says_so(
    asked: DeviceName, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert choose_device(asked, memory_bytes=1) is CPU
    assert f"PTHETA_DEVICE is {asked}" in caplog.text


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("num_rows", "padded"), [(1, 1), (2, 2), (3, 4), (5, 8), (63, 64), (64, 64)]
)
def test_a_gpu_sees_few_batch_sizes_and_the_cpu_sees_the_true_one(
    num_rows: int, padded: int
) -> None:
    assert choose_device("cuda", memory_bytes=1).batch_size(num_rows) == padded
    assert CPU.batch_size(num_rows) == num_rows


@pytest.mark.parametrize(
    ("num_rows", "row_bytes", "step"),
    [
        (64, None, 64),  # nobody has measured it
        (64, LARGEST_ACTIVATION // 64, 64),
        (64, LARGEST_ACTIVATION // 63, 32),  # not 63 and a single one
        (64, LARGEST_ACTIVATION // 20, 16),
        (5, LARGEST_ACTIVATION // 2, 2),
        (3, 2 * LARGEST_ACTIVATION, 1),  # even one is too many
    ],
)
def test_a_cpu_runs_in_pieces_what_would_not_fit_its_cache(
    num_rows: int, row_bytes: int | None, step: int
) -> None:
    assert CPU.piece_rows(num_rows, row_bytes) == step


@pytest.mark.usefixtures("gpu")
def test_a_gpu_runs_a_batch_whole() -> None:
    assert choose_device("cuda", memory_bytes=1).piece_rows(64, 10**9) == 64
