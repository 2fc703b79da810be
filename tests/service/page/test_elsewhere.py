"""Pictures on the pages of others: shown, kept, and asked for anew only where they may change."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.service.page.browsing import Browser


class Elsewhere(BaseHTTPRequestHandler):
    """A page of another origin, with whatever picture its address names."""

    def do_GET(self) -> None:
        _, _, source = self.path.partition("?")
        body = f"<!doctype html><title>Elsewhere</title><img src='{source}'>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        # A site may insist that everything it shows agrees to be shown.
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("model", "second"), [("tiny-latent@1", "cache"), ("tiny-latent", "not modified")]
)
def test_a_picture_is_loaded_once(
    browser: Browser, tiny_site: httpx.Client, elsewhere: str, model: str, second: str
) -> None:
    address = f"{tiny_site.base_url}/sample?model={model}&seed=7&n=4&columns=2"
    context = browser.new_context()
    loads = []
    for _ in range(2):
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        seen: list[dict[str, Any]] = []
        extra: list[int] = []
        session.on("Network.responseReceived", lambda event, seen=seen: seen.append(event))
        session.on(
            "Network.responseReceivedExtraInfo",
            lambda event, extra=extra: extra.append(event["statusCode"]),
        )
        page.goto(f"{elsewhere}/?{address}")
        page.wait_for_load_state("load")
        size = page.evaluate("[document.images[0].naturalWidth, document.images[0].naturalHeight]")
        assert size == [2 * 8, 2 * 4]
        (response,) = [e["response"] for e in seen if e["response"]["url"] == address]
        loads.append((response["fromDiskCache"] or response.get("fromPrefetchCache"), extra))
        page.close()
    context.close()
    (first_cached, _), (second_cached, statuses) = loads
    assert not first_cached
    assert second_cached if second == "cache" else 304 in statuses


def test_another_version_has_another_tag(tiny_site: httpx.Client) -> None:
    first, second = (
        tiny_site.get("/sample", params={"model": model, "seed": 7}).headers["etag"]
        for model in ("tiny-latent@1", "tiny-latent@2")
    )
    assert first != second
