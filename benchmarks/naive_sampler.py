"""Compare a shipped sampler with the best one that runs a full pass per pixel.

Both draw the same images from the same weights and the same noise, on one thread each:

    python benchmarks/naive_sampler.py model_store/nade-mnist/2

The textbook sampler needs one full pass over the image for each pixel. The pass is the bundle's own
`log_prob` graph; for NADE also torch with masked matrix products over chunks of pixels, and the
faster one counts. The images must be binary. A few passes are timed and multiplied by the number of
pixels; that both samplers agree is checked by running all passes for a few images.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from export.graph import Graph
from service.manifest import read_manifest

FloatArray = NDArray[np.float32]
# Images (N, C, H, W) -> log-odds of all pixels (N, D), each given the pixels before it.
FullPass = Callable[[FloatArray], FloatArray]

_CHUNK = 28


def onnx_pass(log_prob: Graph) -> FullPass:
    """Take the log-odds from the bundle's log_prob graph."""

    def full_pass(images: FloatArray) -> FloatArray:
        conditionals = log_prob({"image": images})["conditional_log_prob"].reshape(len(images), -1)
        values = images.reshape(len(images), -1)
        # log p(x) of the value that is there -> log p(1) - log p(0)
        other = np.log(-np.expm1(np.minimum(conditionals, -1e-12).astype(np.float64)))
        return ((2 * values - 1) * (conditionals - other)).astype(np.float32)

    return full_pass


def torch_pass(log_prob_file: Path) -> FullPass:
    """Compute all conditionals of NADE by one masked matrix product per chunk of pixels."""
    W, V, b, c = _weights(log_prob_file)
    earlier = torch.tril(torch.ones(_CHUNK, _CHUNK), diagonal=-1)

    @torch.no_grad()
    def full_pass(images: FloatArray) -> FloatArray:
        values = torch.from_numpy(images).flatten(1)
        activation = c.expand(len(values), -1)
        logits = []
        for start in range(0, values.shape[1], _CHUNK):
            rows = slice(start, start + _CHUNK)
            chunk = values[:, rows]
            size = chunk.shape[1]
            seen = chunk[:, None] * earlier[:size, :size]  # (N, chunk, chunk)
            hidden = torch.sigmoid(activation[:, None] + seen @ W[rows])  # (N, chunk, H)
            logits.append((hidden * V[rows]).sum(dim=2) + b[rows])
            activation = activation + chunk @ W[rows]
        return torch.cat(logits, dim=1).numpy()

    return full_pass


def _weights(path: Path) -> tuple[torch.Tensor, ...]:
    """Find W, V (D, H), b (D,) and c (H,) among what the scan of the scores reads."""
    graph = onnx.load(path).graph
    constants = {constant.name: constant for constant in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    scans = [node for node in graph.node if node.op_type == "Scan" and len(node.input) == 5]
    if not scans:
        raise ValueError(f"{path} is no NADE")

    def constant(name: str) -> torch.Tensor:
        while name not in constants:  # behind a change of shape
            name = producers[name].input[0]
        return torch.from_numpy(numpy_helper.to_array(constants[name]).copy()).squeeze()

    start, *slices = scans[0].input
    return (*(constant(name) for name in slices[:3]), constant(start))


def sample_naively(full_pass: FullPass, noise: FloatArray) -> FloatArray:
    """Draw images with one full pass per pixel."""
    images = np.zeros_like(noise)
    values, uniforms = images.reshape(len(noise), -1), noise.reshape(len(noise), -1)
    limits = np.log(uniforms) - np.log1p(-uniforms)
    for dim in range(values.shape[1]):
        values[:, dim] = limits[:, dim] < full_pass(images)[:, dim]
    return images


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of several runs, after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder of a published autoregressive model")
    parser.add_argument("--images", type=int, default=64, help="images drawn at once")
    parser.add_argument("--passes", type=int, default=8, help="full passes to time")
    parser.add_argument("--checked", type=int, default=2, help="images drawn both ways in full")
    options = parser.parse_args()

    torch.set_num_threads(1)
    manifest = read_manifest(options.bundle)
    if manifest.image.values != "binary" or manifest.ordering is None:
        parser.error(f"{manifest.reference} draws no binary pixels one after the other")
    generate = Graph(options.bundle / "generate.onnx", options.images)
    log_prob = Graph(options.bundle / "log_prob.onnx", options.images)
    inputs = generate.neutral_inputs("uniform", options.images)
    noise = inputs["noise"]
    images = generate(inputs)["image"]
    num_dims = noise[0].size
    passes = {"log_prob graph": onnx_pass(log_prob)}
    if manifest.family == "nade":
        passes["torch, chunks"] = torch_pass(options.bundle / "log_prob.onnx")

    shipped_s = seconds(lambda: generate(inputs), 3)
    print(f"shipped graph: {options.images} images in {shipped_s:.4f} s, one thread")
    fastest_s = float("inf")
    for name, full_pass in passes.items():
        pass_s = seconds(partial(full_pass, images), options.passes)
        fastest_s = min(fastest_s, pass_s)
        few = noise[: options.checked]
        differing = int((sample_naively(full_pass, few) != images[: options.checked]).sum())
        print(
            f"full pass, {name}: {1000 * pass_s:.2f} ms for {options.images} images; drawn in "
            f"full, {options.checked} images differ in {differing} of {few.size} pixels"
        )
    naive_s = fastest_s * num_dims
    print(
        f"a pass per pixel: {num_dims} × {1000 * fastest_s:.2f} ms = {naive_s:.2f} s "
        f"(extrapolated from {options.passes} passes), {naive_s / shipped_s:.0f} times the shipped "
        "graph"
    )


if __name__ == "__main__":
    main()
