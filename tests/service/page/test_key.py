"""The front page of a server that asks for API keys."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.keys import digest_of
from tests.service.answers import pixels_of
from tests.service.bundles import write_vae_store
from tests.service.page.browsing import Page, expect
from tests.service.page.conftest import Open, running_site
from tests.service.page.test_score import pixels_shown
from tests.service.page.test_use import CLIPBOARD, copied

KEY = "key-of-a-visitor"


@pytest.fixture(scope="module")
def guarded_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Return a client, without a key, of a server of tiny models."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys.toml"
    keys.write_text(f'[keys.visitor]\nsha256 = "{digest_of(KEY.encode())}"\n')
    (folder / "store").mkdir()
    with running_site(write_vae_store(folder / "store"), api_keys_file=keys) as client:
        yield client


@pytest.fixture
def page(guarded_site: httpx.Client, open_page: Open) -> Page:
    """Return a page that asks for a key."""
    opened = open_page(guarded_site, expected_error="401", permissions=CLIPBOARD)
    expect(opened.locator("#loading")).to_have_text("This server asks for an API key.")
    return opened


def give(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use it").click()


def test_a_wrong_key_is_told_and_another_can_be_given(page: Page) -> None:
    give(page, "wrong")
    expect(page.locator("#loading")).to_contain_text("not known here")
    give(page, KEY)
    expect(page.locator("#sample .status")).to_contain_text("seed 7")
    expect(page.get_by_label("API key")).to_be_hidden()


def test_with_a_key_everything_is_shown(guarded_site: httpx.Client, page: Page) -> None:
    give(page, f" {KEY}\n")  # as it comes from a mail
    page.locator(".choice", has_text="tiny-vae").click()
    expect(page.locator("#sample .status")).to_contain_text("tiny-vae, seed 7")
    page.locator("#walk").scroll_into_view_if_needed()
    expect(page.locator("#walk .status")).to_contain_text("A walk from seed 1")
    page.locator("#score").scroll_into_view_if_needed()
    expect(page.locator("#score .result dd").first).not_to_be_empty()
    for image in page.locator("#models img, #walk .strips img, #score .made img").all():
        assert pixels_shown(image).size > 1
    assert not "".join(page.locator(".problem").all_inner_texts())


def test_a_key_lasts_as_long_as_the_tab(page: Page, open_page: Open) -> None:
    give(page, KEY)
    expect(page.locator("#sample .status")).to_contain_text("seed 7")
    page.reload()
    expect(page.locator("#sample .status")).to_contain_text("seed 7")
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("API key")).to_be_visible()


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_what_is_copied_has_a_place_for_the_key_and_not_the_key(
    page: Page, tmp_path: Path, language: str
) -> None:
    give(page, KEY)
    expect(page.locator("#sample .status")).to_contain_text("seed 7")
    page.locator("#sample").get_by_role("button", name=language).click()
    code = copied(page, "#sample .code")
    assert KEY not in code
    command = ["bash", "-c"] if language == "curl" else [sys.executable, "-c"]
    environment = os.environ | {"KEY": KEY}
    subprocess.run([*command, code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    made = pixels_of((tmp_path / "samples.png").read_bytes())
    assert (made == pixels_shown(page.locator("#sample .wall img"))).all()
