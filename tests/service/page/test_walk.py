"""The front page: walks between seeds."""

import httpx

from tests.service.page.browsing import expect
from tests.service.page.conftest import Open
from tests.service.page.test_sample import picture_after


def test_the_animation_is_that_of_the_seeds(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, "/#vae-mnist")
    section = page.locator("#walk")
    section.scroll_into_view_if_needed()
    seeds = section.get_by_label("Seeds")
    shown = picture_after(page, "seeds=5,6&steps=16", lambda: seeds.fill("5, 6"))
    query = {"model": "vae-mnist@1", "seeds": "5,6", "steps": 16, "loop": True, "scale": 8}
    query |= {"format": "webp"}
    assert shown.body() == site.get("/interpolate", params=query).content
    expect(section.locator(".status")).to_have_text("A walk from seed 5 to 6 and back.")
    expect(section.locator(".strips img")).to_have_count(2)
    back = section.get_by_label("And back")
    picture_after(page, "steps=16&fps", back.uncheck)
    expect(section.locator(".strips img")).to_have_count(1)


def test_what_moves_can_be_stopped(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, "/#vae-mnist")
    page.locator("#walk").scroll_into_view_if_needed()
    image = page.locator("#walk .animation")
    expect(page.locator("#walk .status")).to_contain_text("A walk")
    shown = picture_after(
        page, "scale=8&format=png", page.get_by_role("button", name="Pause").click
    )
    query = {"model": "vae-mnist@1", "seed": 1, "scale": 8}
    assert shown.body() == site.get("/sample", params=query).content
    expect(page.locator("#walk .status")).to_contain_text("Still")
    page.get_by_role("button", name="Play").click()
    expect(page.locator("#walk .status")).to_contain_text("A walk")
    assert "/interpolate?" in (image.get_attribute("src") or "")


def test_nothing_moves_for_those_who_want_it_so(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, "/#vae-mnist", reduced_motion="reduce")
    page.locator("#walk").scroll_into_view_if_needed()
    expect(page.locator("#walk .status")).to_contain_text("Still")
    assert "/sample?" in (page.locator("#walk .animation").get_attribute("src") or "")
