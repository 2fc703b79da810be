"""Several processes behind one port: for a client they are one server."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.service.answers import answer, problem
from tests.service.bundles import write_store
from tests.service.conftest import Start
from tests.service.process import REPOSITORY, Process
from tests.service.server import wait_until

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(
        sys.platform != "linux", reason="elsewhere the kernel does not spread connections"
    ),
]


@pytest.fixture
def trio(start: Start) -> Process:
    """Return a ready server of three processes."""
    process = start(processes=3, drain_window_s=0)
    with process.ready_client():
        return process


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal waits for a process to run."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    pending = re.search(r"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)
    assert pending is not None
    return bool(int(pending[1], 16) >> (number - 1) & 1)


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids)))  # none of them takes a connection any more


def total(process: Process, pattern: str) -> float:
    with process.client() as client:
        found = re.findall(rf"^{pattern} ([0-9.]+)$", client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def test_connections_are_spread_and_the_same_seed_gives_the_same_bytes(trio: Process) -> None:
    pictures = set()
    for _ in range(60):
        with trio.client() as client:
            pictures.add(client.get("/sample?model=tiny-latent@2&seed=7&n=3").content)
    assert len(pictures) == 1
    trio.terminate()
    assert trio.wait() == 0
    answered = {line.split()[3] for line in trio.log if '"path":"/sample"' in line}
    assert len(answered) == 3


def test_whichever_process_is_asked_its_metrics_are_those_of_all(trio: Process) -> None:
    for _ in range(20):
        with trio.client() as client:
            assert client.post("/sample", json={"n": 5}).status_code == 200
    name = r'ptheta_requests_total\{method="POST",route="/sample",status="200"\}'
    assert total(trio, name) == 20
    assert total(trio, r"ptheta_batch_rows_sum\{.*\}") == 100
    assert total(trio, r"ptheta_queue_rows\{.*\}") == 0
    assert total(trio, r"ptheta_ready") == 1


def test_the_queue_rows_of_all_processes_add_up(start: Start, tmp_path: Path) -> None:
    """One process sleeps; its queue is seen by its siblings all the same."""
    process = start(processes=2, num_threads=1, quick_s=0)
    with process.ready_client():
        pass
    body = {"model": "tiny-latent", "n": 1000, "timeout_ms": 300_000, "format": "npy"}

    def ask() -> int:
        with process.client() as client:
            return client.post("/sample", json=body).status_code

    with ThreadPoolExecutor(12) as clients:
        asked = [clients.submit(ask) for _ in range(12)]
        wait_until(
            lambda: (
                total(process, r"ptheta_queue_rows\{.*\}") > 0 or all(one.done() for one in asked)
            )
        )
        assert {one.result() for one in asked} <= {200, 503}
    wait_until(lambda: total(process, r"ptheta_queue_rows\{.*\}") == 0)


def test_a_process_that_dies_is_replaced_and_connections_wait_for_it(trio: Process) -> None:
    before = trio.children()
    kill(before[:1])
    for _ in range(12):
        with trio.client() as client:
            assert answer(client.post("/sample"))["images"]
    wait_until(lambda: len(trio.children()) == 3 and before[0] not in trio.children())
    with trio.ready_client() as client:
        assert client.get("/readyz").status_code == 200
    trio.terminate()
    assert trio.wait() == 0
    assert any("another takes its place" in line for line in trio.log)


def test_what_a_dead_process_has_counted_stays_counted(trio: Process) -> None:
    name = r'ptheta_requests_total\{method="POST",route="/sample",status="200"\}'
    for _ in range(12):
        with trio.client() as client:
            client.post("/sample")
    kill(trio.children())
    with trio.ready_client():
        assert total(trio, name) == 12


def test_without_the_parent_the_processes_end_too(trio: Process) -> None:
    children = trio.children()
    assert len(children) == 3
    trio.popen.kill()
    assert trio.wait() == -signal.SIGKILL
    wait_until(lambda: not any(map(is_alive, children)))


EARLY_SIGNAL = """
import os, signal
from service.supervisor import Crew

told, tell = os.pipe()

def work():
    os.read(told, 1)  # only once the signal is there
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return 1

crew = Crew(None, None, [], os.pipe())
child = crew.fork(work)
os.kill(child, signal.SIGTERM)
os.write(tell, b".")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_signal_before_the_server_has_handlers_waits_for_them() -> None:
    # Ended at once, a process would leave those in the queue of its listener without an answer.
    command = [sys.executable, "-c", EARLY_SIGNAL]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "7", done.stderr


def test_a_second_interrupt_reaches_a_process_that_had_no_time_for_the_first(
    start: Start,
) -> None:
    process = start(processes=3, drain_window_s=3600)
    with process.ready_client():
        late, *others = process.children()
    os.kill(late, signal.SIGSTOP)
    wait_until(lambda: " T " in Path(f"/proc/{late}/stat").read_text(encoding="ascii"))
    process.popen.send_signal(signal.SIGINT)
    wait_until(lambda: is_pending(late, signal.SIGINT))
    process.popen.send_signal(signal.SIGINT)
    wait_until(lambda: not any(map(is_alive, others)))
    os.kill(late, signal.SIGCONT)
    process.wait()


def test_until_the_models_are_loaded_it_says_so(start: Start, tmp_path: Path) -> None:
    write_store(tmp_path)
    blocked = tmp_path / "blocked/1/model.json"
    blocked.parent.mkdir(parents=True)
    os.mkfifo(blocked)
    process = start(tmp_path, processes=2, require_all_models=False)
    with process.client() as client:
        assert answer(client.get("/livez"))["status"] == "alive"
        assert client.get("/readyz").json()["reason"] == "the models are being loaded"
        refused = client.post("/sample")
        problem(refused, "model-loading", 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["connection"] == "close"
        blocked.write_text("{}")
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert answer(client.post("/sample"))["images"]
    process.terminate()
    assert process.wait() == 0


def test_it_can_be_ended_while_it_loads(start: Start, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked/1/model.json"
    blocked.parent.mkdir(parents=True)
    os.mkfifo(blocked)
    process = start(tmp_path, processes=2)
    with process.client() as client:
        client.get("/livez")
    children = process.children()
    process.terminate()
    assert process.wait() == 0
    wait_until(lambda: not any(map(is_alive, children)))


def test_a_store_that_cannot_be_read_is_told_by_every_process(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path / "nowhere", processes=2)
    with process.client() as client:
        wait_until(lambda: "cannot be read" in client.get("/readyz").text)
