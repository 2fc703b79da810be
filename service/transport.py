"""How answers leave the process: headers and body in one packet, all of a batch one by one."""

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import MalformedRequestError
from service.routes.documentation import PROBLEM

# Larger pieces are written at once, so that they are not copied.
_LARGE_BYTES = 64 * 1024


DEPARTURES = "ptheta.departures"
"""ASGI extension: a set of functions to call when the client has gone."""


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, whose writes are gathered and which tells of departed clients.

    ASGI alone tells of a departure only to a task that waits for it, and a task per request costs
    more than drawing the noise of an image.
    """

    departures: set[Callable[[], None]]

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope["extensions"] = {DEPARTURES: self.departures}  # type: ignore[dict-item]

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
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the work for whoever has gone."""
        super().connection_lost(exc)
        for depart in tuple(self.departures):
            depart()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve a connection."""
        # uvloop's transports have no base class in common with asyncio's.
        self.departures = set()
        super().connection_made(GatheringTransport(cast(asyncio.Transport, transport)))


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
        """Write now."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._transport.write(b"".join(pieces))
