"""How long a stranger waits until there is something to see."""

import statistics
from typing import Any

import httpx

from tests.service.page.browsing import Browser, expect
from tests.service.page.conftest import DESKTOP, TIMEOUT_MS

NUM_VIEWS = 5
# On two cores with nothing else to do the median was 750 ms, where the project's goal is a second,
# and 2,660 ms beside three trainings. A test must pass there too.
MAX_MEDIAN_MS = 10_000

# Milliseconds since the navigation began: of the list and the first picture both being painted, and
# of the load event. Of an image that the page has waited for, the next frame shows it.
MARK = """
new MutationObserver((_, observer) => {
  if (!document.querySelector("#sample .status")?.textContent) return;
  observer.disconnect();
  requestAnimationFrame(() => requestAnimationFrame(() => (window.shownMs = performance.now())));
}).observe(document, { childList: true, subtree: true, characterData: true });
"""


def view(browser: Browser, url: str) -> dict[str, float]:
    """Open the page as a visitor who has never been here, and tell when what was there."""
    context = browser.new_context(viewport=DESKTOP)
    try:
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.add_init_script(MARK)
        page.goto(url)
        expect(page.locator("#sample .status")).to_contain_text("seed 7")
        assert page.locator(".choice").count() > 1
        assert page.locator("#sample .wall img").evaluate("image => image.naturalWidth") > 1
        times: dict[str, Any] = page.evaluate(
            """async () => {
              while (!window.shownMs) await new Promise(requestAnimationFrame);
              return {
                shown: window.shownMs,
                load: performance.getEntriesByType("navigation")[0].loadEventEnd,
                paint: performance.getEntriesByName("first-contentful-paint")[0].startTime,
              };
            }"""
        )
        return times
    finally:
        context.close()


def test_the_first_view_does_not_keep_one_waiting(
    site: httpx.Client, browser: Browser, record_property: Any
) -> None:
    url = str(site.base_url)
    view(browser, url)  # which starts the browser's own processes
    views = [view(browser, url) for _ in range(NUM_VIEWS)]
    medians = {name: statistics.median(each[name] for each in views) for name in views[0]}
    told = ", ".join(f"{name} {median:.0f} ms" for name, median in medians.items())
    record_property("first_view", told)
    print(f"first view, median of {NUM_VIEWS}: {told}")
    assert medians["paint"] <= medians["shown"]
    assert medians["shown"] < MAX_MEDIAN_MS, told
