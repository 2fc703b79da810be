"""How answers leave the process: headers and body in one packet, all of a batch one by one."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.errors import MalformedRequestError
from service.routes.documentation import PROBLEM

# Larger pieces are written at once, so that they are not copied.
_LARGE_BYTES = 64 * 1024

# A client on the same machine or close by has its next request here sooner than this. To wait for
# it costs less than to fall asleep and be woken.
_SOON_S = 2e-4

EXCHANGE = "ptheta.exchange"
"""ASGI extension: the `Exchange` of a request."""


class Exchange:
    """A request and its answer, as our own server has them: what ASGI has no cheap way to do.

    Attributes:
        departures: Functions to call when the client has gone. ASGI tells of that only to a task
            that waits for it, and a task per request costs more than drawing the noise of an image.

    Args:
        cycle: The request in uvicorn's hands.
        departures: Those of its connection.
    """

    __slots__ = ("_cycle", "departures")

    def __init__(self, cycle: RequestResponseCycle, departures: set[Callable[[], None]]) -> None:
        self._cycle = cycle
        self.departures = departures

    @property
    def has_whole_body(self) -> bool:
        """Whether all of the request has come, so that nobody need wait for it."""
        cycle = self._cycle
        return not (cycle.more_body or cycle.disconnected)

    @property
    def has_gone(self) -> bool:
        """Whether the client went before it had its answer."""
        disconnected: bool = self._cycle.disconnected
        return disconnected

    def listen(self) -> None:
        """Hear whether the client goes; to be called once the body has been taken in.

        Large pieces of it make uvicorn hear nothing more until somebody asks for the next.
        """
        self._cycle.flow.resume_reading()

    def take_body(self) -> bytes:
        """Return the body of a request that has come as a whole; it can be had once."""
        cycle = self._cycle
        body = bytes(cycle.body)
        cycle.body = bytearray()
        return body

    @property
    def takes_whole_answer(self) -> bool:
        """Whether `answer` can be called.

        Where not, ASGI's messages do what it does not: they wait for a slow client, leave out the
        body of an answer to HEAD, and close connections.
        """
        cycle = self._cycle
        return (
            cycle.keep_alive
            and not cycle.flow.write_paused
            and not cycle.disconnected
            and not cycle.response_started
            and cycle.scope["method"] != "HEAD"
        )

    def answer(self, headers: bytes, body: bytes) -> None:
        """Send a good answer that is whole, in place of two messages that are taken apart again.

        Args:
            headers: A line for each, the body's length among them.
            body: What follows.
        """
        cycle = self._cycle
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        ours = b"".join([b"%b: %b\r\n" % header for header in cycle.default_headers])
        cycle.transport.write(b"HTTP/1.1 200 OK\r\n%b%b\r\n" % (ours, headers))
        cycle.transport.write(body)
        cycle.message_event.set()
        cycle.on_response()


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, whose writes are gathered and whose requests have an `Exchange`."""

    departures: set[Callable[[], None]]
    _idle_since: float | None = None
    _flushed_at = 0.0
    _returns_soon = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._idle_since = None
        self._returns_soon = time.perf_counter() - self._flushed_at < _SOON_S
        exchange = Exchange(cycle, self.departures)
        cycle.scope["extensions"] = {EXCHANGE: exchange}  # type: ignore[dict-item]
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the shape of all errors, and end the connection.

        Args:
            msg: uvicorn's own words, which tell no client what to do.
        """
        error = MalformedRequestError(
            "this is no HTTP/1.1 request; mind the request line, its length, and the headers"
        )
        body = json.dumps(error.content(secrets.token_hex(8))).encode()
        head = (
            f"HTTP/1.1 {error.status} Bad Request\r\ncontent-type: {PROBLEM}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def on_response_complete(self) -> None:
        """End a request; the only client there is need not wait for the answers of others."""
        if len(self.connections) == 1:
            cast(GatheringTransport, self.transport).flush()
            self._flushed_at = time.perf_counter()
            if self._returns_soon:
                self.loop.call_soon(self._look_out)
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._become_idle()

    def _look_out(self) -> None:
        # As long as there is something to call, the event loop asks for what has come and does not
        # sleep. Only for a client who came back that soon the last time.
        is_idle = self._idle_since is not None and len(self.connections) == 1
        if is_idle and time.perf_counter() - self._flushed_at < _SOON_S:
            self.loop.call_soon(self._look_out)

    def _become_idle(self) -> None:
        # Until the next request is begun, which takes its whole head. One timer lasts as long as
        # the connection: to set one for each request and cancel it costs half as much as to parse
        # the request.
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again_in(self.timeout_keep_alive)

    def _look_again_in(self, delay_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            delay_s, self.timeout_keep_alive_handler
        )

    def _unset_keepalive_if_required(self) -> None:
        # Called by uvicorn when something comes, be it one byte of a head.
        pass

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough, else look again then."""
        idle_since = self._idle_since
        if idle_since is None:  # the end of the request that is under way sets it anew
            self.timeout_keep_alive_task = None
            return
        left_s = idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._look_again_in(left_s)
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the work for whoever has gone."""
        super().connection_lost(exc)
        super()._unset_keepalive_if_required()
        for depart in tuple(self.departures):
            depart()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve a connection."""
        # uvloop's transports have no base class in common with asyncio's.
        self.departures = set()
        super().connection_made(GatheringTransport(cast(asyncio.Transport, transport)))
        self._become_idle()


class GatheringTransport(asyncio.Transport):
    """A transport that writes at the end of the event loop's round what was written during it.

    uvicorn writes the headers and the body of an answer apart, and a system call costs as much
    as the noise of an image. At the end of the round, the answers of a whole batch follow each
    other without any Python between them, so that a client who waits for several is woken once.

    Args:
        transport: Where the bytes go.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> None:
        """Write soon."""
        if len(data) > _LARGE_BYTES:
            self.flush()
            self._transport.write(data)
            return
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(data)

    def close(self) -> None:
        """Write what is left, and close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close without writing what is left."""
        self._pieces.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Tell whether it is closed or about to be."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Take nothing in for a while."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take in again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Tell of the connection."""
        return self._transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the connection to another protocol."""
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Tell who handles the connection."""
        return self._transport.get_protocol()

    def flush(self) -> None:
        """Write now, unless the client has gone."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            if not self._transport.is_closing():
                self._transport.write(b"".join(pieces))
