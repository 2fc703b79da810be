"""Measure the service: `python -m benchmarks` writes a table (and plots, with matplotlib)."""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ceilings import pipeline_rate, pipeline_seconds, raw_rate
from benchmarks.load import Load, memory_bytes, put_arrays, put_load, running
from benchmarks.report import write_report
from service.manifest import Role, read_manifest, version_folders
from service.settings import available_cpus

OURS, NAIVE = "http://127.0.0.1:8901", "http://127.0.0.1:8902"
CLIENTS = (1, 16, 64, 256)
IMAGES_PER_REQUEST = (1, 16, 64)
BATCHES = (1, 4, 16, 64)


def main() -> None:
    """Run everything, interleaved, and write what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    parser.add_argument("--gan", default="dcgan-fashion")
    parser.add_argument("--vae", default="vae-mnist")
    parser.add_argument("--autoregressive", default="nade-mnist")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("benchmarks need wrk, a load generator: install it (apt-get install wrk)")
    options.output.mkdir(parents=True, exist_ok=True)
    for measured in measure(options):  # written after every round: a run cut short loses one
        (options.output / "results.json").write_text(json.dumps(measured, indent=2) + "\n")
        write_report(measured, options.output)
    print(f"wrote {options.output}/README.md")


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Take the rounds, and tell the medians of those taken so far after each of them."""
    folders = {name: folder for name, _, folder in version_folders(options.store)}
    named = (options.gan, options.vae, options.autoregressive)
    models = [name for name in named if name in folders]
    gan, autoregressive = folders[options.gan], folders[options.autoregressive]
    graphs: list[tuple[Path, Role]] = [(folders[name], "generate") for name in models]
    graphs.append((autoregressive, "log_prob"))
    cores = available_cpus()
    rounds = []
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", flush=True)
        rounds.append(
            {
                "ceilings": _ceilings(gan, graphs, options.seconds, cores),
                "ours": _ours(options, models),
                "processes": {
                    str(count): _with_processes(options, count) for count in range(1, cores + 1)
                },
                "naive": _naive(gan, options.seconds, cores),
            }
        )
        yield {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {cores} cores, {platform.system()}",
            "python": platform.python_version(),
            "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
            "gan": options.gan,
            "autoregressive": options.autoregressive,
            "rounds": len(rounds),
            "seconds": options.seconds,
            "medians": _medians(rounds),
        }


def _ceilings(
    gan: Path, graphs: list[tuple[Path, Role]], seconds: float, cores: int
) -> dict[str, Any]:
    short = min(seconds, 2)
    return {
        "pipeline": {str(n): pipeline_rate(gan, n, short, cores) for n in BATCHES},
        "pipeline_one_core": pipeline_rate(gan, 64, short, 1),
        "pipeline_alone_s": pipeline_seconds(gan),
        "raw": {
            f"{folder.parent.name}.{role}": {
                str(n): raw_rate(folder, role, n, short, cores) for n in BATCHES
            }
            for folder, role in graphs
        },
    }


def _ours(options: argparse.Namespace, models: list[str]) -> dict[str, Any]:
    with running(["-m", "service"], OURS, _settings(options)) as (ready_s, pid):
        measured = {
            "ready_s": ready_s,
            "idle_bytes": memory_bytes(pid),
            "one": _by_clients(OURS, options.gan, options.seconds),
            "many": {
                model: {str(n): _images(model, n, options.seconds) for n in IMAGES_PER_REQUEST}
                for model in models
            },
            "npy": asdict(_post(options.gan, 64, "npy", 8, options.seconds)),
            "png": asdict(_post(options.gan, 64, "png", 8, options.seconds)),
        }
        measured["memory_bytes"] = memory_bytes(pid)
        scored = {
            str(count): _scored(options, count, clients)
            for count, clients in ((1, 64), (100, 8), (1000, 4))
        }
        return measured | {"scored": scored, "scoring_bytes": memory_bytes(pid)}


def _with_processes(options: argparse.Namespace, count: int) -> dict[str, Any]:
    settings = _settings(options) | {"PTHETA_PROCESSES": str(count), "PTHETA_NUM_THREADS": "1"}
    with running(["-m", "service"], OURS, settings):
        _post(options.gan, 1, "png", 16, 1)
        return asdict(_post(options.gan, 1, "png", 64, options.seconds))


def _settings(options: argparse.Namespace) -> dict[str, str]:
    return {
        "PTHETA_MODEL_STORE": str(options.store),
        "PTHETA_PORT": OURS.rpartition(":")[2],
        "PTHETA_LOG_LEVEL": "warning",
        "PTHETA_DRAIN_WINDOW_S": "0",
    }


def _scored(options: argparse.Namespace, num_images: int, clients: int) -> float:
    manifest = read_manifest(max((options.store / options.autoregressive).glob("[0-9]*")))
    shape = (num_images, *manifest.image.shape[1:])
    images = np.random.default_rng(0).integers(0, 2, shape, np.uint8) * np.uint8(255)
    url = f"{OURS}/log_prob?model={options.autoregressive}&format=npy"
    return num_images * put_arrays(url, images, clients, options.seconds).rate


def _naive(gan: Path, seconds: float, cores: int) -> dict[str, Any]:
    port = NAIVE.rpartition(":")[2]
    command = ["-m", "uvicorn", "benchmarks.naive:app", "--port", port, "--no-access-log"]
    command += ["--workers", str(cores), "--log-level", "warning"]
    settings = {"BENCHMARK_BUNDLE": str(gan), "OMP_NUM_THREADS": "1"}
    with running(command, NAIVE, {**os.environ, **settings}):
        return {"one": _by_clients(NAIVE, None, seconds)}


def _by_clients(base: str, model: str | None, seconds: float) -> dict[str, Any]:
    body = '{"seed": %d}'
    if model is not None:
        body = f'{{"model": "{model}", "seed": %d, "format": "png"}}'
    put_load(f"{base}/sample", body, 16, 1)
    return {
        str(clients): asdict(put_load(f"{base}/sample", body, clients, seconds))
        for clients in CLIENTS
    }


def _images(model: str, num_images: int, seconds: float) -> float:
    return num_images * _post(model, num_images, "npy", 8, seconds).rate


def _post(model: str, num_images: int, answer: str, clients: int, seconds: float) -> Load:
    body = f'{{"model": "{model}", "n": {num_images}, "seed": %d, "format": "{answer}"}}'
    return put_load(f"{OURS}/sample", body, clients, seconds)


def _medians(rounds: list[Any]) -> Any:
    first = rounds[0]
    if isinstance(first, dict):
        return {name: _medians([one[name] for one in rounds]) for name in first}
    return statistics.median(rounds)


if __name__ == "__main__":
    main()
