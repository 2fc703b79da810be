"""A server as a process, and a browser that minds what pages must not do."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.manifest import version_folders
from tests.service.bundles import class_generator, write_bundle, write_store
from tests.service.conftest import SHIPPED_STORE
from tests.service.process import Process

if TYPE_CHECKING:
    from tests.service.page.browsing import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Far above what anything takes, so that a busy machine fails no test.
TIMEOUT_MS = 90_000
DESKTOP = {"width": 1280, "height": 800}
CLASSES = ("circle", "it's a square", "line")

# Told of by the browser itself, also where a page would swallow it.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""

Open = Callable[..., "Page"]


@contextmanager
def running_site(store: Path, **settings: object) -> Iterator[httpx.Client]:
    """Run a server until the end of the block, and return a client of it."""
    process = Process(store, **settings)
    try:
        with process.ready_client() as client:
            yield client
    finally:
        process.kill()


@pytest.fixture(scope="session")
def site() -> Iterator[httpx.Client]:
    """Return a client of a server of the repository's own models."""
    if not version_folders(SHIPPED_STORE):
        pytest.skip("the repository's model_store is empty")
    with running_site(SHIPPED_STORE) as client:
        yield client


@pytest.fixture(scope="session")
def tiny_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Return a client of a server of tiny models, one with classes among them."""
    store = write_store(tmp_path_factory.mktemp("store"))
    graphs: Any = {"generate": class_generator(len(CLASSES))}
    write_bundle(store, "tiny-classes", graphs, labels=CLASSES)
    with running_site(store) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Return a headless Chromium.

    Until it is gone, Playwright runs an event loop in this thread, and no other test could.
    """
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    sync_api = import_module("playwright.sync_api")  # the modules of the tests have found it
    with sync_api.sync_playwright() as playwright:
        # Containers, where tests often run, have no room for Chromium's own sandbox.
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Open]:
    """Return a function that opens a page; at the end, nothing may have gone wrong in any.

    Its arguments: a client of the server, the path, the console errors that are expected, and
    options of the browser's context.
    """
    opened: list[tuple[Page, str, list[str], list[str]]] = []

    def open_page(
        client: httpx.Client, path: str = "/", *, expected_error: str = "", **options: Any
    ) -> "Page":
        host = str(client.base_url).rstrip("/")
        context = browser.new_context(base_url=host, **{"viewport": DESKTOP} | options)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.add_init_script(WATCH)
        faults: list[str] = []
        urls: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        page.on(
            "console",
            lambda message: (
                faults.append(message.text)
                if message.type in {"error", "warning"}
                and not (expected_error and expected_error in message.text)
                else None
            ),
        )
        opened.append((page, host, faults, urls))
        page.goto(path)
        return page

    yield open_page
    for page, host, faults, urls in opened:
        violations = page.evaluate("window.violations")
        page.context.close()
        assert not faults + violations
        elsewhere = [url for url in urls if not url.startswith((f"{host}/", f"blob:{host}/"))]
        assert not elsewhere
