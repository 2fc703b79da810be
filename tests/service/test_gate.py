"""API keys, over HTTP: who gets in, to what, how often, and what is told to whom."""

import json
import logging
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from ptheta_client import (
    Client,
    ForbiddenError,
    QuotaExceededError,
    Retry,
    UnauthenticatedError,
)
from service.gate import is_open
from service.keys import digest_of
from tests.service.answers import answer, picture, problem
from tests.service.conftest import Serve, Start
from tests.service.server import Served, wait_until

pytestmark = pytest.mark.timeout(60)

# One key for each thing that can be limited. Rows come back so slowly that no test sees one.
LIMITS = {
    "all": "",
    "routes": 'routes = ["sample", "metrics"]',
    "models": 'models = ["tiny-grey", "tiny-latent@1"]',
    "rows": "rows_per_minute = 0.01\nburst_rows = 10",
    "both": 'models = ["tiny-latent"]\nrows_per_minute = 0.01\nburst_rows = 5',
}
ANONYMOUS = """
[anonymous]
routes = ["sample", "models"]
models = ["tiny-latent"]
rows_per_minute = 0.01
burst_rows = 4
"""
PUBLIC = "/sample?model=tiny-latent@2&seed=7"


def secret(name: str) -> str:
    return f"key-of-{name}"


def write_keys(folder: Path, more: str = "") -> Path:
    entries = [
        f'[keys.{name}]\nsha256 = "{digest_of(secret(name).encode())}"\n{limit}\n'
        for name, limit in LIMITS.items()
    ]
    path = folder / "keys.toml"
    path.write_text("\n".join([*entries, more]))
    return path


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret(name)}"}


@pytest.fixture(scope="module")
def guarded(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a server that asks for keys; tests use up no quotas."""
    with serve(api_keys_file=write_keys(tmp_path_factory.mktemp("keys"))) as running:
        yield running


@pytest.fixture
def metered(serve: Serve, tmp_path: Path) -> Iterator[Served]:
    """Return a server whose quotas nobody has touched."""
    with serve(api_keys_file=write_keys(tmp_path)) as running:
        yield running


@pytest.fixture
def semi_open(serve: Serve, tmp_path: Path) -> Iterator[Served]:
    """Return a server that lets those without a key do a little."""
    with serve(api_keys_file=write_keys(tmp_path, ANONYMOUS)) as running:
        yield running


def refusal(response: httpx.Response, slug: str, status: int) -> dict[str, Any]:
    """Check that an answer is a problem of one kind, in the shape of its route, and return it."""
    if not response.request.url.path.startswith("/v1/"):
        return problem(response, slug, status)
    content: dict[str, Any] = response.json()
    assert (response.status_code, content["type"]) == (status, slug)
    assert content["error"]["code"] == slug
    assert content["error"]["message"] == content["detail"]
    return content


def operations(client: httpx.Client) -> list[tuple[str, str]]:
    """List method and path of all operations, of whatever model."""
    paths = answer(client.get("/openapi.json"))["paths"]
    examples = {"{name}": "tiny-grey", "{version}": "1", "{file}": "card"}
    return [
        (method.upper(), re.sub(r"\{\w+\}", lambda found: examples[found[0]], path))
        for path, methods in paths.items()
        for method in methods
    ]


class TestEntering:
    def test_every_operation_but_the_open_ones_needs_a_key(self, guarded: Served) -> None:
        client = guarded.client
        listed = operations(client)
        assert len(listed) > 30
        for method, path in listed:
            response = client.request(method, path)
            if is_open(path):
                assert response.status_code == 200, path
            else:
                content = refusal(response, "unauthenticated", 401)
                assert "Authorization: Bearer" in content["detail"]
                assert response.headers["www-authenticate"] == 'Bearer realm="ptheta"'

    @pytest.mark.parametrize(
        "path", ["/nowhere", "/sample/", "//sample", "/v2/", "/v2/x", "/SAMPLE", "/page"]
    )
    def test_what_is_nowhere_needs_one_too(self, guarded: Served, path: str) -> None:
        url = f"{guarded.url}{path}"
        problem(guarded.client.get(url), "unauthenticated", 401)
        problem(guarded.client.request("DELETE", url), "unauthenticated", 401)
        assert guarded.client.get(url, headers=bearer("all")).status_code in {200, 307, 404}

    def test_probes_and_pages_are_open(self, guarded: Served) -> None:
        for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/", "/docs"):
            assert guarded.client.get(path).status_code == 200
        assert guarded.client.get("/page/main.js").status_code == 200
        problem(guarded.client.get("/page/nowhere.js"), "not-found", 404)
        problem(guarded.client.post("/livez"), "method-not-allowed", 405)

    @pytest.mark.parametrize(
        "headers",
        [
            bearer("all"),
            {"Authorization": f"bearer   {secret('all')}"},
            {"X-API-Key": secret("all")},
            # As behind a proxy that wants a password of its own.
            {"Authorization": "Basic dXNlcjpwYXNz", "X-API-Key": secret("all")},
        ],
    )
    def test_a_key_opens_everything(self, guarded: Served, headers: dict[str, Any]) -> None:
        for method, path in operations(guarded.client):
            response = guarded.client.request(method, path, headers=headers)
            assert response.status_code not in {401, 403, 429}, path
        assert answer(guarded.client.post("/sample", headers=headers))["images"]

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer"},
            {"Authorization": "Basic dXNlcjpwYXNz"},
            {"Authorization": f"Bearer {digest_of(secret('all').encode())}"},
            {"X-API-Key": ""},
            {"X-API-Key": "wrong"},
            {"X-API-Key": digest_of(secret("all").encode())},
            {"Authorization": f"Bearer {secret('all')[:-1]}"},
            {"Authorization": f"Bearer {secret('all').upper()}"},
            bearer("all") | {"X-API-Key": "wrong"},
        ],
    )
    def test_nothing_else_does(self, guarded: Served, headers: dict[str, Any]) -> None:
        problem(guarded.client.get("/models", headers=headers), "unauthenticated", 401)

    @pytest.mark.parametrize("name", ["key", "api_key", "token", "X-API-Key"])
    def test_a_key_in_an_address_is_none(self, guarded: Served, name: str) -> None:
        query = {name: secret("all")}
        problem(guarded.client.get("/models", params=query), "unauthenticated", 401)

    def test_a_key_that_is_not_known_is_told_apart_from_none(self, guarded: Served) -> None:
        response = guarded.client.get("/models", headers={"X-API-Key": "wrong"})
        assert "not known" in problem(response, "unauthenticated", 401)["detail"]
        assert response.headers["www-authenticate"].endswith('error="invalid_token"')

    def test_the_body_is_not_waited_for(self, guarded: Served) -> None:
        head = b"POST /log_prob HTTP/1.1\r\nHost: x\r\nContent-Length: 16000000\r\n\r\n"
        with socket.create_connection(guarded.address) as connection:
            connection.sendall(head)
            assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")

    def test_requests_that_follow_each_other_are_not_mixed_up(self, guarded: Served) -> None:
        """The task of a request that has waited in its connection begins in that of the last."""
        first = "GET /models/tiny-rgb HTTP/1.1\r\nHost: x\r\n"
        keys = (secret("all"), secret("models"), None, secret("all"), "wrong")
        lines = [first if key is None else f"{first}X-API-Key: {key}\r\n" for key in keys]
        lines.append("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        with socket.create_connection(guarded.address) as connection:
            connection.sendall("".join(f"{line}\r\n" for line in lines).encode())
            received = b"".join(iter(lambda: connection.recv(65_536), b""))
        statuses = re.findall(rb"HTTP/1.1 (\d+)", received)
        assert statuses == [b"200", b"403", b"401", b"200", b"401", b"200"]

    def test_without_keys_everything_is_open_and_a_key_does_no_harm(
        self, client: httpx.Client
    ) -> None:
        for headers in ({}, bearer("all"), {"X-API-Key": "wrong"}):
            response = client.get(PUBLIC, headers=headers)
            picture(response)
            assert response.headers["cache-control"].startswith("public")
        assert "securitySchemes" not in answer(client.get("/openapi.json"))["components"]


class TestScopes:
    def test_a_key_is_for_its_routes(self, guarded: Served) -> None:
        headers = bearer("routes")
        picture(guarded.client.get("/sample", headers=headers))
        assert guarded.client.get("/metrics", headers=headers).status_code == 200
        for path in ("/models", "/models/tiny-grey", "/v2", "/interpolate?seeds=1,2", "/nowhere"):
            content = problem(guarded.client.get(path, headers=headers), "forbidden", 403)
            assert "the key routes may ask /metrics, /sample, not" in content["detail"]

    def test_a_key_is_for_its_models(self, guarded: Served) -> None:
        def ask(model: str) -> httpx.Response:
            return guarded.client.post("/sample", json={"model": model}, headers=bearer("models"))

        for model in ("tiny-grey", "tiny-grey@1", "tiny-latent@1"):
            assert answer(ask(model))["images"]
        for model in ("tiny-latent", "tiny-latent@2", "tiny-rgb"):
            content = problem(ask(model), "forbidden", 403)
            assert "may use tiny-grey, tiny-latent@1, not" in content["detail"]

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/sample?model=tiny-rgb"),
            ("GET", "/sample"),  # the default is another's
            ("GET", "/models/tiny-rgb"),
            ("GET", "/models/tiny-rgb/card"),
            ("GET", "/models/tiny-latent/versions/2"),
            ("GET", "/v1/models/tiny-rgb"),
            ("GET", "/v2/models/tiny-rgb.generate"),
            ("GET", "/v2/models/tiny-latent.generate/versions/2/stats"),
            ("POST", "/v2/models/tiny-rgb.generate/infer"),
            ("POST", "/log_prob?model=tiny-rgb"),
        ],
    )
    def test_others_are_refused_everywhere(self, guarded: Served, method: str, path: str) -> None:
        # Before the body is read, which here is none of what the route could read.
        headers = bearer("models") | {"Content-Type": "application/x-npy"}
        if "/v2/" in path:
            headers |= {"Content-Type": "application/octet-stream"}
        refusal(guarded.client.request(method, path, headers=headers), "forbidden", 403)

    def test_lists_tell_only_of_its_models(self, guarded: Served) -> None:
        client, headers = guarded.client, bearer("models")
        listed = answer(client.get("/models", headers=headers))
        assert [(m["name"], m["version"]) for m in listed["models"]] == [
            ("tiny-grey", 1),
            ("tiny-latent", 1),
        ]
        assert listed["default"] == "tiny-latent"
        openai_listed = answer(client.get("/v1/models", headers=headers))["data"]
        assert [model["id"] for model in openai_listed] == ["tiny-grey", "tiny-latent"]
        index = answer(client.post("/v2/repository/index", headers=headers))
        graphs = {(graph["name"], graph["version"]) for graph in index}
        assert graphs == {
            ("tiny-grey.generate", "1"),
            ("tiny-grey.log_prob", "1"),
            ("tiny-latent.generate", "1"),
        }
        stats = answer(client.get("/v2/models/stats", headers=headers))["model_stats"]
        assert {(graph["name"], graph["version"]) for graph in stats} == graphs


class TestQuotas:
    def sample(self, served: Served, n: int, **body: Any) -> httpx.Response:
        return served.client.post("/sample", json={"n": n, **body}, headers=bearer("rows"))

    def test_rows_are_used_up_and_the_wait_is_told(self, metered: Served) -> None:
        assert answer(self.sample(metered, 8))["images"]
        refused = self.sample(metered, 4)
        content = problem(refused, "quota-exceeded", 429)
        assert "0.01 per minute" in content["detail"]
        # Two rows are missing; one takes 100 minutes.
        assert 11_900 < int(refused.headers["retry-after"]) <= 12_000
        assert answer(self.sample(metered, 2))["images"]
        problem(self.sample(metered, 1), "quota-exceeded", 429)

    def test_what_can_never_be_is_no_matter_of_waiting(self, metered: Served) -> None:
        content = problem(self.sample(metered, 11), "forbidden", 403)
        assert "may run 10 rows at once, not 11" in content["detail"]
        assert len(answer(self.sample(metered, 10))["images"]) == 10

    def test_an_answer_tells_what_is_left(self, metered: Served) -> None:
        response = self.sample(metered, 3)
        assert response.headers["ratelimit-policy"] == '"rows";q=10;w=60000'
        assert response.headers["ratelimit"] == '"rows";r=7;t=18000'
        self.sample(metered, 7)
        refused = self.sample(metered, 1)
        assert refused.headers["ratelimit"] == '"rows";r=0;t=60000'
        assert "ratelimit" not in metered.client.get("/models", headers=bearer("all")).headers

    def test_who_has_none_left_is_refused_before_the_body_is_read(self, metered: Served) -> None:
        self.sample(metered, 10)
        head = f"POST /sample HTTP/1.1\r\nHost: x\r\nX-API-Key: {secret('rows')}\r\n"
        with socket.create_connection(metered.address) as connection:
            connection.sendall(f"{head}Content-Length: 16000000\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 429 ")

    def test_what_runs_nothing_costs_nothing(self, metered: Served) -> None:
        client, headers = metered.client, bearer("rows")
        etag = client.get(PUBLIC, headers=headers).headers["etag"]
        for _ in range(20):
            response = client.get(PUBLIC, headers=headers | {"If-None-Match": etag})
            assert response.status_code == 304
            answer(client.get("/models", headers=headers))
            assert self.sample(metered, 0).status_code == 422
        assert response.headers["ratelimit"].startswith('"rows";r=9;')
        self.sample(metered, 9)
        answer(client.get("/models", headers=headers))

    def test_a_request_that_has_begun_may_end(self, metered: Served) -> None:
        """Images and then their likelihoods: twice the rows."""
        asked = {"model": "tiny-rgb", "include": ["log_prob"]}
        assert "log_prob" in answer(self.sample(metered, 8, **asked))["images"][0]
        refused = self.sample(metered, 1)
        assert 42_000 - 100 < int(refused.headers["retry-after"]) <= 42_000  # 6 owed, 1 asked for

    def test_what_the_queue_refuses_is_not_charged(self, serve: Serve, tmp_path: Path) -> None:
        keys = write_keys(tmp_path)
        with serve(api_keys_file=keys, max_rows=4, max_queue_rows=4) as running:
            post = running.client.post
            with ThreadPoolExecutor(2) as clients, running.held():
                body = {"n": 4}
                clients.submit(post, "/sample", json=body, headers=bearer("all"))
                wait_until(lambda: running.is_busy)
                clients.submit(post, "/sample", json=body, headers=bearer("all"))
                wait_until(lambda: running.num_queued_rows == 4)
                refused = self.sample(running, 4)
                problem(refused, "overloaded", 503)
                assert refused.headers["ratelimit"] == '"rows";r=10;t=0'

    def test_each_key_has_its_own(self, metered: Served) -> None:
        self.sample(metered, 10)
        for _ in range(3):
            body = {"n": 30}
            answer(metered.client.post("/sample", json=body, headers=bearer("all")))

    def test_all_processes_count_together(self, start: Start, tmp_path: Path) -> None:
        process = start(processes=3, api_keys_file=write_keys(tmp_path), drain_window_s=0)
        statuses = []
        with process.ready_client():
            for _ in range(40):
                with process.client() as client:
                    response = client.post("/sample", headers=bearer("rows"))
                    statuses.append(response.status_code)
        assert statuses == [200] * 10 + [429] * 30
        process.terminate()
        assert process.wait() == 0
        answered = {line.split()[3] for line in process.log if '"status":200' in line}
        assert len(answered) > 1  # or nothing has been shown


class TestAnonymous:
    def test_who_sends_no_key_may_do_what_the_file_says(self, semi_open: Served) -> None:
        client = semi_open.client
        response = client.get(PUBLIC)
        picture(response)
        assert response.headers["cache-control"].startswith("public")
        assert [m["name"] for m in answer(client.get("/models"))["models"]] == ["tiny-latent"]

    @pytest.mark.parametrize("path", ["/sample?model=tiny-grey", "/metrics", "/v1/models"])
    def test_for_the_rest_it_takes_a_key(self, semi_open: Served, path: str) -> None:
        refused = semi_open.client.get(path)
        assert "with a key" in refusal(refused, "unauthenticated", 401)["detail"]
        assert refused.headers["www-authenticate"] == 'Bearer realm="ptheta"'
        assert semi_open.client.get(path, headers=bearer("all")).status_code == 200

    def test_a_wrong_key_is_not_taken_for_none(self, semi_open: Served) -> None:
        headers = {"X-API-Key": "wrong"}
        problem(semi_open.client.get(PUBLIC, headers=headers), "unauthenticated", 401)

    def test_they_share_a_quota(self, semi_open: Served) -> None:
        picture(semi_open.client.get(f"{PUBLIC}&n=4"))
        problem(semi_open.client.get(PUBLIC), "quota-exceeded", 429)
        picture(semi_open.client.get(PUBLIC, headers=bearer("all")))


class TestBrowsers:
    def test_a_picture_for_one_key_is_not_kept_for_others(self, guarded: Served) -> None:
        response = guarded.client.get(PUBLIC, headers=bearer("all"))
        assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
        for path in ("/sample?model=tiny-latent&seed=1", "/models", "/models/tiny-grey/card"):
            response = guarded.client.get(path, headers=bearer("all"))
            assert response.headers["cache-control"].startswith("private")
            assert "public" not in response.headers["cache-control"]

    def test_a_page_of_another_site_may_ask_whether_it_may_send_a_key(
        self, guarded: Served
    ) -> None:
        headers = {
            "Origin": "https://example.org",
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "authorization",
        }
        response = guarded.client.options("/sample", headers=headers)
        assert response.status_code == 204
        assert response.content == b""
        assert response.headers["access-control-allow-origin"] == "*"
        assert "Authorization" in response.headers["access-control-allow-headers"]
        pictured = guarded.client.get("/sample", headers=bearer("all"))
        assert pictured.headers["access-control-allow-origin"] == "*"

    def test_posts_of_other_sites_are_left_to_the_browser_to_refuse(self, guarded: Served) -> None:
        headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
        response = guarded.client.options("/sample", headers=headers)
        problem(response, "method-not-allowed", 405)
        assert "access-control-allow-origin" not in response.headers


class TestTelling:
    def test_the_log_has_names_and_never_a_key(
        self, guarded: Served, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        guarded.client.get("/models", headers=bearer("all"))
        guarded.client.get("/models", headers=bearer("routes"))
        guarded.client.get("/models", headers={"X-API-Key": "wrong-but-secret"})
        guarded.client.get("/livez", headers=bearer("all") | {"X-Request-ID": "the-last"})
        wait_until(lambda: "the-last" in caplog.text)
        messages = [r.getMessage() for r in caplog.records if r.name == "service.access"]
        records = [json.loads(message) for message in messages]
        assert [(record["status"], record.get("key")) for record in records] == [
            (200, "all"),
            (403, "routes"),
            (401, None),
            (200, None),
        ]
        assert "secret" not in caplog.text
        assert "key-of" not in caplog.text

    def test_metrics_tell_refusals_and_rows(self, metered: Served) -> None:
        client = metered.client
        client.get("/sample")
        client.get("/models", headers=bearer("routes"))
        for n in (7, 4, 2):
            client.post("/sample", json={"n": n}, headers=bearer("rows"))
        client.post("/sample", json={"n": 50}, headers=bearer("all"))
        text = client.get("/metrics", headers=bearer("routes")).text
        for line in (
            'ptheta_rejections_total{reason="unauthenticated"} 1.0',
            'ptheta_rejections_total{reason="forbidden"} 1.0',
            'ptheta_rejections_total{reason="quota-exceeded"} 1.0',
            'ptheta_requests_total{method="GET",route="/sample",status="401"} 1.0',
            'ptheta_requests_total{method="POST",route="/sample",status="429"} 1.0',
            'ptheta_key_rows_total{key="rows"} 9.0',
            'ptheta_key_rows_total{key="all"} 50.0',
        ):
            assert f"{line}\n" in text
        assert 'key="routes"' not in text

    @pytest.mark.parametrize("is_semi_open", [False, True])
    def test_the_document_says_how_to_send_a_key(
        self, request: pytest.FixtureRequest, is_semi_open: bool
    ) -> None:
        served: Served = request.getfixturevalue("semi_open" if is_semi_open else "guarded")
        document = answer(served.client.get("/openapi.json"))
        schemes = document["components"]["securitySchemes"]
        assert schemes["bearer"]["scheme"] == "bearer"
        assert schemes["header"]["name"] == "X-API-Key"
        ways: list[dict[str, Any]] = [{"bearer": []}, {"header": []}]
        assert document["security"] == [*ways, {}] if is_semi_open else ways
        for path, methods in document["paths"].items():
            for operation in methods.values():
                assert ("security" in operation) == is_open(path)
                refusals = {"401", "403", "429"} & operation["responses"].keys()
                assert len(refusals) == (0 if is_open(path) else 3)


class TestClients:
    def test_ours_has_an_error_for_each(self, metered: Served) -> None:
        def connect(key: str | None) -> Client:
            return Client(metered.url, api_key=key, retry=Retry(max_attempts=1))

        with connect(None) as client, pytest.raises(UnauthenticatedError):
            client.sample()
        with connect("wrong") as client, pytest.raises(UnauthenticatedError, match="not known"):
            client.sample()
        with connect(secret("both")) as client, pytest.raises(ForbiddenError):
            client.sample("tiny-rgb")
        with connect(secret("both")) as client:
            assert len(client.sample("tiny-latent", n=5).images) == 5
            with pytest.raises(QuotaExceededError) as caught:
                client.sample("tiny-latent")
        assert caught.value.retry_after_s
        assert caught.value.retry_after_s > 5000

    def test_openai_raises_what_it_has_for_each(self, metered: Served) -> None:
        def generate(key: str, **fields: Any) -> Any:
            url = f"{metered.url}/v1"
            with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
                return client.images.generate(prompt="", **{"model": "tiny-latent"} | fields)

        with pytest.raises(openai.AuthenticationError, match="not known"):
            generate("wrong")
        with pytest.raises(openai.PermissionDeniedError, match="may use tiny-latent"):
            generate(secret("both"), model="tiny-rgb")
        assert len(generate(secret("both"), n=5).data) == 5
        with pytest.raises(openai.RateLimitError, match="used up") as caught:
            generate(secret("both"))
        assert caught.value.code == "quota-exceeded"

    def test_tritonclient_shows_the_reason_and_can_send_a_key(self, metered: Served) -> None:
        host, port = metered.address
        with triton.InferenceServerClient(f"{host}:{port}") as client:
            assert client.is_server_live()
            with pytest.raises(InferenceServerException, match="an API key is needed"):
                client.get_server_metadata()
            for headers in (bearer("both"), {"X-API-Key": secret("both")}):
                told = client.get_server_metadata(headers=headers)
                assert told["name"] == "ptheta"
