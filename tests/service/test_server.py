"""The process: it starts or says why not, drains on SIGTERM, and ends with status 0."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.answers import answer, problem
from tests.service.bundles import slow_generator, write_bundle
from tests.service.server import wait_until

pytestmark = pytest.mark.timeout(60)

REPOSITORY = Path(__file__).parents[2]


class Process:
    """A running `python -m service`."""

    def __init__(self, store: Path, **settings: object) -> None:
        named = {"model_store": store, "port": 0, "num_threads": 1} | settings
        variables = {f"PTHETA_{name.upper()}": str(value) for name, value in named.items()}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=REPOSITORY,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._address = threading.Event()
        self._port = 0
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def _read_log(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.log.append(line)
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", line)
            if found:
                self._port = int(found[1])
                self._address.set()
        self._address.set()

    def client(self) -> httpx.Client:
        """Return a client, as soon as the server listens."""
        self._address.wait()
        base_url = f"http://127.0.0.1:{self._port}"
        return httpx.Client(base_url=base_url, timeout=30, trust_env=False)

    @contextmanager
    def ready_client(self) -> Iterator[httpx.Client]:
        """Return a client, as soon as the server is ready."""
        with self.client() as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            yield client

    def terminate(self) -> None:
        """Ask it to end."""
        self.popen.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end and return its status."""
        status = self.popen.wait(timeout=30)
        self._reader.join()
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.popen.stdout.close()
        self.popen.stderr.close()
        return status


Start = Callable[..., Process]


@pytest.fixture
def start(tiny_store: Path) -> Iterator[Start]:
    """Return a function that starts a server; what a test leaves running is killed."""
    started: list[Process] = []

    def start(store: Path = tiny_store, **settings: object) -> Process:
        started.append(Process(store, **settings))
        return started[-1]

    yield start
    for process in started:
        if process.popen.returncode is None:
            process.popen.kill()
            process.wait()


def test_it_says_where_to_click_and_ends_quietly(start: Start) -> None:
    process = start(drain_window_s=0)
    with process.ready_client() as client:
        assert answer(client.post("/sample"))["images"]
    process.terminate()
    assert process.popen.stdout is not None
    told = process.popen.stdout.read()
    assert "/docs" in told
    assert "/models" in told
    assert process.wait() == 0
    assert "Traceback" not in "".join(process.log)


def test_it_drains_before_it_stops(start: Start) -> None:
    """Not ready at once, still serving for the drain window, then gone with status 0."""
    process = start(drain_window_s=1.5)
    with process.ready_client() as client:
        process.terminate()
        wait_until(lambda: client.get("/readyz").status_code == 503)
        response = client.post("/sample")
        assert answer(response)["images"]
        assert response.headers["connection"] == "close"
    assert process.wait() == 0


def test_no_request_that_was_taken_is_lost(start: Start) -> None:
    """What the server has read it answers; a connection that it never took may be reset."""
    process = start(drain_window_s=0.5)
    with process.ready_client():
        pass
    statuses: list[int] = []
    under_way = threading.Event()

    def ask() -> None:
        with process.client() as client:
            while True:
                try:
                    statuses.append(client.post("/sample", json={"n": 20}).status_code)
                except httpx.NetworkError:
                    return
                under_way.set()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    under_way.wait()
    process.terminate()
    for thread in threads:
        thread.join()
    assert process.wait() == 0
    taken = [line for line in process.log if '"path":"/sample"' in line]
    assert len(taken) == len(statuses)
    assert set(statuses) == {200}


def test_it_can_be_ended_before_it_is_ready(start: Start) -> None:
    process = start(drain_window_s=0)
    process.client().close()
    process.terminate()
    assert process.wait() == 0


def test_a_second_interrupt_ends_it_at_once(start: Start) -> None:
    process = start(drain_window_s=3600)
    with process.ready_client() as client:
        process.popen.send_signal(signal.SIGINT)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        process.popen.send_signal(signal.SIGINT)
        process.wait()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"port": "http"}, "PTHETA_PORT: "),
        ({"max_rows": 0}, "PTHETA_MAX_ROWS: "),
        ({"log_level": "loud"}, "PTHETA_LOG_LEVEL: "),
        ({"max_rows": 9, "max_queue_rows": 8}, "PTHETA_MAX_QUEUE_ROWS: "),
    ],
)
def test_a_setting_that_cannot_work_is_told_in_one_line(
    start: Start, settings: dict[str, object], line: str
) -> None:
    process = start(**settings)
    assert process.wait() == 2
    (told,) = process.log
    assert told.startswith(line)


def test_a_port_in_use_ends_it_with_a_reason(start: Start) -> None:
    first = start(drain_window_s=0)
    with first.ready_client() as client:
        second = start(port=client.base_url.port)
        assert second.wait() != 0
        assert "address already in use" in "".join(second.log)
        assert "Traceback" not in "".join(second.log)
        assert answer(client.get("/livez"))


def test_it_runs_without_torch(start: Start, tmp_path: Path) -> None:
    code = "import sys, service.app, service.server; print(sorted(sys.modules))"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    modules = {name.split(".")[0] for name in re.findall(r"'([\w.]+)'", printed)}
    assert "fastapi" in modules
    assert not modules & {"torch", "lightning", "onnx", "export", "scipy"}


def test_what_takes_too_long_is_given_up_with_an_answer(start: Start, tmp_path: Path) -> None:
    write_bundle(tmp_path, "slow", {"generate": slow_generator()}, prior="uniform")
    process = start(tmp_path, drain_window_s=0, drain_timeout_s=0.5)
    with process.ready_client() as client, ThreadPoolExecutor() as clients:
        for_ever = {"latents": [[1e6, 0, 0]], "timeout_ms": 300_000}
        running = clients.submit(client.post, "/sample", json=for_ever)
        begun = re.compile(r"ptheta_queue_seconds_count\{.*\} 1\.0")
        wait_until(lambda: begun.search(client.get("/metrics").text) is not None)
        process.terminate()
        problem(running.result(), "draining", 503)
    assert process.wait() == 0
