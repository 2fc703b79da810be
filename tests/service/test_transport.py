"""Writes of one round leave together and in order; nothing is lost when a connection closes."""

import asyncio
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.transport import GatheringTransport, Protocol

pytestmark = pytest.mark.anyio


class Wire(asyncio.Transport):
    """Notes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def test_headers_and_body_leave_together() -> None:
    wire = Wire()
    transport = GatheringTransport(wire)
    transport.write(b"head")
    transport.write(b"body")
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [b"headbody"]


async def test_what_is_large_is_not_copied_and_keeps_its_place() -> None:
    wire = Wire()
    transport = GatheringTransport(wire)
    large = b"x" * 100_000
    transport.write(b"head")
    transport.write(large)
    transport.write(b"tail")
    await asyncio.sleep(0)
    assert wire.writes == [b"head", large, b"tail"]


async def test_closing_writes_what_is_left_first() -> None:
    wire = Wire()
    transport = GatheringTransport(wire)
    transport.write(b"last")
    transport.close()
    await asyncio.sleep(0)
    assert wire.writes == [b"last"]
    assert transport.is_closing()


async def test_aborting_writes_nothing_more() -> None:
    wire = Wire()
    transport = GatheringTransport(wire)
    transport.write(b"never")
    transport.abort()
    await asyncio.sleep(0)
    assert wire.writes == []


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every request."""
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"done"})


@pytest.mark.parametrize("num_others", [0, 1])
async def test_the_answer_to_the_only_client_leaves_at_once(num_others: int) -> None:
    config = uvicorn.Config(answer, http=Protocol, proxy_headers=False, log_config=None)
    config.load()
    state = ServerState()
    wire, *others = (Wire() for _ in range(1 + num_others))
    protocols = []
    for each in (wire, *others):
        protocols.append(Protocol(config, state, {}))
        protocols[-1].connection_made(each)
    protocols[0].data_received(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    await asyncio.sleep(0)
    assert len(wire.writes) == (0 if num_others else 1)
    await asyncio.sleep(0)
    assert len(wire.writes) == 1
    assert wire.writes[0].endswith(b"\r\n\r\ndone")
    for protocol in protocols:
        protocol.connection_lost(None)
