"""What a loaded model does when its graph takes for ever, or makes what is no picture."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.service.answers import answer, batch_rows, problem
from tests.service.bundles import fragile_generator, latent_generator, slow_generator, write_bundle
from tests.service.conftest import Serve
from tests.service.server import Served, wait_until

pytestmark = pytest.mark.timeout(60)

# As many steps as nobody waits for.
FOR_EVER = [[1e6, 0, 0]]


@pytest.fixture(scope="module")
def difficult(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a server with one worker, of models that are slow or fragile."""
    store: Path = tmp_path_factory.mktemp("difficult")
    write_bundle(store, "slow", {"generate": slow_generator()}, prior="uniform")
    write_bundle(store, "fragile", {"generate": fragile_generator()}, prior="uniform")
    write_bundle(store, "quick", {"generate": latent_generator(1)})
    with serve(model_store=store) as running:
        yield running


def test_a_run_that_passes_its_deadline_is_stopped(difficult: Served) -> None:
    body = {"model": "slow", "latents": FOR_EVER, "timeout_ms": 100}
    problem(difficult.client.post("/sample", json=body), "deadline-exceeded", 504)
    # The only worker is free again.
    assert answer(difficult.client.post("/sample", json={"model": "quick"}))["images"]


def test_a_run_whose_client_has_gone_is_stopped(difficult: Served) -> None:
    body = json.dumps({"model": "slow", "latents": FOR_EVER, "timeout_ms": 60_000})
    head = f"POST /sample HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(difficult.address) as connection:
        connection.sendall(head.encode() + body.encode())
        wait_until(lambda: difficult.is_busy)
    wait_until(lambda: not difficult.is_busy)
    assert answer(difficult.client.post("/sample", json={"model": "quick"}))["images"]


def test_what_is_no_picture_is_told_and_harms_no_neighbour(difficult: Served) -> None:
    good = {"model": "fragile", "seed": 1, "n": 3}
    bad = {"model": "fragile", "latents": [[1, 1, 1], [1, -1, 1]]}
    alone = difficult.client.post("/sample", json=good)
    with ThreadPoolExecutor() as clients:
        with difficult.held():
            first = clients.submit(difficult.client.post, "/sample", json=good)
            wait_until(lambda: difficult.is_busy)
            futures = [
                clients.submit(difficult.client.post, "/sample", json=body)
                for body in (good, bad, good)
            ]
            wait_until(lambda: difficult.num_queued_rows == 8)
        before, failed, after = (future.result() for future in futures)
    assert first.result().content == before.content == after.content == alone.content
    assert batch_rows(before) == 8
    content = problem(failed, "inference-failed", 500)
    assert "not finite" in content["detail"]
