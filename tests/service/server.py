"""A real server on a free port of this machine, in a thread of the test."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from fastapi import FastAPI

from service.app import create_app
from service.server import Server
from service.service import Service
from service.settings import Settings

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        loop: Its event loop.
        client: Talks to it.
        address: Host and port, for raw connections.
    """

    app: FastAPI
    server: Server
    loop: asyncio.AbstractEventLoop
    client: httpx.Client
    address: tuple[str, int]

    @property
    def service(self) -> Service:
        """The state behind the routes."""
        service: Service = self.app.state.service
        return service

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self.address
        return f"http://{host}:{port}"

    @property
    def num_queued_rows(self) -> int:
        """Rows that wait, over all graphs."""
        models = self.service.catalog.models()
        graphs = [graph for model in models for graph in model.graphs.values()]
        return sum(graph.batcher.num_queued_rows for graph in graphs)

    @property
    def is_busy(self) -> bool:
        """Whether a batch has been granted and is not yet done."""
        workers = self.service.workers
        return workers._num_free < workers._num_threads

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the only worker busy; the first batch is granted and waits behind this."""
        started, release = threading.Event(), threading.Event()

        def hold() -> None:
            started.set()
            release.wait()

        future = asyncio.run_coroutine_threadsafe(self.service.workers.run(hold), self.loop)
        started.wait()
        try:
            yield
        finally:
            release.set()
            future.result()


@contextmanager
def served(settings: Settings, *, wait: bool = True) -> Iterator[Served]:
    """Run a server until the end of the block.

    Args:
        settings: What to serve, and how.
        wait: Whether to wait until the models are loaded.
    """
    app = create_app(settings)
    server = Server(app, settings)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner,
    ):
        loop = runner.get_loop()
        thread = threading.Thread(target=lambda: runner.run(server.serve([listener])))
        thread.start()
        try:
            address = listener.getsockname()
            base_url = f"http://127.0.0.1:{address[1]}"
            with httpx.Client(base_url=base_url, timeout=TIMEOUT_S, trust_env=False) as client:
                running = Served(app, server, loop, client, address)
                client.get("/livez")  # answered as soon as the server has started
                if wait:
                    wait_until_loaded(running)
                yield running
        finally:
            server.should_exit = True
            thread.join()


def wait_until_loaded(running: Served) -> None:
    """Return once the server has its models."""
    wait_until(lambda: running.service.phase != "loading")


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once something is so; the time limit of the test says when it never will be."""
    tick = threading.Event()
    while not condition():
        tick.wait(0.002)
