"""The front page and /docs: requests to copy, keys, small screens, assistive tools."""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.service.answers import pixels_of
from tests.service.page.browsing import Page, expect
from tests.service.page.conftest import CLASSES, DESKTOP, Open
from tests.service.page.test_sample import picture_after
from tests.service.page.test_score import (
    open_bench,
    pixels_shown,
    scored_after,
    sent_by,
    shown_as,
)

CLIPBOARD = ["clipboard-read", "clipboard-write"]
PHONE = {"width": 390, "height": 844}

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def copied(page: Page, box: str) -> str:
    """Return what the copy button of a box copies."""
    page.locator(box).get_by_role("button", name="Copy").click()
    expect(page.locator(box).get_by_role("status")).to_have_text("Copied")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


@needs_curl
@pytest.mark.parametrize("language", ["curl", "Python"])
def test_what_is_copied_gives_what_is_shown(
    site: httpx.Client, open_page: Open, tmp_path: Path, language: str
) -> None:
    page = open_bench(site, open_page, "nade-mnist", permissions=CLIPBOARD)
    page.locator("#sample").get_by_role("button", name=language).click()
    sent_by(page, page.get_by_role("button", name="Draw others").click)

    def execute(box: str) -> str:
        code = copied(page, box)
        command = ["bash", "-c"] if language == "curl" else [sys.executable, "-c"]
        return run([*command, code], tmp_path)

    execute("#sample .code")
    shown = page.locator("#sample .wall img").get_attribute("src")
    assert (tmp_path / "samples.png").read_bytes() == site.get(shown or "").content
    execute("#score .of-made")
    completions = pixels_of((tmp_path / "completions.png").read_bytes())
    assert np.array_equal(completions, pixels_shown(page.locator("#score .made img")))
    told = execute("#score .code:not(.of-made)")
    log_prob = httpx.Response(200, text=told).json()
    if language == "curl":
        log_prob = log_prob["results"][0]["log_prob"]
    expect(page.locator("#score .result dd").first).to_have_text(shown_as(log_prob))


@needs_curl
def test_a_quote_in_a_class_does_not_break_the_command(
    tiny_site: httpx.Client, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(tiny_site, "/#tiny-classes", permissions=CLIPBOARD)
    choose = page.locator("#sample [name=labels]")
    shown = picture_after(page, "labels=", lambda: choose.select_option(CLASSES[1]))
    run(["bash", "-c", copied(page, "#sample .code")], tmp_path)
    assert (tmp_path / "samples.png").read_bytes() == shown.body()


def test_everything_can_be_done_by_keys(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, "/#eonade-mnist")
    expect(page.locator("#sample .status")).to_contain_text("eonade-mnist")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".skip")).to_be_in_viewport()
    tab_to(page, "#models input:checked")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#name")).to_have_text("nade-mnist")
    tab_to(page, "#sample [name=seed]")
    page.keyboard.press("Control+A")
    picture_after(page, "seed=23&", lambda: page.keyboard.type("23"))
    tab_to(page, "#score canvas.pad")
    expect(page.locator("#score .cursor")).to_be_visible()
    expect(page.locator("#score .result dd").first).not_to_be_empty()
    tab_to(page, "#score [name=clear]")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")

    def draw() -> None:
        for key in ["Space", "ArrowRight", "ArrowDown", "Space"]:
            page.keyboard.press(key)

    drawn = scored_after(page, draw)
    assert (drawn == 255).sum() == 2
    assert drawn[14, 14] == drawn[15, 15] == 255
    tab_to(page, "#score [name=known_rows]")
    sent = sent_by(page, lambda: page.keyboard.press("ArrowRight"))
    assert sent["/complete"]["known_rows"] == 15


def tab_to(page: Page, selector: str) -> None:
    """Press the tab key until an element has the focus."""
    for _ in range(60):
        if page.locator(selector).evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"{selector} cannot be reached by the tab key")


@pytest.mark.parametrize("width", [320, 390, 768, 1024])
def test_nothing_is_cut_off_on_small_screens(
    site: httpx.Client, open_page: Open, width: int
) -> None:
    for model in ("dcgan-fashion", "nade-mnist", "joint-tiny"):
        page = open_page(site, f"/#{model}", viewport=PHONE | {"width": width})
        expect(page.locator("#sample .status")).to_contain_text("seed 7")
        page.locator("#score").scroll_into_view_if_needed()
        expect(page.locator("#score .bench")).not_to_have_attribute("aria-busy", "true")
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_finger_draws(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist", viewport=PHONE, has_touch=True)
    page.get_by_role("button", name="Clear").tap()
    pad = page.locator("canvas.pad")
    assert scored_after(page, lambda: pad.tap(position={"x": 100, "y": 100})).any()
    assert pad.evaluate("canvas => getComputedStyle(canvas).touchAction") == "none"


def test_every_control_has_a_name(site: httpx.Client, open_page: Open) -> None:
    for model in ("vae-mnist", "nade-mnist"):
        page = open_bench(site, open_page, model)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, a, canvas, img")]
              .filter((element) => element.checkVisibility())
              .filter((element) => !(
                element.getAttribute("aria-label")
                || element.getAttribute("aria-labelledby")
                || element.textContent.trim()
                || element.labels?.[0]?.textContent.trim()
                || element.hasAttribute("alt")
              )).map((element) => element.outerHTML)"""
        )
        assert not nameless


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(site: httpx.Client, open_page: Open, scheme: str) -> None:
    """By WCAG 2.2: at least 4.5 for text of every colour that the page has."""
    page = open_page(site, "/#nade-mnist", viewport=DESKTOP, color_scheme=scheme)
    expect(page.locator("#sample .status")).to_contain_text("seed 7")
    colours = page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const names = ["paper", "raised", "ink", "faint", "accent", "on-accent"];
          const valueOf = (name) => style.getPropertyValue(`--${name}`);
          return Object.fromEntries(names.map((name) => [name, valueOf(name)]));
        }"""
    )
    pairs = [(text, paper) for text in ("ink", "faint", "accent") for paper in ("paper", "raised")]
    for text, paper in [*pairs, ("on-accent", "accent")]:
        lighter, darker = sorted(map(luminance, (colours[text], colours[paper])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, paper)


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb or #rgb."""
    digits = colour.strip().removeprefix("#")
    size = len(digits) // 3
    levels = [int(digits[i * size : (i + 1) * size] * (3 - size), 16) / 255 for i in range(3)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in levels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_documentation_works_without_another_host(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, "/docs")
    routes = page.locator(".opblock")
    paths = site.get("/openapi.json").json()["paths"]
    expect(routes).to_have_count(sum(map(len, paths.values())))
    alive = page.locator(".opblock", has_text="/livez")
    alive.locator("button").first.click()
    alive.get_by_role("button", name="Try it out").click()
    with page.expect_response(lambda response: response.url.endswith("/livez")) as caught:
        alive.get_by_role("button", name="Execute").click()
    assert caught.value.json() == {"status": "alive"}
    expect(alive.locator(".live-responses-table")).to_contain_text("alive")
