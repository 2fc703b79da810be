"""Both clients behind one face, a real server process, and servers that answer by a script."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ptheta_client import AsyncClient, Client
from tests.client.loopback import Loopback, Step
from tests.service.bundles import (
    class_completer,
    class_log_prob,
    write_bundle,
    write_vae_store,
)
from tests.service.process import running

CLASSES = ("Coat", "Bag", "Boot")

Connect = Callable[..., Any]
Play = Callable[..., Loopback]


class Blocking:
    """An `AsyncClient` with the face of a `Client`, so that one test speaks of both."""

    def __init__(self, portal: BlockingPortal, client: AsyncClient) -> None:
        self._portal = portal
        self._client = client

    def __getattr__(self, name: str) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            async def call() -> Any:
                return await getattr(self._client, name)(*args, **kwargs)

            return self._portal.call(call)

        return method


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Return a function that makes a client; arguments as of `Client`, `sleep` a plain function."""
    with ExitStack() as stack:

        def connect_sync(url: str, **options: Any) -> Any:
            return stack.enter_context(Client(url, **options))

        def connect_async(url: str, **options: Any) -> Any:
            sleep = options.pop("sleep", None)
            if sleep is not None:

                async def pause(seconds: float) -> None:
                    sleep(seconds)

                options["sleep"] = pause
            portal = stack.enter_context(start_blocking_portal())
            client = Blocking(portal, AsyncClient(url, **options))
            stack.callback(client.close)
            return client

        yield connect_sync if request.param == "sync" else connect_async


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return where a real server is: a process of its own that serves tiny models."""
    store: Path = write_vae_store(tmp_path_factory.mktemp("client-store"))
    graphs = {"generate": class_completer(len(CLASSES)), "log_prob": class_log_prob()}
    write_bundle(
        store,
        "tiny-class",
        graphs,  # type: ignore[arg-type]
        labels=CLASSES,
        prior="uniform",
        latent=False,
        ordering="raster",
    )
    with running(store, default_model="tiny-latent") as address:
        yield address


@pytest.fixture
def client(connect: Connect, url: str) -> Any:
    """Return a client of that server, once of each kind."""
    return connect(url)


@pytest.fixture
def play() -> Iterator[Play]:
    """Return a function that starts a loopback server, which answers by a script."""
    with ExitStack() as stack:

        def start(*steps: Step) -> Loopback:
            return stack.enter_context(Loopback(steps))

        yield start
