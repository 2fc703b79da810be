"""Writes of one round leave together and in order; nothing is lost when a connection closes."""

import asyncio
from typing import Any

import pytest

from service.transport import GatheringTransport

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
