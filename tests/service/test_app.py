"""The application as a whole: one error shape, request ids, documentation, determinism."""

import json
import logging
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from service.errors import ProblemError
from tests.service.answers import answer, batch_rows, npy, png, problem
from tests.service.bundles import HEIGHT, WIDTH
from tests.service.server import Served, wait_until
from tests.service.test_errors import concrete

Request = dict[str, Any]


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    """Return the OpenAPI document."""
    return answer(client.get("/openapi.json"))


class TestRequestIds:
    def test_an_id_is_made_for_each_request(self, client: httpx.Client) -> None:
        ids = {client.get("/livez").headers["x-request-id"] for _ in range(5)}
        assert len(ids) == 5

    @pytest.mark.parametrize("path", ["/livez", "/sample", "/nowhere", "/sample?n=0"])
    def test_a_clients_own_id_is_echoed(self, client: httpx.Client, path: str) -> None:
        response = client.get(path, headers={"X-Request-ID": "abc-1.2_3"})
        assert response.headers.get_list("x-request-id") == ["abc-1.2_3"]

    @pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "a,b", '{"a":1}', "é"])
    def test_what_could_harm_a_log_is_replaced(self, client: httpx.Client, bad: str) -> None:
        response = client.get("/livez", headers=[(b"X-Request-ID", bad.encode())])
        assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", response.headers["x-request-id"])


class TestAccessLog:
    def test_each_request_is_one_line_of_json(
        self, client: httpx.Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "service.access")
        response = client.get("/sample?n=0&secret=1", headers={"X-Request-ID": "the-id"})
        wait_until(lambda: "the-id" in caplog.text)
        (line,) = [record.getMessage() for record in caplog.records if "the-id" in record.message]
        record = json.loads(line)
        assert record.pop("ms") > 0
        assert record == {
            "request_id": "the-id",
            "method": "GET",
            "path": "/sample",
            "status": response.status_code,
        }

    def test_bodies_and_queries_are_never_logged(
        self, client: httpx.Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "service")
        client.post("/sample", json={"seed": 918273, "latents": [[0.918273] * 3]})
        client.get("/sample?seed=918273")
        client.post("/log_prob", content=b"918273", headers={"Content-Type": "text/918273"})
        wait_until(lambda: caplog.text.count("/log_prob") == 1)
        assert "918273" not in caplog.text


class TestErrors:
    @pytest.mark.parametrize("path", ["/nowhere", "/sample/1", "/models/tiny-rgb/versions/1/a/b"])
    def test_a_path_that_leads_nowhere_is_a_problem_too(
        self, client: httpx.Client, path: str
    ) -> None:
        problem(client.get(path), "not-found", 404)

    @pytest.mark.parametrize(
        ("method", "path"), [("DELETE", "/sample"), ("GET", "/log_prob"), ("POST", "/models")]
    )
    def test_a_method_that_is_not_allowed_is_a_problem_too(
        self, client: httpx.Client, method: str, path: str
    ) -> None:
        response = client.request(method, path)
        problem(response, "method-not-allowed", 405)
        assert response.headers["allow"]

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("OPTIONS", "/sample", "GET, POST"),
            ("DELETE", "/interpolate", "GET, POST"),
            ("POST", "/v2/health/live", "GET"),
            ("POST", "/v2/models/stats", "GET"),
            ("GET", "/v2/repository/index", "POST"),
        ],
    )
    def test_all_methods_that_are_allowed_are_told(
        self, client: httpx.Client, method: str, path: str, allowed: str
    ) -> None:
        response = client.request(method, path)
        problem(response, "method-not-allowed", 405)
        assert response.headers["allow"] == allowed

    @pytest.mark.parametrize("path", ["/sample", "/models/tiny-rgb"])
    def test_a_bug_is_told_without_its_text_and_logged_under_its_request_id(
        self,
        server: Served,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        path: str,
    ) -> None:
        def fail(*arguments: object) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr(server.service.catalog, "find", fail)
        response = server.client.get(path, headers={"X-Request-ID": "the-id"})
        problem(response, "inference-failed", 500)
        assert "secret" not in response.text
        failures = [record for record in caplog.records if record.exc_info]
        assert any("the-id" in record.getMessage() for record in failures)

    def test_every_slug_is_in_the_documentation(self, client: httpx.Client) -> None:
        """Those that HTTP itself brings along are documented by their status.

        Those of API keys are in the document of a server that asks for them.
        """
        document = json.dumps(answer(client.get("/openapi.json")))
        statuses = {kind.status for kind in concrete() if issubclass(kind, ProblemError)}
        missing = {
            status
            for status in statuses - {401, 403, 405, 408, 429}
            if f'"{status}"' not in document
        }
        assert not missing


class TestDocumentation:
    def test_every_route_is_documented(self, document: dict[str, Any]) -> None:
        operations = {
            f"{method.upper()} {path}"
            for path, methods in document["paths"].items()
            for method in methods
        }
        assert operations >= {
            "POST /sample",
            "GET /sample",
            "POST /complete",
            "POST /interpolate",
            "GET /interpolate",
            "POST /log_prob",
            "GET /models",
            "GET /models/{name}",
            "GET /models/{name}/versions/{version}",
            "GET /livez",
            "GET /readyz",
            "GET /metrics",
        }

    def test_every_problem_has_the_one_shape(self, document: dict[str, Any]) -> None:
        for methods in document["paths"].values():
            for operation in methods.values():
                for status, described in operation["responses"].items():
                    if status >= "400" and operation["summary"] != "Ready for traffic?":
                        schema = described["content"]["application/problem+json"]["schema"]
                        assert schema == {"$ref": "#/components/schemas/Problem"}

    def test_every_reference_leads_somewhere(self, document: dict[str, Any]) -> None:
        references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
        assert references
        assert references <= document["components"]["schemas"].keys()

    def test_names_of_operations_are_unique(self, document: dict[str, Any]) -> None:
        names = Counter(
            operation["operationId"]
            for methods in document["paths"].values()
            for operation in methods.values()
        )
        assert max(names.values()) == 1

    def test_every_link_leads_to_an_operation_and_its_parameters(
        self, document: dict[str, Any]
    ) -> None:
        operations = {
            operation["operationId"]: operation
            for methods in document["paths"].values()
            for operation in methods.values()
        }
        links = [
            link
            for operation in operations.values()
            for link in operation["responses"]["200"].get("links", {}).values()
        ]
        assert len(links) > 20
        for link in links:
            target = operations[link["operationId"]]
            known = {parameter["name"] for parameter in target.get("parameters", ())}
            assert {name.removeprefix("query.") for name in link.get("parameters", {})} <= known
            assert "requestBody" in target or "requestBody" not in link

    def test_every_parameter_and_answer_is_described(self, document: dict[str, Any]) -> None:
        for path, methods in document["paths"].items():
            for operation in methods.values():
                for parameter in operation.get("parameters", ()):
                    assert parameter["description"], f"{path}: {parameter['name']}"
                for media_type, content in operation["responses"]["200"]["content"].items():
                    assert content["schema"] != {"type": "object"}, f"{path}: {media_type}"
                    assert content["schema"], f"{path}: {media_type}"

    def test_large_bounds_are_written_as_the_integers_that_they_are(
        self, client: httpx.Client
    ) -> None:
        text = client.get("/openapi.json").text
        assert '"exclusiveMaximum":18446744073709551616' in text
        assert "e+" not in text

    def test_a_problem_shows_all_members_that_every_problem_has(
        self, document: dict[str, Any]
    ) -> None:
        assert set(document["components"]["schemas"]["Problem"]["required"]) == {
            "type",
            "title",
            "status",
            "detail",
            "request_id",
            "error",
        }


def mixed_requests() -> list[Request]:
    """Return 32 requests of all kinds: models, sizes, operations and formats."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, HEIGHT, WIDTH), dtype=np.uint8)
    sample: list[Request] = [
        {"url": "/sample", "json": {"model": model, "n": n, "seed": n, "format": answer_format}}
        for model, n, answer_format in [
            ("tiny-latent", 1, "json"),
            ("tiny-latent", 1, "png"),
            ("tiny-latent", 1, "npy"),
            ("tiny-latent", 2, "webp"),
            ("tiny-latent", 40, "npy"),
            ("tiny-latent@1", 1, "json"),
            ("tiny-latent@1", 3, "jpeg"),
            ("tiny-binary", 1, "json"),
            ("tiny-binary", 1, "png"),
            ("tiny-binary", 7, "json"),
            ("tiny-binary", 50, "png"),
            ("tiny-grey", 1, "json"),
            ("tiny-grey", 5, "npy"),
            ("tiny-rgb", 1, "json"),
            ("tiny-rgb", 4, "webp"),
            ("tiny-rgb", 33, "png"),
        ]
    ]
    more: list[Request] = [
        {"url": "/sample", "json": {"seed": 3, "truncation": 0.5}},
        {"url": "/sample", "json": {"seed": 3, "truncation": 0.7, "include": ["latents"]}},
        {"url": "/sample", "json": {"latents": [[1, 2, 3], [3, 2, 1]]}},
        {"url": "/sample", "json": {"model": "tiny-binary", "seed": 3, "temperature": 0.3}},
        {"url": "/sample", "json": {"model": "tiny-binary", "seed": 3, "temperature": 3}},
        {"url": "/sample", "json": {"model": "tiny-rgb", "seed": 3, "include": ["log_prob"]}},
        {"method": "GET", "url": "/sample?model=tiny-rgb&seed=5&n=9"},
        {"method": "GET", "url": "/interpolate?seeds=1,2,3&steps=5"},
    ]
    anchors = [{"seed": 1}, {"seed": 2, "index": 3}, {"latent": [1, 0, 2]}]
    more += [
        {"url": "/interpolate", "json": {"anchors": anchors, "steps": steps, "format": name}}
        for steps, name in [(8, "json"), (30, "gif"), (3, "png")]
    ]
    more += [
        {"url": "/log_prob", "json": {"model": model, "images": pixels[:n].tolist()}}
        for model, n in [("tiny-binary", 1), ("tiny-binary", 20), ("tiny-grey", 3)]
    ]
    more += [
        {
            "url": "/log_prob?model=tiny-binary&binarize=stochastic&seed=4&format=npy",
            "content": npy(pixels),
            "headers": {"Content-Type": "application/x-npy"},
        },
        {
            "url": "/log_prob",
            "files": [("images", png(image)) for image in pixels[:2]],
            "data": {"model": "tiny-grey"},
        },
    ]
    return sample + more


def send(client: httpx.Client, request: Request) -> httpx.Response:
    return client.request(**request) if "method" in request else client.post(**request)


class TestDeterminism:
    def test_an_answer_is_the_same_alone_and_among_32_others(self, server: Served) -> None:
        requests = mixed_requests()
        assert len(requests) == 32

        alone = [send(server.client, request) for request in requests]
        assert {response.status_code for response in alone} == {200}
        rng = np.random.default_rng(0)
        for _ in range(3):
            order = rng.permutation(len(requests))
            with ThreadPoolExecutor(len(requests)) as clients:
                with server.held():
                    futures = {i: clients.submit(send, server.client, requests[i]) for i in order}
                    # All but a first batch wait together, so they cannot but share batches.
                    wait_until(lambda: server.num_queued_rows > 200)
                together = {i: future.result() for i, future in futures.items()}
            for i, response in together.items():
                assert response.content == alone[i].content, requests[i]
            singles = [response for i, response in together.items() if batch_rows(alone[i]) == 1]
            assert len(singles) >= 10
            shared = [response for response in singles if batch_rows(response) > 1]
            assert len(shared) >= len(singles) // 2

    def test_a_server_that_starts_anew_gives_the_same_bytes(
        self, server: Served, serve: Any
    ) -> None:
        requests = mixed_requests()[:12]
        before = [send(server.client, request).content for request in requests]
        with serve(num_threads=2) as other:
            after = [send(other.client, request).content for request in requests]
        assert after == before
