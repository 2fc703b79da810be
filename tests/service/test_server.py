"""The process: it starts or says why not, drains on SIGTERM, and ends with status 0."""

import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.server import Server
from service.settings import Settings
from tests.service.answers import answer, problem
from tests.service.bundles import slow_generator, write_bundle
from tests.service.conftest import Start
from tests.service.process import REPOSITORY
from tests.service.server import wait_until

pytestmark = pytest.mark.timeout(60)


ONE_AND_SEVERAL = pytest.mark.parametrize("processes", [1, 3])


@ONE_AND_SEVERAL
def test_it_says_where_to_click_and_ends_quietly(start: Start, processes: int) -> None:
    process = start(processes=processes, drain_window_s=0)
    with process.ready_client() as client:
        assert answer(client.post("/sample"))["images"]
    process.terminate()
    assert process.wait() == 0
    told = process.told
    assert "Traceback" not in "".join(process.log)
    address = str(client.base_url).rstrip("/")  # also where the port was left open
    assert told.startswith(f"ptheta serves {process.store} at {address}\n")
    assert f"{address}/docs " in told
    assert f"{address}/models " in told


def test_its_workers_know_whether_there_is_a_single_connection() -> None:
    settings = Settings()
    app = create_app(settings)
    server = Server(app, settings)
    for is_sole in (False, True, False):
        assert app.state.service.workers.is_sole_client() == is_sole
        server.server_state.connections.add(object())  # type: ignore[arg-type]


@ONE_AND_SEVERAL
def test_it_drains_before_it_stops(start: Start, processes: int) -> None:
    """Not ready at once, still serving for the drain window, then gone with status 0."""
    process = start(processes=processes, drain_window_s=1.5)
    with process.ready_client() as client:
        process.terminate()
        wait_until(lambda: client.get("/readyz").status_code == 503)
        response = client.post("/sample")
        assert answer(response)["images"]
        assert response.headers["connection"] == "close"
    assert process.wait() == 0


@ONE_AND_SEVERAL
def test_no_request_is_lost(start: Start, processes: int) -> None:
    """A connection that is made gets its answer; later ones are refused."""
    process = start(processes=processes, drain_window_s=0.5)
    with process.ready_client():
        pass
    statuses: list[int] = []
    under_way = threading.Event()

    def ask() -> None:
        with process.client() as client:
            while True:
                try:
                    statuses.append(client.post("/sample", json={"n": 20}).status_code)
                except httpx.ConnectError:
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
    assert set(statuses) == {200}


@ONE_AND_SEVERAL
def test_it_can_be_ended_before_it_is_ready(start: Start, processes: int) -> None:
    process = start(processes=processes, drain_window_s=0)
    process.client().close()
    process.terminate()
    assert process.wait() == 0


@ONE_AND_SEVERAL
def test_a_second_interrupt_ends_it_at_once(start: Start, processes: int) -> None:
    process = start(processes=processes, drain_window_s=3600)
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
        ({"max_rows": 9, "max_queue_rows": 8}, "PTHETA_MAX_QUEUE_ROWS must be at least "),
    ],
)
def test_a_setting_that_cannot_work_is_told_in_one_line(
    start: Start, settings: dict[str, object], line: str
) -> None:
    process = start(**settings)
    assert process.wait() == 2
    (told,) = process.log
    assert told.startswith(line)


@ONE_AND_SEVERAL
def test_a_port_in_use_ends_it_with_a_reason(start: Start, processes: int) -> None:
    first = start(processes=3, drain_window_s=0)
    with first.ready_client() as client:
        second = start(processes=processes, port=client.base_url.port)
        assert second.wait() != 0
        assert "address already in use" in "".join(second.log).lower()
        assert "Traceback" not in "".join(second.log)
        assert second.told == ""  # nothing that is not so
        assert answer(client.get("/livez"))


def test_it_runs_without_torch(start: Start, tmp_path: Path) -> None:
    code = "import sys, service.app, service.server; print(sorted(sys.modules))"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    modules = {name.split(".")[0] for name in re.findall(r"'([\w.]+)'", printed)}
    assert "fastapi" in modules
    assert not modules & {"torch", "lightning", "onnx", "export", "scipy"}


@ONE_AND_SEVERAL
def test_what_takes_too_long_is_given_up_with_an_answer(
    start: Start, tmp_path: Path, processes: int
) -> None:
    write_bundle(tmp_path, "slow", {"generate": slow_generator()}, prior="uniform")
    process = start(tmp_path, processes=processes, drain_window_s=0, drain_timeout_s=0.5)
    with process.ready_client() as client, ThreadPoolExecutor() as clients:
        for_ever = {"latents": [[1e6, 0, 0]], "timeout_ms": 300_000}
        running = clients.submit(client.post, "/sample", json=for_ever)
        begun = re.compile(r"ptheta_queue_seconds_count\{.*\} 1\.0")
        wait_until(lambda: begun.search(client.get("/metrics").text) is not None)
        process.terminate()
        problem(running.result(), "draining", 503)
    assert process.wait() == 0
