"""What the service does when clients misbehave: `python -m benchmarks.endurance COMMAND`.

overload  three times the sustainable load for a minute, then the usual again
soak      mixed load with clients that hang up at random; watches memory, threads and files
drain     SIGTERM under load, many times: no accepted request lost, exit status 0
fairness  single GAN images while one client asks for 1,000 autoregressive images in a loop
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks.load import memory_bytes, put_load
from service.settings import Settings

BASE = "http://127.0.0.1:8903"
MAX_QUEUE_ROWS = 1024 * Settings().num_processes
WORK = {"model": "nade-mnist", "n": 16, "format": "npy"}
# A queue of two requests per process: who is let in is served soon, the others know at once.
OVERLOAD_SETTINGS = {
    "PTHETA_MAX_ROWS": "16",
    "PTHETA_MAX_QUEUE_ROWS": str(32 * Settings().num_processes),
}
MIX: tuple[dict[str, Any], ...] = (
    {"model": "dcgan-fashion", "n": 1, "format": "png"},
    {"model": "dcgan-fashion", "n": 16, "format": "npy"},
    {"model": "nade-mnist", "n": 1, "format": "json", "include": ["log_prob"]},
    {"model": "nade-mnist", "n": 200, "format": "npy"},
    {"model": "markov-mnist", "n": 30, "format": "webp"},
)


@dataclass
class Tally:
    """What clients saw: seconds of each answer by status, and failures by kind."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0
    seconds_taken: float = 0.0

    def note(self, status: int, headers: Mapping[str, str], body: bytes, seconds: float) -> None:
        """Count an answer; the names of its headers are in lower case."""
        self.seconds.setdefault(status, []).append(seconds)
        if status >= 400:
            self.refusals[json.loads(body)["type"]] += 1
        if status == 503 and "retry-after" not in headers:
            self.without_retry_after += 1

    def note_response(self, response: httpx.Response, seconds: float) -> None:
        """Count an answer that httpx has got."""
        self.note(response.status_code, response.headers, response.content, seconds)

    def line(self) -> str:
        """Say it in one line: status: count, median, p99."""
        parts = [
            f"{status}: {len(s)} p50 {1e3 * _quantile(s, 0.5):.1f} ms "
            f"p99 {1e3 * _quantile(s, 0.99):.1f} ms max {1e3 * max(s):.1f} ms"
            for status, s in sorted(self.seconds.items())
        ]
        return "; ".join(
            [*parts, f"refusals {dict(self.refusals)}, failures {dict(self.failures)}"]
        )


def main() -> None:
    """Run one command against a server of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("command", choices=["overload", "soak", "drain", "fairness"])
    parser.add_argument("--store", default="model_store")
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--times", type=int, default=50)
    options = parser.parse_args()
    random.seed(0)
    if options.command == "drain":
        asyncio.run(drain(options.store, options.times))
        return
    overloads = options.command == "overload"
    process = start_server(options.store, OVERLOAD_SETTINGS if overloads else {})
    try:
        if overloads:
            uvloop.run(overload(options.seconds or 60))
        elif options.command == "fairness":
            asyncio.run(fairness(options.seconds or 30))
        else:
            asyncio.run(soak(process.pid, options.seconds or 600))
    finally:
        process.send_signal(signal.SIGTERM)
        print("exit status", process.wait(timeout=60))


def start_server(store: str, chosen: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start the service and wait until it is ready."""
    port = BASE.rpartition(":")[2]
    settings = {
        "PTHETA_MODEL_STORE": store,
        "PTHETA_PORT": port,
        "PTHETA_LOG_LEVEL": "warning",
        "PTHETA_MAX_QUEUE_ROWS": str(MAX_QUEUE_ROWS),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        env={**os.environ, **settings, **(chosen or {})},
        stdout=subprocess.DEVNULL,
    )
    for _ in range(300):
        try:
            if httpx.get(f"{BASE}/readyz", timeout=1).status_code == 200:
                return process
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    process.kill()
    raise TimeoutError("the service was not ready after 15 s")


async def overload(seconds: float) -> None:
    """Offer three times what the service sustains, open loop; then one third of what it does."""
    async with httpx.AsyncClient(base_url=BASE, timeout=30) as client:
        connections = Connections()
        rate = await _sustainable(connections)
        print(f"sustainable: {rate:.1f} requests/s of {WORK['n']} images")
        for name, factor, duration in (
            ("normal", 0.7, 10.0),
            ("overload", 3.0, seconds),
            ("first 2 s after", 0.7, 2.0),
            ("after that", 0.7, 10.0),
        ):
            queues: list[float] = []
            watcher = asyncio.create_task(_watch_queue(client, queues))
            tally = await _open_loop(connections, factor * rate, duration)
            watcher.cancel()
            print(
                f"{name} ({factor} × for {tally.seconds_taken:.1f} s): {tally.line()}; queue at "
                f"most {max(queues, default=0):.0f} rows; refusals without Retry-After "
                f"{tally.without_retry_after}"
            )


async def fairness(seconds: float) -> None:
    """Ask for single GAN images (by wrk), alone and beside long generations."""
    body = '{"model": "dcgan-fashion", "format": "png", "seed": %d}'
    many = {"model": "nade-mnist", "n": 1000, "format": "npy"}
    for clients in (1, 16, 64):
        for beside in (False, True):
            long = Tally()
            async with httpx.AsyncClient(base_url=BASE, timeout=60) as client:
                loop = asyncio.create_task(_repeat(client, many, long)) if beside else None
                load = await asyncio.to_thread(
                    put_load, f"{BASE}/sample", body, clients, seconds / 6
                )
                if loop is not None:
                    loop.cancel()
            print(
                f"{clients} clients{' beside the loop' if beside else ''}: {load.rate:.0f} "
                f"answers/s, p50 {1e3 * load.p50:.1f} ms, p99 {1e3 * load.p99:.1f} ms, "
                f"{load.errors} errors; the loop: {long.line()}"
            )


async def soak(pid: int, seconds: float) -> None:
    """Mixed load in which a third of the clients hang up; prints how the process grows."""
    deadline = time.monotonic() + seconds
    tally = Tally()
    samples: list[tuple[float, int, int, int, int]] = []

    async def watch() -> None:
        began = time.monotonic()
        while True:
            samples.append((time.monotonic() - began, *_footprint(pid)))
            await asyncio.sleep(5)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(_careless_client(deadline, tally) for _ in range(24)))
    await asyncio.sleep(2)
    watcher.cancel()
    samples.append((samples[-1][0] + 5, *_footprint(pid)))
    settled = [s for s in samples if s[0] >= min(60, seconds / 4)]
    print(tally.line())
    for name, column in (("RSS", 1), ("PSS", 2)):
        for part, label in ((settled, "all"), (settled[len(settled) // 2 :], "second half")):
            first, last = part[0], part[-1]
            times, sizes = [s[0] for s in part], [s[column] / 1e6 for s in part]
            slope = 60 * statistics.linear_regression(times, sizes).slope
            print(
                f"{name}, {label}: {sizes[0]:.1f} → {sizes[-1]:.1f} MB, slope {slope:+.2f} MB/min "
                f"over {last[0] - first[0]:.0f} s"
            )
    print(f"threads {sorted({s[3] for s in settled})}, files: first {settled[0][4]}, ", end="")
    print(f"last {settled[-1][4]}, most {max(s[4] for s in settled)}")


async def drain(store: str, times: int) -> None:
    """Send SIGTERM under load; every request that got a connection must be answered."""
    lost, statuses, refusals, exits = 0, Counter[int](), Counter[str](), Counter[int]()
    for _ in range(times):
        process = start_server(store)
        tally = Tally()
        stop = asyncio.Event()
        clients = [asyncio.create_task(_patient_client(stop, tally)) for _ in range(16)]
        await asyncio.sleep(random.uniform(0.3, 0.8))
        process.send_signal(signal.SIGTERM)
        exits[await asyncio.to_thread(process.wait, 60)] += 1
        stop.set()
        await asyncio.gather(*clients)
        lost += sum(tally.failures.values())
        refusals += tally.refusals
        statuses.update({status: len(seconds) for status, seconds in tally.seconds.items()})
    print(
        f"{times} SIGTERMs: answers {dict(statuses)}, refusals "
        f"{dict(refusals)}, lost {lost}, exit statuses {dict(exits)}"
    )


class Connections:
    """A client that costs little: the load must not take the cores from what it is put on."""

    def __init__(self) -> None:
        self._host, _, port = BASE.rpartition("/")[2].partition(":")
        self._port = int(port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, tally: Tally, body: dict[str, Any]) -> int:
        """Ask for samples, note the answer and return its status."""
        began = time.monotonic()
        content = json.dumps(body).encode()
        try:
            reader, writer = (
                self._idle.pop()
                if self._idle
                else await asyncio.open_connection(self._host, self._port)
            )
            writer.write(
                b"POST /sample HTTP/1.1\r\nHost: loopback\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = re.search(r"(?i)\r\ncontent-length: (\d+)", head)
            answer = await reader.readexactly(int(length[1])) if length else b""
        except (OSError, EOFError) as error:
            tally.failures[type(error).__name__] += 1
            return 0
        seconds = time.monotonic() - began
        status = int(head.split(" ", 2)[1])
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        tally.note(status, headers, answer, seconds)
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return status


async def _sustainable(connections: Connections) -> float:
    deadline = time.monotonic() + 5
    count, tally = 0, Tally()

    async def ask() -> None:
        nonlocal count
        while time.monotonic() < deadline:
            status = await connections.post(tally, WORK)
            count += status == 200

    await asyncio.gather(*(ask() for _ in range(8)))
    return count / 5


async def _open_loop(connections: Connections, rate: float, seconds: float) -> Tally:
    tally = Tally()
    began = time.monotonic()
    # Only those under way: to look through all of them for garbage takes half a second.
    asking: set[asyncio.Task[int]] = set()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        task = asyncio.create_task(connections.post(tally, WORK))
        asking.add(task)
        task.add_done_callback(asking.discard)
    await asyncio.gather(*asking)
    tally.seconds_taken = time.monotonic() - began
    return tally


async def _watch_queue(client: httpx.AsyncClient, queues: list[float]) -> None:
    name = 'ptheta_queue_rows{graph="generate",model="nade-mnist@'
    while True:
        text = (await client.get("/metrics")).text
        queues += [float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)]
        await asyncio.sleep(0.2)


async def _repeat(client: httpx.AsyncClient, body: dict[str, Any], tally: Tally) -> None:
    while True:
        began = time.monotonic()
        response = await client.post("/sample", json={**body, "seed": random.getrandbits(40)})
        tally.note_response(response, time.monotonic() - began)


async def _careless_client(deadline: float, tally: Tally) -> None:
    while time.monotonic() < deadline:
        patience = random.choice((None, None, random.uniform(0.001, 0.1)))
        async with httpx.AsyncClient(base_url=BASE, timeout=30) as client:
            for _ in range(random.randint(1, 10)):
                await _timed(tally, patience, lambda: client.post("/sample", json=_any_request()))


async def _timed(
    tally: Tally, patience: float | None, ask: Callable[[], Awaitable[httpx.Response]]
) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            tally.note_response(await ask(), time.monotonic() - began)
    except TimeoutError:
        tally.failures["hung up"] += 1
    except httpx.TransportError as error:
        tally.failures[type(error).__name__] += 1


def _any_request() -> dict[str, Any]:
    return {**random.choice(MIX), "seed": random.getrandbits(40)}


async def _patient_client(stop: asyncio.Event, tally: Tally) -> None:
    async with httpx.AsyncClient(base_url=BASE, timeout=30) as client:
        while not stop.is_set():
            began = time.monotonic()
            try:
                tally.note_response(await client.post("/sample", json=_any_request()), began)
            except httpx.ConnectError:  # never accepted, so not lost
                await asyncio.sleep(0.05)
            except httpx.TransportError as error:
                tally.failures[type(error).__name__] += 1


def _footprint(pid: int) -> tuple[int, int, int, int]:
    """Return resident and proportional bytes, threads and open files of a process and its heirs."""
    resident, threads, files = _own_footprint(pid)
    return resident, memory_bytes(pid), threads, files


def _own_footprint(pid: int) -> tuple[int, int, int]:
    folder = Path(f"/proc/{pid}")
    status = (folder / "status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    own = (
        int(fields["VmRSS"].split()[0]) * 1024,
        int(fields["Threads"]),
        len(list((folder / "fd").iterdir())),
    )
    children = (folder / f"task/{pid}/children").read_text().split()
    parts = [own, *(_own_footprint(int(child)) for child in children)]
    resident, threads, files = (sum(column) for column in zip(*parts, strict=True))
    return resident, threads, files


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
