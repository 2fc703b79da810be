"""Writes of one round leave together and in order; nothing is lost when a connection closes."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service import transport
from service.transport import EXCHANGE, GatheringTransport, Protocol
from tests.service.server import Served, wait_until

pytestmark = pytest.mark.anyio


class Wire(asyncio.Transport):
    """Notes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False
        self.is_reading = True

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


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


async def test_nothing_is_written_to_a_client_who_has_gone() -> None:
    wire = Wire()
    transport = GatheringTransport(wire)
    transport.write(b"never")
    wire.closed = True
    await asyncio.sleep(0)
    assert wire.writes == []


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every request."""
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"done"})


async def answer_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every request, by our own way where that is possible."""
    exchange = scope["extensions"][EXCHANGE]
    if exchange.takes_whole_answer:
        exchange.answer(b"content-length: 4\r\n", b"done")
    else:
        await answer(scope, receive, send)


def connect(
    app: Any = answer, state: ServerState | None = None, loop: Any = None
) -> tuple[Protocol, Wire]:
    config = uvicorn.Config(app, http=Protocol, proxy_headers=False, log_config=None)
    config.load()
    state = state or ServerState()
    state.default_headers = [(b"date", b"now"), (b"server", b"ours")]
    protocol, wire = Protocol(config, state, {}, loop), Wire()
    protocol.connection_made(wire)
    return protocol, wire


@pytest.mark.parametrize("num_others", [0, 1])
@pytest.mark.parametrize("app", [answer, answer_at_once])
async def test_the_answer_to_the_only_client_leaves_at_once(app: Any, num_others: int) -> None:
    state = ServerState()
    connections = [connect(app, state) for _ in range(1 + num_others)]
    protocol, wire = connections[0]
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    await asyncio.sleep(0)
    assert len(wire.writes) == (0 if num_others else 1)
    await asyncio.sleep(0)
    assert len(wire.writes) == 1
    assert wire.writes[0].endswith(b"\r\n\r\ndone")
    for each, _ in connections:
        each.connection_lost(None)


REQUESTS = {
    "one": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "with a body": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n{}",
    "one after the other": 3 * b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "without a body": b"HEAD / HTTP/1.1\r\nHost: here\r\n\r\n",
    "the last": b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n",
    "of old": b"GET / HTTP/1.0\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", REQUESTS.values(), ids=REQUESTS)
async def test_an_answer_at_once_is_the_same_as_one_by_messages(request_bytes: bytes) -> None:
    seen = []
    for app in (answer, answer_at_once):
        protocol, wire = connect(app)
        protocol.data_received(request_bytes)
        for _ in range(10):
            await asyncio.sleep(0)
        seen.append((b"".join(wire.writes), wire.closed))
        assert protocol.server_state.total_requests == request_bytes.count(b"HTTP/1.")
        protocol.connection_lost(None)
    assert seen[0] == seen[1]
    assert seen[0][0]


@pytest.mark.parametrize("size", [0, 1000, 200_000])
async def test_a_whole_body_can_be_taken_and_the_connection_is_heard_on(size: int) -> None:
    taken = []
    proceed = asyncio.Event()

    async def take(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = scope["extensions"][EXCHANGE]
        assert exchange.has_whole_body
        taken.append(exchange.take_body())
        exchange.listen()
        await proceed.wait()
        await answer(scope, receive, send)

    protocol, wire = connect(take)
    body = b"x" * size
    head = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % size
    protocol.data_received(head + body)
    await asyncio.sleep(0)
    assert taken == [body]
    assert wire.is_reading  # so that it is noticed when the client goes
    proceed.set()
    await asyncio.sleep(0.01)
    assert len(wire.writes) == 1
    protocol.connection_lost(None)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_is_done_for_a_client_who_goes_before_its_request_is_looked_at(
    server: Served, method: str
) -> None:
    async def come_and_go() -> ServerState:
        protocol = Protocol(server.server.config, ServerState(), {})
        protocol.connection_made(Wire())
        protocol.data_received(f"{method} /sample HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        protocol.connection_lost(None)
        return protocol.server_state

    with server.held():
        state = asyncio.run_coroutine_threadsafe(come_and_go(), server.loop).result()
        wait_until(lambda: not state.tasks)  # though no run can end
        assert server.num_queued_rows == 0
    assert 'status="499"' in server.client.get("/metrics").text


class Clock:
    """An event loop whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.create_task = asyncio.get_running_loop().create_task
        self.call_soon = asyncio.get_running_loop().call_soon

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self.timers.append((self.now + delay_s, call))
        return asyncio.TimerHandle(self.now + delay_s, call, (), asyncio.get_running_loop())

    def go_on(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        due = [call for at, call in self.timers if at <= self.now]
        self.timers = [(at, call) for at, call in self.timers if at > self.now]
        for call in due:
            call()


async def test_a_connection_is_closed_once_it_has_been_idle_for_long() -> None:
    clock = Clock()
    protocol, wire = connect(loop=clock)
    limit_s = protocol.timeout_keep_alive
    for _ in range(5):  # as long in all as several limits
        protocol.data_received(REQUESTS["one"])
        await asyncio.sleep(0)
        clock.go_on(0.8 * limit_s)
        assert not wire.closed
        assert len(clock.timers) <= 1
    clock.go_on(0.3 * limit_s)
    assert wire.closed
    protocol.connection_lost(None)


@pytest.mark.parametrize("first", [b"", REQUESTS["one"]])
async def test_a_head_that_does_not_end_keeps_no_connection(first: bytes) -> None:
    clock = Clock()
    protocol, wire = connect(loop=clock)
    protocol.data_received(first)
    await asyncio.sleep(0)
    for byte in REQUESTS["one"][:10]:
        protocol.data_received(bytes([byte]))
        clock.go_on(0.2 * protocol.timeout_keep_alive)
        if wire.closed:
            break
    assert clock.now == pytest.approx(protocol.timeout_keep_alive)
    protocol.connection_lost(None)


async def test_a_connection_is_not_closed_while_its_request_is_under_way() -> None:
    clock = Clock()
    proceed = asyncio.Event()

    async def wait_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        await proceed.wait()
        await answer(scope, receive, send)

    protocol, wire = connect(wait_and_answer, loop=clock)
    limit_s = protocol.timeout_keep_alive
    proceed.set()
    protocol.data_received(REQUESTS["one"])
    await asyncio.sleep(0)
    proceed.clear()
    protocol.data_received(REQUESTS["one"])
    await asyncio.sleep(0)
    clock.go_on(3 * limit_s)
    assert not wire.closed
    proceed.set()
    for _ in range(3):
        await asyncio.sleep(0)
    clock.go_on(0.9 * limit_s)
    assert not wire.closed
    clock.go_on(0.2 * limit_s)
    assert wire.closed
    protocol.connection_lost(None)


async def rest(seconds: float) -> float:
    """Let the event loop rest; returns the seconds for which it did not."""
    began = time.thread_time()
    await asyncio.sleep(seconds)
    return time.thread_time() - began


@pytest.mark.parametrize("num_others", [0, 1])
@pytest.mark.parametrize("pause_s", [0.0, 0.25])
async def test_it_is_awake_for_a_while_for_the_only_client_if_that_comes_back_soon(
    monkeypatch: pytest.MonkeyPatch, pause_s: float, num_others: int
) -> None:
    monkeypatch.setattr(transport, "_SOON_S", 0.2)
    state = ServerState()
    connections = [connect(answer, state) for _ in range(1 + num_others)]
    protocol, wire = connections[0]
    for _ in range(3):
        await asyncio.sleep(pause_s)
        protocol.data_received(REQUESTS["one"])
        await asyncio.sleep(0)
    busy_s = await rest(0.4)
    if num_others or pause_s:
        assert busy_s < 0.01
    else:
        assert 0.02 < busy_s < 0.3
    assert await rest(0.1) < 0.01
    assert len(wire.writes) == 3
    for each, _ in connections:
        each.connection_lost(None)


async def test_nobody_looks_out_for_a_client_who_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_SOON_S", 10.0)
    protocol, _ = connect()
    for _ in range(2):
        protocol.data_received(REQUESTS["one"])
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    assert await rest(0.05) < 0.01
