"""What a process does for its siblings."""

from pathlib import Path

import pytest

from service.board import Board
from service.service import Service
from service.settings import Settings
from tests.service.conftest import Serve

pytestmark = pytest.mark.anyio


def shed(service: Service) -> int:
    """Count the connections that a busy process gives away until it looks around again."""
    for _ in range(100):  # until the means have settled
        service.tick()
    return sum(service.sheds_connection() for _ in range(100))


@pytest.mark.parametrize(
    ("num_calls", "num_shed"), [(0, 0), (1, 0), (2, 0), (5, 1), (9, 2), (41, 10)]
)
async def test_a_process_gives_half_of_its_surplus_to_an_idle_sibling(
    tiny_store: Path, num_calls: int, num_shed: int
) -> None:
    service = Service(Settings(model_store=tiny_store), Board(2))
    for _ in range(num_calls):
        service.workers.enter()
    assert shed(service) == num_shed


async def test_processes_that_are_equally_busy_give_nothing_away(tiny_store: Path) -> None:
    service = Service(Settings(model_store=tiny_store), Board(2))
    for _ in range(40):
        service.workers.enter()
    shed(service)
    service.metrics.take_place(1)  # the sibling, in the same memory
    assert shed(service) == 0


@pytest.mark.parametrize(("num_of_sibling", "num_shed"), [(0, 1), (1, 1), (2, 0)])
async def test_a_process_with_a_full_queue_gives_to_a_sibling_with_fewer_calls(
    tiny_store: Path, num_of_sibling: int, num_shed: int
) -> None:
    """Though its queue be too small for a large surplus."""
    service = Service(Settings(model_store=tiny_store), Board(2))
    service.metrics.take_place(1)
    service.metrics.share_calls(num_of_sibling)
    service.metrics.take_place(0)
    for _ in range(2):
        service.workers.enter()
    assert shed(service) == 0
    service.metrics.on_refusal("overloaded")
    service.tick()
    assert sum(service.sheds_connection() for _ in range(100)) == num_shed
    service.tick()
    assert not service.sheds_connection()  # none is refused any more


async def test_a_short_surplus_sheds_nothing(tiny_store: Path) -> None:
    service = Service(Settings(model_store=tiny_store), Board(2))
    for _ in range(10):
        service.workers.enter()
    service.tick()
    assert not service.sheds_connection()


async def test_a_process_without_siblings_keeps_its_connections(tiny_store: Path) -> None:
    service = Service(Settings(model_store=tiny_store))
    for _ in range(40):
        service.workers.enter()
    assert shed(service) == 0


def test_an_answer_may_ask_to_connect_anew(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as running:
        assert "connection" not in running.client.get("/livez").headers
        monkeypatch.setattr(running.service, "sheds_connection", lambda: True)
        assert running.client.get("/livez").headers["connection"] == "close"
