"""GET /livez and /readyz: alive from the first moment, ready only when everything is."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from service.catalog import Catalog
from tests.service.answers import answer, problem
from tests.service.bundles import write_store
from tests.service.conftest import Serve
from tests.service.server import Served, wait_until, wait_until_loaded


@pytest.fixture
def broken_store(tmp_path: Path) -> Path:
    """Return a store with one broken bundle among sound ones."""
    write_store(tmp_path)
    (tmp_path / "tiny-grey/1/generate.onnx").write_bytes(b"")
    return tmp_path


def not_ready(running: Served) -> dict[str, Any]:
    response = running.client.get("/readyz")
    assert response.status_code == 503
    content: dict[str, Any] = response.json()
    assert content["status"] == "not ready"
    return content


def test_a_server_with_all_its_models_is_ready(server: Served) -> None:
    content = answer(server.client.get("/readyz"))
    assert content["status"] == "ready"
    assert "tiny-latent@2" in content["models"]
    assert "broken" not in content


def test_readiness_is_never_cached(server: Served) -> None:
    assert server.client.get("/readyz").headers["cache-control"] == "no-store"


def test_while_models_load_it_is_alive_and_refuses_with_a_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    load = Catalog.load

    def load_late(catalog: Catalog) -> None:
        go_on.wait()
        load(catalog)

    monkeypatch.setattr(Catalog, "load", load_late)
    with serve(wait=False) as running:
        try:
            client = running.client
            assert answer(client.get("/livez")) == {"status": "alive"}
            assert "loaded" in not_ready(running)["reason"]
            refused = [
                client.post("/sample"),
                client.get("/sample"),
                client.post("/interpolate", json={"anchors": [{"seed": 1}, {"seed": 2}]}),
                client.get("/interpolate?seeds=1,2"),
                client.post("/log_prob", json={"images": [[[0]]]}),
                client.get("/models"),
                client.get("/models/tiny-rgb"),
                client.get("/models/tiny-rgb@1"),
                client.get("/models/tiny-rgb/card"),
                client.get("/models/tiny-rgb/versions/1"),
            ]
            for response in refused:
                problem(response, "model-loading", 503)
        finally:
            go_on.set()
        wait_until_loaded(running)
        assert answer(client.get("/readyz"))["status"] == "ready"
        assert answer(client.post("/sample"))["images"]


def test_a_broken_bundle_keeps_it_from_being_ready_but_not_from_serving(
    serve: Serve, broken_store: Path
) -> None:
    with serve(model_store=broken_store) as running:
        content = not_ready(running)
        assert "tiny-grey@1" in content["reason"]
        assert list(content["broken"]) == ["tiny-grey@1"]
        assert answer(running.client.post("/sample"))["images"]
        response = running.client.post("/sample", json={"model": "tiny-grey"})
        problem(response, "unknown-model", 404)


def test_an_operator_may_do_without_the_broken_ones(serve: Serve, broken_store: Path) -> None:
    with serve(model_store=broken_store, require_all_models=False) as running:
        content = answer(running.client.get("/readyz"))
        assert content["status"] == "ready"
        assert list(content["broken"]) == ["tiny-grey@1"]


def test_what_is_told_of_a_broken_bundle_names_no_path(serve: Serve, broken_store: Path) -> None:
    (broken_store / "tiny-rgb/1/model.json").unlink()
    (broken_store / "tiny-binary").rename(broken_store / "renamed")
    with serve(model_store=broken_store) as running:
        content = not_ready(running)
        assert content["broken"].keys() == {"renamed@1", "tiny-grey@1", "tiny-rgb@1"}
        assert str(broken_store) not in str(content)


def test_an_empty_store_is_not_ready(serve: Serve, tmp_path: Path) -> None:
    with serve(model_store=tmp_path) as running:
        assert "empty" in not_ready(running)["reason"]
        assert running.client.get("/livez").status_code == 200
        problem(running.client.post("/sample"), "unknown-model", 404)


def test_a_missing_store_is_not_ready_and_no_path_is_told(serve: Serve, tmp_path: Path) -> None:
    with serve(model_store=tmp_path / "nowhere", wait=False) as running:
        wait_until(lambda: "cannot be read" in not_ready(running)["reason"])
        assert "nowhere" not in str(not_ready(running))
        assert running.client.get("/livez").status_code == 200


def test_while_it_drains_it_serves_but_is_not_ready(serve: Serve) -> None:
    with serve() as running:
        running.service.begin_drain()
        assert "shutting down" in not_ready(running)["reason"]
        response = running.client.post("/sample")
        assert answer(response)["images"]
        assert response.headers["connection"] == "close"
        assert running.client.get("/livez").status_code == 200


def test_after_the_end_requests_are_refused(serve: Serve) -> None:
    with serve() as running:
        stopping = asyncio.run_coroutine_threadsafe(running.service.stop(), running.loop)
        stopping.result()
        problem(running.client.post("/sample"), "draining", 503)
        problem(running.client.get("/models"), "draining", 503)
        assert "shutting down" in not_ready(running)["reason"]
