"""GET /models: all that a client may want to know, and the files."""

import httpx
import pytest

from service.manifest import read_manifest, sha256_of
from tests.service.answers import answer, problem
from tests.service.conftest import Serve


def test_the_newest_version_of_every_model_is_listed(client: httpx.Client) -> None:
    listed = answer(client.get("/models"))["models"]
    assert [(model["name"], model["version"], model["versions"]) for model in listed] == [
        ("tiny-binary", 1, [1]),
        ("tiny-grey", 1, [1]),
        ("tiny-latent", 2, [1, 2]),
        ("tiny-rgb", 1, [1]),
    ]


@pytest.mark.parametrize(
    ("settings", "name"),
    [({}, "tiny-latent"), ({"default_model": "tiny-grey@1"}, "tiny-grey@1")],
)
def test_the_default_model_is_told(serve: Serve, settings: dict[str, str], name: str) -> None:
    with serve(**settings) as running:
        assert answer(running.client.get("/models"))["default"] == name


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("tiny-binary", ["temperature", "per_dim"]),
        ("tiny-grey", []),
        ("tiny-latent", ["truncation"]),
        ("tiny-rgb", ["truncation", "per_dim"]),
    ],
)
def test_a_description_names_the_fields_that_not_every_model_takes(
    client: httpx.Client, model: str, options: list[str]
) -> None:
    assert answer(client.get(f"/models/{model}"))["options"] == options


def test_a_description_says_what_the_manifest_says(
    client: httpx.Client, tiny_store: object
) -> None:
    content = answer(client.get("/models/tiny-binary"))
    assert content["density"] == "exact"
    assert content["image"] == {"shape": [1, 4, 8], "values": "binary"}
    assert content["noise"] == {"prior": "uniform", "shape": [1, 4, 8], "latent": False}
    assert content["operations"] == ["sample", "log_prob"]
    assert content["labels"] == []
    assert content.keys() >= {
        "description",
        "family",
        "files",
        "graphs",
        "limits",
        "links",
        "metrics",
        "num_parameters",
        "ordering",
        "training",
    }
    assert content["training"]["data"]["licence"]


def test_the_hashes_are_those_of_the_files(client: httpx.Client, serve: Serve) -> None:
    with serve() as running:
        folder = running.service.settings.model_store / "tiny-binary/1"
    content = answer(client.get("/models/tiny-binary/versions/1"))
    for graph in content["graphs"].values():
        assert graph["sha256"] == sha256_of(folder / graph["file"])
    assert content["files"] == read_manifest(folder).files


def test_the_limits_are_those_of_the_server(serve: Serve) -> None:
    with serve(max_rows=5, max_body_bytes=10_000, max_timeout_s=2.5) as running:
        limits = answer(running.client.get("/models/tiny-grey"))["limits"]
    assert limits == {"max_rows": 5, "max_body_bytes": 10_000, "max_timeout_ms": 2500}


def test_a_name_means_the_newest_version(client: httpx.Client) -> None:
    newest = answer(client.get("/models/tiny-latent"))
    assert newest == answer(client.get("/models/tiny-latent/versions/2"))
    assert answer(client.get("/models/tiny-latent/versions/1"))["version"] == 1


@pytest.mark.parametrize(
    "path",
    [
        "/models/nobody",
        "/models/nobody/card",
        "/models/tiny-latent@1",
        "/models/tiny-latent@1/card",
        "/models/tiny-latent/versions/9",
        "/models/tiny-latent/versions/one",
        "/models/tiny-latent/versions/1@1",
        "/models/tiny-latent/versions/9/card",
        "/models/tiny-latent/versions/" + "9" * 5000,
        "/models/%2e%2e",
        "/models/a%00b",
    ],
    ids=lambda path: path[:40],
)
def test_what_is_not_there_is_unknown(client: httpx.Client, path: str) -> None:
    content = problem(client.get(path), "unknown-model", 404)
    assert "tiny-latent@2" in content["available"]


@pytest.mark.parametrize(
    ("file", "media_type", "content"),
    [
        ("card", "text/markdown; charset=utf-8", b"# tiny-latent\n"),
        ("preview", "image/png", b"a picture"),
        ("film", "image/webp", b"a film"),
    ],
)
@pytest.mark.parametrize("base", ["/models/tiny-latent", "/models/tiny-latent/versions/1"])
def test_files_are_served_and_known_again(
    client: httpx.Client, base: str, file: str, media_type: str, content: bytes
) -> None:
    response = client.get(f"{base}/{file}")
    assert (response.status_code, response.content) == (200, content)
    assert response.headers["content-type"] == media_type
    known = {"If-None-Match": response.headers["etag"]}
    again = client.get(f"{base}/{file}", headers=known)
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "file",
    ["model.json", "generate.onnx", "golden.npz", "README.md", "..%2f..%2fmodel.json", "cards"],
)
def test_other_files_are_not_served(client: httpx.Client, file: str) -> None:
    for base in ("/models/tiny-latent", "/models/tiny-latent/versions/1"):
        response = client.get(f"{base}/{file}")
        assert problem(response, "not-found", 404)
        assert b"onnx" not in response.content.replace(b"generate.onnx", b"")


def test_links_lead_to_the_files(client: httpx.Client) -> None:
    links = answer(client.get("/models/tiny-rgb"))["links"]
    assert links.keys() == {"card", "preview", "film"}
    for link in links.values():
        assert client.get(link).status_code == 200
