"""Bundles in a page of a real browser, in WebAssembly: the pixels of the service."""

import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptheta_client import Client
from tests.embedding.conftest import STORE, UInt8Array, newest
from tests.service.process import REPOSITORY

COLUMNS = 8
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

Draw = Callable[..., UInt8Array]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, whatever the machine's own table of media types says of them."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Return where a plain file server shows the checkout."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(REPOSITORY)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def draw_in_browser(site: str, packages: Path) -> Iterator[Draw]:
    """Return a function that draws images on the page's canvas and reads them, (n, H, W)."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="there is no Playwright: pip install '.[browser]'"
    )
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("there is no Chromium: install it (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        # Its sandbox needs rights that containers do not give; it sees only this checkout.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()

        def draw(model: str, n: int, seed: int) -> UInt8Array:
            bundle = newest(model).relative_to(STORE).as_posix()
            page.goto(f"{site}/docs/embedding/index.html?model={bundle}&n={n}&seed={seed}")
            page.wait_for_function("document.querySelector('output').value.match(/done|failed/)")
            assert page.evaluate("document.querySelector('output').value") == "done"
            width, height, values = page.evaluate(
                """() => {
                    const canvas = document.querySelector("canvas");
                    const { width, height } = canvas;
                    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
                    return [width, height, Array.from(data)];
                }"""
            )
            sheet = np.array(values, dtype=np.uint8).reshape(height, width, 4)
            assert (sheet == sheet[..., :1])[..., :3].all()
            cells = sheet[..., 0].reshape(n // COLUMNS, 28, COLUMNS, 28).swapaxes(1, 2)
            return cells.reshape(n, 28, 28)

        yield draw
        browser.close()


@pytest.mark.parametrize("model", ["dcgan-fashion", "nade-mnist"])
def test_a_seed_gives_the_pixels_of_the_service(
    draw_in_browser: Draw, service: Client, model: str
) -> None:
    expected = service.sample(model, seed=2**64 - 2, n=128)
    assert (draw_in_browser(model, 128, 2**64 - 2) == expected.images).all()


def test_garments_have_the_pixels_of_the_service_where_rounded_sums_would_not(
    draw_in_browser: Draw, service: Client
) -> None:
    # WebAssembly rounds between multiplication and addition, where the processor does not: the
    # first version of the model, which rounded its sums, differed in one pixel of 210,000.
    expected = service.sample("dcgan-fashion", seed=7, n=512)
    assert (draw_in_browser("dcgan-fashion", 512, 7) == expected.images).all()
