"""The server as a process of its own, as an operator runs it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.service.server import wait_until

REPOSITORY = Path(__file__).parents[2]


class Process:
    """A running `python -m service`.

    Attributes:
        log: Lines of its log, so far.
        told: What it has printed, once it has ended.

    Args:
        store: The models.
        settings: Further settings of the server.
    """

    def __init__(self, store: Path, **settings: object) -> None:
        named = {"model_store": store, "port": 0, "processes": 1, "num_threads": 1} | settings
        variables = {f"PTHETA_{name.upper()}": str(value) for name, value in named.items()}
        # Without the developer's own settings.
        others = {name: os.environ[name] for name in os.environ if not name.startswith("PTHETA_")}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=REPOSITORY,
            env=others | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.store = store
        self.log: list[str] = []
        self.told = ""
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

    def kill(self) -> None:
        """End it, unless it has ended."""
        if self.popen.returncode is None:
            self.popen.kill()
            self.wait()

    def wait(self) -> int:
        """Wait for its end and return its status."""
        status = self.popen.wait(timeout=30)
        self._reader.join()
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.told = self.popen.stdout.read()
        self.popen.stdout.close()
        self.popen.stderr.close()
        return status

    def children(self) -> list[int]:
        """Return the ids of its child processes."""
        path = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@contextmanager
def running(store: Path, **settings: object) -> Iterator[str]:
    """Run a server until the end of the block, and return its address once it is ready."""
    process = Process(store, drain_window_s=0, **settings)
    try:
        with process.ready_client() as client:
            yield str(client.base_url)
    finally:
        process.popen.kill()
        process.wait()
