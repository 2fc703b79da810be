"""The HTTP server: uvicorn, made to drain before it stops."""

import asyncio
import math
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.settings import Settings

# Connections that were accepted just before the listeners closed get this long to be answered.
_LAST_CALL_S = 0.2


class Server(uvicorn.Server):
    """Serves an application; the first SIGTERM or SIGINT drains it, a second SIGINT ends it.

    Draining: /readyz says so at once, requests are still taken for the drain window (answers ask
    the client to close its connection), then what is in flight is finished, and the exit status
    is 0. uvicorn alone would refuse at once, drop idle connections and die of the signal.

    Args:
        app: What to serve.
        settings: What the operator chose.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            access_log=False,  # the application logs with request ids
            proxy_headers=False,  # nobody asks for the address of a client
            log_config=None,
            # uvicorn ends requests without an answer; give_up comes first and gives one.
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + 1,
        )
        super().__init__(config)
        self._app = app
        self._drain_window_s = settings.drain_window_s
        self._drain_timeout_s = settings.drain_timeout_s
        self._drained_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; called as a signal handler."""
        if self._drained_at is None:
            self._drained_at = time.monotonic() + self._drain_window_s
            self._app.state.service.begin_drain()
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Look after the drain window, ten times a second."""
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners first, so that no accepted request is dropped."""
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        limit = loop.call_later(self._drain_timeout_s, self._app.state.service.give_up)
        await asyncio.sleep(_LAST_CALL_S)
        await super().shutdown(sockets)
        limit.cancel()
