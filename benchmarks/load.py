"""Closed-loop load by wrk, and the servers that it is put on."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# With a report that can be parsed.
_SCRIPT = """
local count = 0
wrk.method = "POST"
%REQUEST%
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"rate": %f, "p50": %f, "p99": %f, "errors": %d}\\n',
    summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


_FRESH_SEED = """
wrk.headers["Content-Type"] = "application/json"
request = function()
  count = count + 1
  return wrk.format(nil, nil, nil, string.format(%BODY%, count))
end
"""
_SAME_FILE = """
wrk.headers["Content-Type"] = "application/x-npy"
wrk.body = io.open(%PATH%, "rb"):read("*a")
"""


@dataclass(frozen=True)
class Load:
    """What a closed loop of clients measured.

    Attributes:
        rate: Answers per second.
        p50: Median seconds per answer.
        p99: Seconds that one answer of a hundred exceeds.
        errors: Answers that were no success, and broken connections.
    """

    rate: float
    p50: float
    p99: float
    errors: int


def put_load(url: str, body: str, clients: int, seconds: float) -> Load:
    """Let clients ask one after the other for some seconds.

    Args:
        url: Where to POST, on this machine.
        body: JSON in which `%d` stands for a fresh seed.
        clients: Connections that are kept alive.
        seconds: Duration; wrk takes whole ones.
    """
    return _wrk(url, _FRESH_SEED.replace("%BODY%", json.dumps(body)), clients, seconds)


def put_arrays(url: str, images: NDArray[np.uint8], clients: int, seconds: float) -> Load:
    """Let clients send the same images again and again, as npy.

    Args:
        url: Where to POST, on this machine.
        images: Shape (N, H, W).
        clients: Connections that are kept alive.
        seconds: Duration; wrk takes whole ones.
    """
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, images)
        file.flush()
        script = _SAME_FILE.replace("%PATH%", json.dumps(file.name))
        return _wrk(url, script, clients, seconds)


def _wrk(url: str, request: str, clients: int, seconds: float) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT.replace("%REQUEST%", request))
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{round(seconds)}s", "-s", script.name]
        answer = subprocess.run([*command, url], capture_output=True, text=True, check=True)
    return Load(**json.loads(answer.stdout.strip().splitlines()[-1]))


@contextmanager
def running(
    command: list[str], base: str, settings: Mapping[str, str]
) -> Iterator[tuple[float, int]]:
    """Run a server as long as the block lasts; yields the seconds until it was ready, its id."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_ready(process, f"{base}/readyz")
        yield time.monotonic() - began, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def memory_bytes(pid: int) -> int:
    """Return the proportional set size of a process and of all its descendants."""
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
        children = (folder / f"task/{pid}/children").read_text().split()
    except OSError:  # the process has ended meanwhile
        return 0
    own = sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return own + sum(memory_bytes(int(child)) for child in children)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError as error:
            if process.poll() is not None:
                raise RuntimeError("the server ended before it was ready") from error
            time.sleep(0.01)
    raise TimeoutError(f"{url} was not ready after 30 s")
