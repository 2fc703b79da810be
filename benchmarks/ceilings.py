"""What the machine can do without HTTP: as many single-threaded processes as cores."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from service.images import encode_picture, to_pixels
from service.manifest import Role, read_manifest
from service.noise import draw

Inputs = dict[str, Any]


def raw_rate(folder: Path, role: Role, batch_rows: int, seconds: float, cores: int) -> float:
    """Return images per second of `session.run` alone, inputs ready in memory."""
    return _on_all_cores(_raw, cores, folder, role, batch_rows, seconds)


def pipeline_rate(folder: Path, batch_rows: int, seconds: float, cores: int) -> float:
    """Return images per second of drawing noise, running and encoding each image as a PNG."""
    return _on_all_cores(_pipeline, cores, folder, batch_rows, seconds)


def pipeline_seconds(folder: Path, repeats: int = 200) -> float:
    """Return the median seconds of drawing, running and encoding one image, alone."""
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(_pipeline_latency, folder, repeats).result()


def _on_all_cores(work: Callable[..., float], cores: int, *arguments: Any) -> float:
    with ProcessPoolExecutor(cores) as pool:
        running = [pool.submit(work, *arguments) for _ in range(cores)]
        return sum(future.result() for future in running)


def _session(folder: Path, role: Role) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / f"{role}.onnx", options)


def _inputs(folder: Path, session: onnxruntime.InferenceSession, num_rows: int) -> Inputs:
    manifest = read_manifest(folder)
    indices = np.arange(num_rows, dtype=np.uint64)
    noise = draw(manifest.noise.prior, np.zeros_like(indices), indices, manifest.noise.shape)
    image = np.zeros((num_rows, *manifest.image.shape), dtype=np.float32)
    image[:, :, ::3] = 1
    known = {"known": 0 * image, "known_mask": 0 * image}
    everything = {"noise": noise, "temperature": np.ones(num_rows, np.float32), "image": image}
    named = everything | known
    return {tensor.name: named[tensor.name] for tensor in session.get_inputs()}


def _raw(folder: Path, role: Role, batch_rows: int, seconds: float) -> float:
    session = _session(folder, role)
    inputs = _inputs(folder, session, batch_rows)
    return _rate(lambda: session.run(None, inputs), batch_rows, seconds)


def _pipeline(folder: Path, batch_rows: int, seconds: float) -> float:
    return _rate(_pipeline_step(folder, batch_rows), batch_rows, seconds)


def _pipeline_latency(folder: Path, repeats: int) -> float:
    step = _pipeline_step(folder, 1)
    durations = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        durations.append(time.perf_counter() - began)
    return float(np.median(durations))


def _pipeline_step(folder: Path, batch_rows: int) -> Callable[[], Any]:
    session = _session(folder, "generate")
    inputs = _inputs(folder, session, batch_rows)
    noise = read_manifest(folder).noise
    indices = np.zeros(batch_rows, dtype=np.uint64)
    seeds = np.arange(batch_rows, dtype=np.uint64)

    def step() -> list[bytes]:
        seeds[:] += np.uint64(batch_rows)
        inputs["noise"] = draw(noise.prior, seeds, indices, noise.shape)
        (image,) = session.run(["image"], inputs)
        return [encode_picture(pixels, "png") for pixels in to_pixels(image)]

    return step


def _rate(step: Callable[[], Any], rows_per_step: int, seconds: float) -> float:
    step()
    num_steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        num_steps += 1
    return num_steps * rows_per_step / (time.perf_counter() - began)
