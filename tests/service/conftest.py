"""The stores and servers that several tests share."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.manifest import version_folders
from service.settings import Settings
from tests.service.bundles import write_store
from tests.service.process import Process
from tests.service.server import Served, served

SHIPPED_STORE = Path(
    os.environ.get("PTHETA_MODEL_STORE", Path(__file__).parents[2] / "model_store")
).resolve()

Serve = Callable[..., AbstractContextManager[Served]]
Start = Callable[..., Process]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's own settings out of the tests."""
    for name in list(os.environ):
        if name.startswith("PTHETA_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with one model of every kind."""
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def serve(tiny_store: Path) -> Serve:
    """Return a function that serves the tiny store, or what its arguments say."""

    def start(*, wait: bool = True, **settings: Any) -> AbstractContextManager[Served]:
        # Tests hold runs back, which only a thread can bear: nothing runs on the event loop.
        defaults = {"model_store": tiny_store, "processes": 1, "num_threads": 1, "quick_s": 0}
        chosen: dict[str, Any] = defaults | settings
        return served(Settings(**chosen), wait=wait)

    return start


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Served]:
    """Return a server of the tiny store; tests leave it as they find it."""
    with serve() as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Served) -> httpx.Client:
    """Return a client of the tiny store's server."""
    return server.client


@pytest.fixture(scope="session")
def shipped(serve: Serve) -> Iterator[Served]:
    """Return a server of the repository's own models."""
    if not version_folders(SHIPPED_STORE):
        pytest.skip("the repository's model_store is empty")
    with serve(model_store=SHIPPED_STORE, processes=1, num_threads=2, quick_s=0.01) as running:
        yield running


@pytest.fixture
def start(tiny_store: Path) -> Iterator[Start]:
    """Return a function that starts a server; what a test leaves running is killed."""
    started: list[Process] = []

    def start(store: Path = tiny_store, **settings: object) -> Process:
        started.append(Process(store, **settings))
        return started[-1]

    yield start
    for process in started:
        process.kill()
