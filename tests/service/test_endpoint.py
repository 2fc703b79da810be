"""Bodies within limits of size and time, deadlines, full queues, departed clients."""

import gc
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tests.service.answers import answer, npy, problem
from tests.service.bundles import HEIGHT, WIDTH
from tests.service.conftest import Serve
from tests.service.server import Served, wait_until

pytestmark = pytest.mark.timeout(60)

BLACK = npy(np.zeros((1, HEIGHT, WIDTH), np.uint8))
POST_ROUTES = ("/sample", "/interpolate", "/log_prob")


@pytest.fixture(scope="module")
def small(serve: Serve) -> Iterator[Served]:
    """Return a server with small limits."""
    with serve(max_body_bytes=2000, body_timeout_s=0.2, max_rows=4, max_queue_rows=4) as running:
        yield running


def raw_request(running: Served, content: bytes) -> socket.socket:
    connection = socket.create_connection(running.address, timeout=30)
    connection.sendall(content)
    return connection


def raw_answer(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(65_536), b""))


class TestJson:
    @pytest.mark.parametrize("path", [*POST_ROUTES, "/complete", "/encode", "/reconstruct"])
    def test_fields_in_the_query_are_refused_rather_than_passed_over(
        self, client: httpx.Client, path: str
    ) -> None:
        content = problem(client.post(path, params={"n": 2}, json={}), "invalid-request", 422)
        assert "?n" in content["detail"]
        assert "body" in content["detail"]

    def test_a_form_has_all_its_fields_in_the_body(self, client: httpx.Client) -> None:
        files = [("images", ("a.png", b"", "image/png"))]
        refused = client.post("/log_prob", params={"per_dim": "true"}, files=files)
        assert "?per_dim" in problem(refused, "invalid-request", 422)["detail"]

    @pytest.mark.parametrize("path", POST_ROUTES)
    @pytest.mark.parametrize(
        "body", [b"{", b"hello", b"{'n': 1}", b'{"n": 1} x', b"\xff\xfe", b'{"n": 01}', b"nan"]
    )
    def test_what_is_no_json_is_malformed(
        self, client: httpx.Client, path: str, body: bytes
    ) -> None:
        content = problem(client.post(path, content=body), "invalid-request", 400)
        assert "JSON" in content["detail"]

    @pytest.mark.parametrize("path", POST_ROUTES)
    def test_deep_nesting_is_malformed(self, client: httpx.Client, path: str) -> None:
        response = client.post(path, content=b'{"images": ' + b"[" * 100_000)
        problem(response, "invalid-request", 400)

    @pytest.mark.parametrize("path", POST_ROUTES)
    @pytest.mark.parametrize("body", ["[]", "null", "5", '"n"', "true"])
    def test_what_is_no_object_is_refused(self, client: httpx.Client, path: str, body: str) -> None:
        problem(client.post(path, content=body), "invalid-request", 422)

    @pytest.mark.parametrize("path", ["/sample", "/interpolate"])
    @pytest.mark.parametrize("content_type", ["text/plain", "image/png", "multipart/form-data"])
    def test_other_media_types_are_refused(
        self, client: httpx.Client, path: str, content_type: str
    ) -> None:
        response = client.post(path, content=b"{}", headers={"Content-Type": content_type})
        content = problem(response, "unsupported-media-type", 415)
        assert content_type in content["detail"]
        assert content["possible"] == ["application/json"]

    @pytest.mark.parametrize(
        "content_type",
        [
            "application/json",
            "application/json; charset=utf-8",
            "APPLICATION/JSON",
            "application/x-www-form-urlencoded",
            "application/vnd.api+json",
        ],
    )
    def test_json_is_read_under_the_names_that_clients_send(
        self, client: httpx.Client, content_type: str
    ) -> None:
        response = client.post(
            "/sample", content=b'{"n": 2}', headers={"Content-Type": content_type}
        )
        assert len(answer(response)["images"]) == 2

    def test_json_needs_no_content_type(self, client: httpx.Client) -> None:
        response = client.post("/sample", content=b'{"n": 2}')
        assert "content-type" not in response.request.headers
        assert len(answer(response)["images"]) == 2


class TestSize:
    @pytest.mark.parametrize("path", POST_ROUTES)
    def test_a_body_that_says_it_is_too_large_is_refused_unread(
        self, small: Served, path: str
    ) -> None:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            "Content-Type: application/json\r\nContent-Length: 2001\r\n\r\n"
        )
        raw = raw_answer(raw_request(small, head.encode()))  # not a byte of the body is sent
        assert raw.startswith(b"HTTP/1.1 413 ")
        content = json.loads(raw.partition(b"\r\n\r\n")[2])
        assert (content["type"], content["limit_bytes"]) == ("payload-too-large", 2000)

    @pytest.mark.parametrize("path", POST_ROUTES)
    def test_a_body_of_unknown_length_is_refused_when_it_is_too_large(
        self, small: Served, path: str
    ) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(21):
                yield b" " * 100

        with httpx.Client(base_url=small.url, trust_env=False) as client:
            response = client.post(path, content=chunks())
        assert response.request.headers["transfer-encoding"] == "chunked"
        problem(response, "payload-too-large", 413)

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_at_the_limit_is_read(self, small: Served, chunked: bool) -> None:
        body = b'{"n": 2}'.ljust(2000)
        content = iter([body[:1000], body[1000:]]) if chunked else body
        assert len(answer(small.client.post("/sample", content=content))["images"]) == 2

    def test_a_body_in_single_bytes_is_read(self, small: Served) -> None:
        body = json.dumps({"n": 2, "seed": 7}).encode()
        whole = small.client.post("/sample", content=body)
        pieces = small.client.post("/sample", content=(bytes([byte]) for byte in body))
        assert pieces.content == whole.content

    def test_a_large_array_is_refused_by_its_bytes(self, small: Served) -> None:
        content = npy(np.zeros((100, HEIGHT, WIDTH), np.uint8))
        response = small.client.post(
            "/log_prob", content=content, headers={"Content-Type": "application/x-npy"}
        )
        problem(response, "payload-too-large", 413)


class TestTime:
    @pytest.mark.parametrize("path", POST_ROUTES)
    def test_a_body_that_does_not_come_is_given_up(self, small: Served, path: str) -> None:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        raw = raw_answer(raw_request(small, head.encode()))
        assert raw.startswith(b"HTTP/1.1 408 ")
        assert json.loads(raw.partition(b"\r\n\r\n")[2])["type"] == "slow-request"

    def test_a_slow_body_does_not_keep_others_waiting(self, small: Served) -> None:
        head = b"POST /sample HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        with raw_request(small, head):
            assert answer(small.client.post("/sample"))["images"]

    def test_a_deadline_passes_while_the_worker_is_busy(self, small: Served) -> None:
        """The worker stays busy until all have been answered: only a timer can tell."""
        black = np.zeros((1, HEIGHT, WIDTH), int).tolist()
        anchors = [{"seed": 1}, {"seed": 2}]
        requests: list[tuple[str, dict[str, Any]]] = [
            ("/sample", {}),
            ("/sample", {"model": "tiny-binary", "include": ["log_prob"]}),
            ("/interpolate", {"anchors": anchors, "steps": 2}),
            ("/log_prob", {"model": "tiny-binary", "images": black}),
        ]
        with small.held():
            for path, body in requests:
                response = small.client.post(path, json=body | {"timeout_ms": 20})
                content = problem(response, "deadline-exceeded", 504)
                assert "20 ms" in content["detail"]
            response = small.client.get("/sample", params={"timeout_ms": 20})
            problem(response, "deadline-exceeded", 504)
            assert small.num_queued_rows == 0
        assert answer(small.client.post("/sample"))["images"]

    def test_the_server_has_a_deadline_of_its_own_and_a_longest(self, serve: Serve) -> None:
        with serve(default_timeout_s=0.02, max_timeout_s=0.04) as hasty, hasty.held():
            content = problem(hasty.client.post("/sample"), "deadline-exceeded", 504)
            assert "20 ms" in content["detail"]
            response = hasty.client.post("/sample", json={"timeout_ms": 60_000})
            assert "40 ms" in problem(response, "deadline-exceeded", 504)["detail"]


class TestRefusedBodies:
    @pytest.mark.parametrize("connection", ["keep-alive", "close"])
    def test_a_client_that_sends_on_still_gets_the_answer(
        self, small: Served, connection: str
    ) -> None:
        """More than the sockets' buffers hold: left unread, it would end in a broken pipe."""
        num_bytes = 2**25
        head = (
            f"POST /log_prob HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n"
            f"Content-Type: application/x-npy\r\nContent-Length: {num_bytes}\r\n\r\n"
        )
        with raw_request(small, head.encode()) as sending:
            sending.sendall(b"x" * num_bytes)
            assert sending.recv(1000).startswith(b"HTTP/1.1 413 ")


class TestQueue:
    def test_a_full_queue_refuses_at_once_and_serves_what_it_took(self, small: Served) -> None:
        body = {"model": "tiny-grey", "n": 4, "seed": 1}
        with ThreadPoolExecutor() as clients:
            with small.held():
                running = clients.submit(small.client.post, "/sample", json=body)
                # A first batch is granted; from then on calls wait in the queue.
                wait_until(lambda: small.is_busy)
                waiting = clients.submit(small.client.post, "/sample", json=body)
                wait_until(lambda: small.num_queued_rows == 4)
                refused = small.client.post("/sample", json=body)
                content = problem(refused, "overloaded", 503)
                assert "4 images wait" in content["detail"]
                assert int(refused.headers["retry-after"]) >= 1
                # Another graph has a queue of its own, and health is always told.
                assert small.client.get("/livez").status_code == 200
                assert small.client.get("/readyz").status_code == 200
            assert running.result().content == waiting.result().content
        assert answer(small.client.post("/sample", json=body))["images"]

    def test_images_for_a_full_queue_are_not_even_decoded(self, small: Served) -> None:
        """Were they, these would be refused as no images."""
        graph = small.service.catalog.find("tiny-binary").graphs["log_prob"]
        graph.batcher.num_queued_rows += 4
        try:
            npy = {"Content-Type": "application/x-npy"}
            url = "/log_prob?model=tiny-binary"
            problem(small.client.post(url, content=b"nonsense", headers=npy), "overloaded", 503)
            body = {"model": "tiny-binary", "images": ["nonsense"]}
            problem(small.client.post("/log_prob", json=body), "overloaded", 503)
        finally:
            graph.batcher.num_queued_rows -= 4
        problem(small.client.post("/log_prob", json=body), "invalid-request", 422)


class TestDeparture:
    @pytest.mark.parametrize(
        ("method", "num_spaces", "first"),
        [("GET", 0, 0), ("POST", 0, 0), ("POST", 100_000, 0), ("POST", 100_000, 10)],
        ids=["get", "post", "large", "large in two pieces"],
    )
    def test_rows_of_a_client_that_has_gone_are_not_run(
        self, server: Served, method: str, num_spaces: int, first: int
    ) -> None:
        head = f"{method} /sample?model=tiny-rgb&n=3 HTTP/1.1\r\nHost: x\r\n"
        body = ""
        if method == "POST":
            body = f'{{"model": "tiny-rgb", "n": 3{" " * num_spaces}}}'
            head = head.replace("?model=tiny-rgb&n=3", "")
            head = f"{head}Content-Length: {len(body)}\r\n"
        content = f"{head}\r\n{body}"
        cut = len(content) - len(body) + first if first else 0
        with ThreadPoolExecutor() as clients, server.held():
            running = clients.submit(server.client.post, "/sample", json={"model": "tiny-rgb"})
            wait_until(lambda: server.is_busy)
            gone = raw_request(server, content[:cut].encode())
            time.sleep(0.05 if cut else 0)  # the pieces are read apart
            gone.sendall(content[cut:].encode())
            wait_until(lambda: server.num_queued_rows == 3)
            gone.close()
            wait_until(lambda: server.num_queued_rows == 0)
            assert not running.done()  # the worker was busy all the while
        assert answer(running.result())["images"]

    def test_a_client_that_goes_in_the_middle_of_its_body_harms_nobody(
        self, server: Served
    ) -> None:
        head = b"POST /sample HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        for _ in range(20):
            raw_request(server, head).close()
        assert answer(server.client.post("/sample"))["images"]


class TestProtocol:
    def test_http_1_0_is_answered_and_closed(self, server: Served) -> None:
        raw = raw_answer(raw_request(server, b"GET /livez HTTP/1.0\r\n\r\n"))
        assert raw.startswith(b"HTTP/1.1 200 ")

    def test_pipelined_requests_are_answered_in_order(self, server: Served) -> None:
        one = "GET /sample?seed={}&format=npy HTTP/1.1\r\nHost: x\r\n{}\r\n"
        content = "".join(
            one.format(seed, "Connection: close\r\n" if seed == 4 else "") for seed in range(5)
        )
        raw = raw_answer(raw_request(server, content.encode()))
        seeds = [line for line in raw.split(b"\r\n") if line.startswith(b"x-seed")]
        assert seeds == [f"x-seed: {seed}".encode() for seed in range(5)]

    def test_a_client_may_wait_for_leave_to_send(self, server: Served) -> None:
        body = b'{"seed": 7}'
        head = (
            "POST /sample HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        connection = raw_request(server, head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert b"HTTP/1.1 200 " in raw_answer(connection)

    def test_what_is_no_http_is_refused_and_harms_nobody(self, server: Served) -> None:
        raw = raw_answer(raw_request(server, b"\x16\x03\x01\x02\x00 hello\r\n\r\n"))
        head, _, body = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in head
        content = json.loads(body)
        assert (content["type"], content["status"]) == ("invalid-request", 400)
        assert content["request_id"]
        assert answer(server.client.get("/livez"))


class TestHead:
    @pytest.mark.parametrize(
        "path", ["/sample?seed=1", "/models", "/models/tiny-latent/preview", "/livez", "/", "/v2"]
    )
    def test_it_has_the_headers_of_get_and_no_body(self, client: httpx.Client, path: str) -> None:
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code == 200
        assert head.content == b""
        for name in ("content-type", "content-length", "etag", "cache-control"):
            assert head.headers.get(name) == get.headers.get(name)

    def test_the_connection_stays_in_step(self, server: Served) -> None:
        content = b"HEAD /sample HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n"
        raw = raw_answer(raw_request(server, content + b"Connection: close\r\n\r\n"))
        assert raw.count(b"HTTP/1.1 200 OK") == 2
        assert raw.endswith(b"}")

    def test_what_only_takes_a_body_does_not_answer_it(self, client: httpx.Client) -> None:
        response = client.head("/log_prob")
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"


class TestOtherSites:
    @pytest.mark.parametrize(
        "path",
        [
            "/sample",
            "/sample?seed=1&model=tiny-latent@2",
            "/interpolate?seeds=1,2",
            "/models",
            "/models/tiny-latent/preview",
            "/models/tiny-latent/film",
            "/models/tiny-latent/card",
        ],
    )
    def test_they_may_show_what_a_get_route_answers(self, client: httpx.Client, path: str) -> None:
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert "content-security-policy" not in response.headers

    def test_they_may_where_their_copy_is_still_right(self, client: httpx.Client) -> None:
        path = "/sample?seed=1&model=tiny-latent@2"
        known = {"If-None-Match": client.get(path).headers["etag"]}
        again = client.get(path, headers=known)
        assert again.status_code == 304
        assert again.headers["access-control-allow-origin"] == "*"

    @pytest.mark.parametrize("path", ["/sample", "/log_prob"])
    def test_they_cannot_post(self, client: httpx.Client, path: str) -> None:
        headers = {"Origin": "http://elsewhere.example"}
        response = client.post(path, json={}, headers=headers)
        assert "access-control-allow-origin" not in response.headers


class TestLeftovers:
    @pytest.mark.parametrize(
        ("status", "method", "path", "body"),
        [
            (200, "POST", "/sample", b'{"format": "png"}'),
            (200, "POST", "/log_prob?model=tiny-binary&format=npy", BLACK),
            (200, "GET", "/sample?format=png", b""),
            (200, "HEAD", "/sample", b""),
            (200, "GET", "/models", b""),
            (200, "GET", "/models/tiny-binary", b""),
            (422, "POST", "/sample", b'{"n": 0}'),
            (404, "POST", "/sample", b'{"model": "none"}'),
            (404, "GET", "/nowhere", b""),
        ],
    )
    def test_a_request_is_gone_with_its_answer(
        self, server: Served, status: int, method: str, path: str, body: bytes
    ) -> None:
        """Nothing of it waits for Python to look for objects that hold each other."""
        headers = {"content-type": "application/x-npy" if body == BLACK else "application/json"}

        def ask() -> None:
            answered = server.client.request(method, path, content=body, headers=headers)
            assert answered.status_code == status, answered.text

        def num_requests() -> int:
            return sum(isinstance(each, RequestResponseCycle) for each in gc.get_objects())

        ask()
        gc.collect()
        before = num_requests()
        gc.disable()
        try:
            for _ in range(20):
                ask()
            wait_until(lambda: not server.server.server_state.tasks)
            assert num_requests() <= before  # each connection keeps its last
        finally:
            gc.enable()
