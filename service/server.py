"""The HTTP server: uvicorn, made to drain before it stops."""

import asyncio
import ctypes
import logging
import math
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.settings import Settings
from service.transport import Protocol

logger = logging.getLogger(__name__)

_TICK_S = 0.1
# Connections that are being made when no more are taken get this long to be made and to ask.
_LAST_CALL_S = 0.2
# Connections that were accepted before others took over get this long to ask.
_LAST_WORD_S = 0.05
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no name for it


class Server(uvicorn.Server):
    """Serves an application; the first SIGTERM or SIGINT drains it, a second SIGINT ends it.

    Draining: /readyz says so at once, requests are still taken for the drain window (answers ask
    the client to close its connection), then what is in flight is finished, and the exit status
    is 0. uvicorn alone would refuse at once, drop idle connections and die of the signal.

    Args:
        app: What to serve.
        settings: What the operator chose.
        closes_address: Whether nobody else listens where this server does.
        on_listening: Called with the port, once connections are taken.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        *,
        closes_address: bool = True,
        on_listening: Callable[[int], None] | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Protocol,
            server_header=False,
            # Longer than load balancers keep theirs (60 s), who else would now and then send a
            # request into a connection that is being closed.
            timeout_keep_alive=75,
            access_log=False,  # the application logs with request ids
            proxy_headers=False,  # nobody asks for the address of a client
            log_config=None,
            # uvicorn ends requests without an answer; give_up comes first and gives one.
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + 1,
        )
        super().__init__(config)
        self._closes_address = closes_address
        self._on_listening = on_listening
        self._app = app
        # A lone connection can bring no further request before its answer.
        app.state.service.workers.is_sole_client = lambda: len(self.server_state.connections) == 1
        self._drain_window_s = settings.drain_window_s
        self._drain_timeout_s = settings.drain_timeout_s
        self._drained_at: float | None = None
        self._is_told = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; called as a signal handler."""
        if self._drained_at is None:
            self._drained_at = time.monotonic() + self._drain_window_s
            self._app.state.service.begin_drain()
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self._is_told.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen; signals that the supervisor held back until now may come."""
        if hasattr(signal, "pthread_sigmask"):  # Windows has none, and no supervisor
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        await super().startup(sockets)
        if self.started and self._on_listening is not None:
            self._on_listening(self.servers[0].sockets[0].getsockname()[1])

    async def main_loop(self) -> None:
        """Tick until it is time to stop, ten times a second and when a signal comes."""
        counter = 0
        self._is_told.clear()
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000  # as uvicorn: a day
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_told.wait(), _TICK_S)
            self._is_told.clear()  # before the tick looks at what has been told

    async def on_tick(self, counter: int) -> bool:
        """Look after the drain window and what processes tell each other, ten times a second."""
        self._app.state.service.tick()
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        if self._app.state.service.is_abandoned:
            self.should_exit = self.force_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take the last connections, close the listeners, and answer what was asked."""
        if self._closes_address:
            for server in self.servers:
                for listener in server.sockets:
                    ignore_new_connections(listener.fileno())
            await asyncio.sleep(_LAST_CALL_S)
        for server in self.servers:
            server.close()
        if not self._closes_address:
            await asyncio.sleep(_LAST_WORD_S)
        loop = asyncio.get_running_loop()
        limit = loop.call_later(self._drain_timeout_s, self._app.state.service.give_up)
        await super().shutdown(sockets)
        limit.cancel()


def ignore_new_connections(listener: int) -> None:
    """Let a listening socket drop the first packet of every new connection, where Linux can.

    Closing a listener resets the connections that are made but not yet accepted, whose clients
    may have sent their requests. Once no new ones come, a moment later none is left, and the
    listener can be closed without a loss. Clients send a first packet again after a second, and
    are then told that nobody listens.

    Args:
        listener: File descriptor.
    """
    if sys.platform != "linux":
        return
    # Classic BPF over the TCP header: load byte 13, the flags; where SYN is set and ACK is not,
    # keep 0 bytes of the packet, else all.
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, 13),
            (0x54, 0, 0, 0x12),
            (0x15, 0, 1, 0x02),
            (0x06, 0, 0, 0),
            (0x06, 0, 0, 0xFFFFFFFF),
        )
    )
    buffer = ctypes.create_string_buffer(program)
    described = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    duplicate = socket.socket(fileno=socket.dup(listener))
    with duplicate:
        try:
            duplicate.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
        except OSError as error:  # a sandbox may forbid it; then a few may be lost
            logger.info("new connections cannot be held off: %s", error)
