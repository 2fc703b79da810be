"""GET /metrics: what happened, in Prometheus' format and base units."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.bundles import HEIGHT, NEVER_ON, UNDEFINED, WIDTH
from tests.service.conftest import Serve
from tests.service.server import Served, wait_until

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(client: httpx.Client) -> Samples:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def fresh(serve: Serve) -> Iterator[Served]:
    """Return a server that nobody has asked anything."""
    with serve() as running:
        yield running


def test_requests_are_counted_by_route_and_status(fresh: Served) -> None:
    fresh.client.post("/sample")
    fresh.client.post("/sample", json={"n": 0})
    fresh.client.get("/models/tiny-rgb")
    found = samples(fresh.client)
    name = "ptheta_requests_total"
    assert value(found, name, method="POST", route="/sample", status="200") == 1
    assert value(found, name, method="POST", route="/sample", status="422") == 1
    assert value(found, name, method="GET", route="/models/{name}", status="200") == 1
    assert value(found, "ptheta_request_seconds_count", route="/sample") == 2


def test_a_client_cannot_make_series_by_inventing_paths(fresh: Served) -> None:
    def invent(names: range) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        for name in names:
            fresh.client.get(f"/nowhere/{name}")
            fresh.client.get(f"/models/{name}")
            fresh.client.get(f"/models/tiny-rgb/versions/{name + 5}")
            fresh.client.request("PATCH", f"/{name}")
            fresh.client.request("TRACE", "/sample")
        return set(samples(fresh.client))

    samples(fresh.client)
    assert invent(range(1)) == invent(range(1, 30))


def test_runs_and_rows_are_counted_by_graph(fresh: Served) -> None:
    fresh.client.post("/sample", json={"model": "tiny-binary", "n": 5, "include": ["log_prob"]})
    found = samples(fresh.client)
    for graph in ("generate", "log_prob"):
        labels = {"model": "tiny-binary@1", "graph": graph}
        assert value(found, "ptheta_batch_rows_count", **labels) == 1
        assert value(found, "ptheta_batch_rows_sum", **labels) == 5
        assert value(found, "ptheta_run_seconds_count", **labels) == 1
        assert value(found, "ptheta_run_seconds_sum", **labels) > 0
        assert value(found, "ptheta_queue_seconds_count", **labels) == 1
        assert value(found, "ptheta_queue_rows", **labels) == 0


def test_refusals_are_counted_by_reason(fresh: Served) -> None:
    fresh.client.post("/sample", json={"n": 0})
    fresh.client.post("/sample", json={"model": "nobody"})
    fresh.client.get("/nowhere")
    found = samples(fresh.client)
    for reason in ("invalid-request", "unknown-model", "not-found"):
        assert value(found, "ptheta_rejections_total", reason=reason) == 1


def test_rows_whose_deadline_passed_are_counted_where_they_were(fresh: Served) -> None:
    body = {"model": "tiny-rgb", "n": 3, "timeout_ms": 20}
    with fresh.held():
        assert fresh.client.post("/sample", json=body).status_code == 504  # granted, not run
        assert fresh.client.post("/sample", json=body).status_code == 504
    wait_until(lambda: not fresh.is_busy)
    labels = {"model": "tiny-rgb@1", "graph": "generate"}
    found = samples(fresh.client)
    assert value(found, "ptheta_cancelled_rows_total", **labels, stage="running") == 3
    assert value(found, "ptheta_cancelled_rows_total", **labels, stage="queued") == 3


def test_results_that_are_no_number_are_counted_and_impossible_ones_are_not(
    fresh: Served,
) -> None:
    pixels = np.zeros((3, HEIGHT, WIDTH), int)
    pixels[0, *NEVER_ON] = pixels[1, *UNDEFINED] = 255
    fresh.client.post("/log_prob", json={"model": "tiny-binary", "images": pixels.tolist()})
    labels = {"model": "tiny-binary@1", "graph": "log_prob"}
    assert value(samples(fresh.client), "ptheta_non_finite_rows_total", **labels) == 1


def test_models_and_readiness_are_told(fresh: Served) -> None:
    found = samples(fresh.client)
    assert value(found, "ptheta_ready") == 1
    assert value(found, "ptheta_model_ready", model="tiny-latent@2") == 1
    fresh.service.begin_drain()
    assert value(samples(fresh.client), "ptheta_ready") == 0


def test_servers_of_one_process_count_apart(fresh: Served, server: Served) -> None:
    server.client.post("/sample")
    found = samples(fresh.client)
    assert value(found, "ptheta_requests_total", method="POST", route="/sample", status="200") == 0


def test_calls_are_told_apart_by_whether_they_were_answered(fresh: Served) -> None:
    graph = fresh.service.catalog.find("tiny-grey").graphs["generate"]
    assert graph.metrics.totals.success.count == 0
    body = {"model": "tiny-grey", "n": 3}
    fresh.client.post("/sample", json=body)
    with fresh.held():
        fresh.client.post("/sample", json=body | {"timeout_ms": 1})
    wait_until(lambda: graph.metrics.totals.fail.count == 1)
    totals = graph.metrics.totals
    assert (totals.success.count, totals.queue.count, totals.compute.count) == (1, 1, 1)
    assert totals.success.seconds == totals.queue.seconds + totals.compute.seconds > 0
    assert totals.fail.seconds >= 0.001
    assert totals.success.last_s > 1.7e9
    # Refused at once, it has never been taken in.
    fresh.client.post("/sample", json=body | {"n": 0})
    assert graph.metrics.totals.fail.count == 1
