"""GET / and /docs as HTTP: what the browser is told; tests/service/page/ looks at the pages."""

import fnmatch
import gzip
import hashlib
import re
import tomllib
from pathlib import Path

import httpx
import pytest

from tests.service.answers import problem

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "service/page"
PAGES = ["/", "/docs"]
FILES = ["page.css", "main.js", "icon.svg", "docs.js", "swagger-ui-bundle.js", "swagger-ui.css"]


def policy(response: httpx.Response) -> dict[str, str]:
    directives = response.headers["content-security-policy"].split("; ")
    return dict(directive.split(" ", 1) for directive in directives)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_nothing_from_elsewhere(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.headers["content-type"]) == (
        200,
        "text/html; charset=utf-8",
    )
    allowed = policy(response)
    assert allowed["default-src"] == "'none'"
    assert allowed["script-src"] == allowed["connect-src"] == "'self'"
    assert allowed["base-uri"] == allowed["form-action"] == allowed["frame-ancestors"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r'(src|href)="(https?:)?//', response.text)


def test_only_swagger_ui_may_write_styles_into_elements(client: httpx.Client) -> None:
    assert policy(client.get("/"))["style-src"] == "'self'"
    assert policy(client.get("/docs"))["style-src"] == "'self' 'unsafe-inline'"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_nothing_inline(client: httpx.Client, path: str) -> None:
    text = client.get(path).text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert all(script.endswith("></script>") for script in re.findall(r"<script.*", text))


@pytest.mark.parametrize("path", PAGES)
def test_all_that_a_page_links_to_is_there(client: httpx.Client, path: str) -> None:
    links = re.findall(r'(?:src|href)="([^"#]+)"', client.get(path).text)
    assert len(links) > 3
    for link in links:
        assert client.get(f"/{link}").status_code == 200, link


def test_every_module_is_fetched_before_it_is_asked_for(client: httpx.Client) -> None:
    """Otherwise each level of imports is one more round trip."""
    preloaded = set(re.findall(r'modulepreload" href="page/(\w+\.js)"', client.get("/").text))
    sources = [path for path in FOLDER.glob("*.js") if path.name != "docs.js"]
    imported = {
        name
        for path in sources
        for name in re.findall(r'from "\./(\w+\.js)"', path.read_text(encoding="utf-8"))
    }
    assert preloaded == imported == {path.name for path in sources} - {"main.js"}


@pytest.mark.parametrize("path", [*PAGES, *(f"/page/{name}" for name in FILES)])
def test_a_copy_is_checked_and_not_sent_again(client: httpx.Client, path: str) -> None:
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize(
    ("accept", "is_packed"),
    [("gzip", True), ("br, GZIP;q=0.5", True), ("gzip;q=0", False), ("br", False), ("", False)],
)
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_packed_for_those_who_can_unpack(
    client: httpx.Client, name: str, accept: str, is_packed: bool
) -> None:
    plain = client.get(f"/page/{name}", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    response = client.get(f"/page/{name}", headers={"Accept-Encoding": accept})
    assert response.content == plain.content
    assert response.headers["vary"] == "Accept-Encoding"
    assert (response.headers.get("content-encoding") == "gzip") == is_packed
    assert (response.headers["etag"] != plain.headers["etag"]) == is_packed
    assert (int(response.headers["content-length"]) < len(plain.content)) == is_packed


@pytest.mark.parametrize("path", [*PAGES, "/page/page.css"])
def test_a_head_request_gets_the_headers_alone(client: httpx.Client, path: str) -> None:
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["etag"] == client.get(path).headers["etag"]


@pytest.mark.parametrize("name", ["none.js", "README.md", "NOTICE", "..%2fapp.py", "index.html.gz"])
def test_other_files_are_not_served(client: httpx.Client, name: str) -> None:
    problem(client.get(f"/page/{name}"), "not-found", 404)


def test_every_file_is_in_the_package() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = options["setuptools"]["package-data"]["service"]
    for path in FOLDER.rglob("*"):
        name = path.relative_to(ROOT / "service").as_posix()
        assert path.is_dir() or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def test_swagger_ui_is_what_it_says() -> None:
    told = (FOLDER / "swagger-ui/README.md").read_text(encoding="utf-8")
    hashes = dict(re.findall(r"`([\w.-]+)` \| `([0-9a-f]{64})`", told))
    packed = {path.name.removesuffix(".gz"): path for path in FOLDER.glob("swagger-ui/*.gz")}
    assert packed.keys() == hashes.keys()
    for name, path in packed.items():
        content = gzip.decompress(path.read_bytes())
        assert hashlib.sha256(content).hexdigest() == hashes[name]
