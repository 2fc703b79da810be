"""Measure the service: `python -m benchmarks` writes a table (and plots, with matplotlib)."""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.ceilings import pipeline_rate, pipeline_seconds, raw_rate
from benchmarks.load import Load, memory_bytes, put_load, running
from benchmarks.report import write_report
from service.manifest import Role, version_folders
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
    parser.add_argument("--autoregressive", default="nade-mnist")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("benchmarks need wrk, a load generator: install it (apt-get install wrk)")
    measured = measure(options)
    (options.output / "results.json").write_text(json.dumps(measured, indent=2) + "\n")
    write_report(measured, options.output)
    print(f"wrote {options.output}/README.md")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take the rounds; every figure is the median over them."""
    folders = {name: folder for name, _, folder in version_folders(options.store)}
    gan, autoregressive = folders[options.gan], folders[options.autoregressive]
    cores = available_cpus()
    rounds = []
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}")
        rounds.append(
            {
                "ceilings": _ceilings(gan, autoregressive, options.seconds, cores),
                "ours": _ours(options),
                "naive": _naive(gan, options.seconds, cores),
            }
        )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {cores} cores, {platform.system()}",
        "python": platform.python_version(),
        "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "gan": options.gan,
        "autoregressive": options.autoregressive,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "medians": _medians(rounds),
    }


def _ceilings(gan: Path, autoregressive: Path, seconds: float, cores: int) -> dict[str, Any]:
    short = min(seconds, 2)
    graphs: tuple[tuple[Path, Role], ...] = (
        (gan, "generate"),
        (autoregressive, "generate"),
        (autoregressive, "log_prob"),
    )
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


def _ours(options: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "PTHETA_MODEL_STORE": str(options.store),
        "PTHETA_PORT": OURS.rpartition(":")[2],
        "PTHETA_LOG_LEVEL": "warning",
        "PTHETA_DRAIN_WINDOW_S": "0",
    }
    with running(["-m", "service"], OURS, settings) as (ready_s, pid):
        return {
            "ready_s": ready_s,
            "one": _by_clients(OURS, options.gan, options.seconds),
            "many": {
                model: {str(n): _images(model, n, options.seconds) for n in IMAGES_PER_REQUEST}
                for model in (options.gan, options.autoregressive)
            },
            "npy": asdict(_post(options.gan, 64, "npy", 8, options.seconds)),
            "png": asdict(_post(options.gan, 64, "png", 8, options.seconds)),
            "memory_bytes": memory_bytes(pid),
        }


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
