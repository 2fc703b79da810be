"""POST /v2/models/{name}/infer on the wire: what no well-behaved client sends."""

import gzip
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.answers import answer, invalid, problem
from tests.service.bundles import HEIGHT, LATENT_DIM, WIDTH
from tests.service.conftest import Serve
from tests.service.server import wait_until

PATH = "/v2/models/tiny-latent.generate/infer"
NOISE = np.arange(2 * LATENT_DIM, dtype=np.float32).reshape(2, LATENT_DIM)
MAX_BODY_BYTES = 20_000


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[httpx.Client]:
    """Return a client of a server of small bodies."""
    with serve(max_body_bytes=MAX_BODY_BYTES) as running:
        yield running.client


def tensor(**members: Any) -> dict[str, Any]:
    return {"name": "noise", "shape": list(NOISE.shape), "datatype": "FP32"} | members


def as_json(data: Any, **members: Any) -> dict[str, Any]:
    return {"inputs": [tensor(data=data)], **members}


def send_bytes(
    client: httpx.Client, request: dict[str, Any], data: bytes, **headers: str
) -> httpx.Response:
    head = json.dumps(request).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    return client.post(PATH, content=head + data, headers=length | headers)


def sized(num_bytes: int) -> dict[str, Any]:
    return {"inputs": [tensor(parameters={"binary_data_size": num_bytes})]}


def images(response: httpx.Response) -> list[float]:
    (output,) = answer(response)["outputs"]
    numbers: list[float] = output["data"]
    return numbers


class TestData:
    def test_it_may_be_flat_or_nested(self, client: httpx.Client) -> None:
        flat = client.post(PATH, json=as_json(NOISE.ravel().tolist()))
        nested = client.post(PATH, json=as_json(NOISE.tolist()))
        assert images(flat) == images(nested)

    def test_bytes_lead_to_the_same_numbers(self, client: httpx.Client) -> None:
        plain = client.post(PATH, json=as_json(NOISE.tolist()))
        # A longer name of the request moves the data to every alignment.
        for padding in range(8):
            request = sized(NOISE.nbytes) | {"id": "x" * padding}
            response = send_bytes(client, request, NOISE.astype("<f4").tobytes())
            assert images(response) == images(plain)

    @pytest.mark.parametrize(
        "data",
        [
            [1, 2, 3],
            [[1, 2, 3], [4, 5]],
            ["1", "2", "3", "4", "5", "6"],
            [None] * 6,
            [True] * 6,
            [10**400] * 6,
            {"a": 1},
            [],
        ],
        ids=str,
    )
    def test_what_does_not_fill_the_shape_with_numbers_is_refused(
        self, client: httpx.Client, data: Any
    ) -> None:
        pointer = "/inputs/0/data" if isinstance(data, dict) else "/inputs/0"
        invalid(client.post(PATH, json=as_json(data)), pointer)

    def test_numbers_that_become_infinite_are_refused(self, client: httpx.Client) -> None:
        invalid(client.post(PATH, json=as_json([1e300] * 6)), "/inputs")

    @pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
    def test_json_has_no_infinity(self, client: httpx.Client, text: str) -> None:
        body = json.dumps(as_json([0] * 6)).replace("[0,", f"[{text},")
        response = client.post(PATH, content=body)
        assert response.status_code in {400, 422}
        assert response.json()["type"] == "invalid-request"

    @pytest.mark.parametrize(
        "shape", [[2, -3], [6], [], [2, 3, 1], [2**62, 2**62], [3, 2]], ids=str
    )
    def test_shapes_are_checked_before_anything_is_made(
        self, client: httpx.Client, shape: list[int]
    ) -> None:
        request = as_json([0] * 6)
        request["inputs"][0]["shape"] = shape
        problem(client.post(PATH, json=request), "invalid-request", 422)

    @pytest.mark.parametrize("has_both", [True, False])
    def test_data_is_in_one_place(self, client: httpx.Client, has_both: bool) -> None:
        request = sized(NOISE.nbytes)
        if has_both:
            request["inputs"][0]["data"] = [0] * 6
        else:
            del request["inputs"][0]["parameters"]
        invalid(send_bytes(client, request, NOISE.tobytes()), "/inputs/0")

    def test_an_input_is_given_once(self, client: httpx.Client) -> None:
        twice = {"inputs": [tensor(data=[0] * 6)] * 2}
        assert "given twice" in invalid(client.post(PATH, json=twice), "/inputs/1")["detail"]

    def test_a_deeply_nested_body_is_no_danger(self, client: httpx.Client) -> None:
        body = json.dumps(as_json([0])).replace("[0]", "[" * 5000 + "]" * 5000)
        problem(client.post(PATH, content=body), "invalid-request", 400)
        body = json.dumps(as_json([0])).replace("[0]", "[" * 100 + "]" * 100)
        invalid(client.post(PATH, content=body), "/inputs/0")


class TestBytes:
    @pytest.mark.parametrize("length", ["0", "-1", "abc", "1e2", "99999", "9" * 400])
    def test_a_wrong_length_of_the_header_is_refused(
        self, client: httpx.Client, length: str
    ) -> None:
        headers = {"Inference-Header-Content-Length": length}
        body = json.dumps(as_json([0] * 6)).encode()
        problem(client.post(PATH, content=body, headers=headers), "invalid-request", 400)

    def test_a_header_that_ends_too_early_is_no_json(self, client: httpx.Client) -> None:
        headers = {"Inference-Header-Content-Length": "10"}
        body = json.dumps(as_json([0] * 6)).encode()
        problem(client.post(PATH, content=body, headers=headers), "invalid-request", 400)

    def test_bytes_that_are_missing_are_told(self, client: httpx.Client) -> None:
        response = send_bytes(client, sized(24), NOISE.tobytes()[:20])
        assert "only 20 of its 24" in invalid(response, "/inputs/0")["detail"]

    def test_bytes_that_are_left_over_are_told(self, client: httpx.Client) -> None:
        response = send_bytes(client, sized(24), NOISE.tobytes() + b"1234")
        assert "4 bytes follow" in problem(response, "invalid-request", 400)["detail"]

    @pytest.mark.parametrize("num_bytes", [0, 20, 23, 28])
    def test_their_number_must_fill_the_shape(self, client: httpx.Client, num_bytes: int) -> None:
        invalid(send_bytes(client, sized(num_bytes), bytes(num_bytes)), "/inputs/0")


class TestCompression:
    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "identity"])
    def test_known_ones_are_undone(self, client: httpx.Client, encoding: str) -> None:
        body = json.dumps(as_json(NOISE.tolist())).encode()
        packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)
        response = client.post(PATH, content=packed(body), headers={"Content-Encoding": encoding})
        assert images(response) == images(client.post(PATH, content=body))

    def test_an_unknown_one_is_refused(self, client: httpx.Client) -> None:
        response = client.post(PATH, content=b"x", headers={"Content-Encoding": "br"})
        problem(response, "unsupported-media-type", 415)

    @pytest.mark.parametrize("damage", ["half", "tail", "none at all"])
    def test_damage_is_told(self, client: httpx.Client, damage: str) -> None:
        whole = gzip.compress(json.dumps(as_json(NOISE.tolist())).encode())
        body = {"half": whole[:40], "tail": whole + b"x", "none at all": b"{}"}[damage]
        response = client.post(PATH, content=body, headers={"Content-Encoding": "gzip"})
        problem(response, "invalid-request", 400)

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    def test_a_bomb_does_not_go_off(self, client: httpx.Client, encoding: str) -> None:
        pack = gzip.compress if encoding == "gzip" else zlib.compress
        bomb = pack(bytes(10 * 2**20))
        assert len(bomb) < MAX_BODY_BYTES
        response = client.post(PATH, content=bomb, headers={"Content-Encoding": encoding})
        problem(response, "payload-too-large", 413)


class TestProtocol:
    @pytest.mark.parametrize(
        "media_type",
        ["application/json", "application/octet-stream", "application/x-www-form-urlencoded", None],
    )
    def test_bodies_need_no_media_type(self, client: httpx.Client, media_type: str | None) -> None:
        headers = {"Content-Type": media_type} if media_type else {}
        body = json.dumps(as_json(NOISE.tolist())).encode()
        assert images(client.post(PATH, content=body, headers=headers))

    def test_a_foreign_media_type_is_refused(self, client: httpx.Client) -> None:
        response = client.post(PATH, content=b"x", headers={"Content-Type": "image/png"})
        problem(response, "unsupported-media-type", 415)

    def test_an_answer_tells_model_and_timing(self, client: httpx.Client) -> None:
        response = client.post(PATH, json=as_json(NOISE.tolist(), id="a"))
        assert response.headers["x-model"] == "tiny-latent@2"
        assert response.headers["server-timing"]
        content = answer(response)
        assert (
            content.items()
            >= {
                "model_name": "tiny-latent.generate",
                "model_version": "2",
                "id": "a",
            }.items()
        )

    def test_a_binary_answer_tells_where_its_json_ends(self, client: httpx.Client) -> None:
        request = as_json(NOISE.tolist(), parameters={"binary_data_output": True})
        response = client.post(PATH, json=request)
        length = int(response.headers["inference-header-content-length"])
        assert response.headers["content-type"] == "application/octet-stream"
        (output,) = json.loads(response.content[:length])["outputs"]
        data = response.content[length:]
        assert output["parameters"] == {"binary_data_size": len(data)}
        expected = np.array(images(client.post(PATH, json=as_json(NOISE.tolist()))), np.float32)
        np.testing.assert_array_equal(np.frombuffer(data, "<f4"), expected)

    def test_the_server_is_described_with_and_without_a_slash(self, client: httpx.Client) -> None:
        assert answer(client.get("/v2")) == answer(client.get("/v2/"))

    def test_the_index_can_leave_out_what_is_broken(self, client: httpx.Client) -> None:
        everything = client.post("/v2/repository/index")
        assert client.post("/v2/repository/index", json={"ready": True}).json() == everything.json()
        invalid(client.post("/v2/repository/index", json={"name": "a"}), "/name")

    def test_other_methods_are_refused(self, client: httpx.Client) -> None:
        problem(client.delete("/v2/models/tiny-latent.generate"), "method-not-allowed", 405)
        told = client.get(PATH)
        problem(told, "method-not-allowed", 405)
        assert told.headers["allow"] == "POST"


def test_calls_wait_in_the_queue_of_all_other_routes(serve: Serve) -> None:
    sample = {"model": "tiny-latent", "n": 2}
    with serve(max_queue_rows=2, max_rows=2) as running, ThreadPoolExecutor(2) as clients:
        with running.held():
            first = clients.submit(running.client.post, "/sample", json=sample)
            wait_until(lambda: running.is_busy)
            second = clients.submit(running.client.post, PATH, json=as_json(NOISE.tolist()))
            wait_until(lambda: running.num_queued_rows == 2)
            problem(running.client.post(PATH, content=b"nonsense"), "overloaded", 503)
            problem(running.client.post("/sample", json=sample), "overloaded", 503)
        assert first.result().status_code == 200
        assert len(images(second.result())) == 2 * HEIGHT * WIDTH
