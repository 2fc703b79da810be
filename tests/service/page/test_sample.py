"""The front page: models, and images of a seed."""

import re
from typing import Any

import httpx
import pytest

from tests.service.page.browsing import Page, Response, expect
from tests.service.page.conftest import CLASSES, Open

# What a stranger downloads before there is something to see.
MAX_CODE_BYTES = 32 * 1024
MAX_FIRST_VIEW_BYTES = 512 * 1024
MAX_FIRST_VIEW_REQUESTS = 40


def picture_after(page: Page, part: str, act: Any) -> Response:
    """Do something on a page, and return the picture with `part` in its address."""
    with page.expect_response(lambda response: part in response.url) as caught:
        act()
    return caught.value


def test_each_model_is_listed_with_what_it_can_say(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site)
    models = site.get("/models").json()["models"]
    expect(page.get_by_role("radio")).to_have_count(len(models))
    for model in models:
        choice = page.locator(".choice").filter(has_text=re.compile(rf"^{model['name']}"))
        expect(choice).to_contain_text(model["density"])
        nats = [
            metric["value"]
            for metric in model["metrics"]
            if metric["unit"] == "nats" and metric["name"].startswith("nll")
        ]
        if nats:
            expect(choice).to_contain_text(f"{nats[0]:.2f} nats")


def test_the_default_model_is_shown_first(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site)
    expect(page.locator("#name")).to_have_text(site.get("/models").json()["default"])
    expect(page.locator("#sample .status")).to_contain_text("seed 7")


def test_a_chosen_model_is_shown_and_can_be_linked_to(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site)
    page.locator(".choice", has_text=re.compile("^nade-mnist")).click()
    expect(page.locator("#name")).to_have_text("nade-mnist")
    expect(page.locator("#density")).to_have_text("exact")
    assert page.url.endswith("#nade-mnist")
    page.reload()
    expect(page.locator("#name")).to_have_text("nade-mnist")
    expect(page.get_by_role("radio", name=re.compile("^nade-mnist"))).to_be_checked()


def test_a_model_says_what_it_cannot_and_leads_to_one_that_can(
    site: httpx.Client, open_page: Open
) -> None:
    page = open_page(site, "/#dcgan-fashion")
    cannot = page.locator("#score .cannot")
    expect(cannot).to_contain_text("has no likelihood")
    cannot.get_by_role("link", name="nade-mnist", exact=True).click()
    expect(page.locator("#name")).to_have_text("nade-mnist")
    expect(page.locator("#walk .cannot")).to_contain_text("nothing between two seeds")


def test_the_picture_is_that_of_the_seed_byte_for_byte(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, "/#nade-mnist")
    page.get_by_label("Images").fill("5")
    seed = page.get_by_label("Seed", exact=True)
    shown = picture_after(page, "seed=11&", lambda: seed.fill("11"))
    query = {"model": "nade-mnist", "seed": 11, "n": 5, "columns": 5, "scale": 2}
    assert shown.body() == site.get("/sample", params=query).content
    expect(page.locator("#sample .status")).to_contain_text("5 images of nade-mnist, seed 11")
    image = page.locator("#sample .wall img")
    assert image.evaluate("image => [image.currentSrc, image.naturalWidth]") == [shown.url, 280]


def test_a_new_seed_gives_another_picture(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, "/#gan-mnist")
    expect(page.locator("#sample .status")).to_contain_text("seed 7")
    image = page.locator("#sample .wall img")
    before = image.get_attribute("src")
    page.get_by_role("button", name="New seed", exact=True).click()
    expect(image).not_to_have_attribute("src", before or "")
    expect(page.locator("#sample .status")).not_to_contain_text("seed 7.")


@pytest.mark.parametrize(
    ("model", "option", "other"),
    [("nade-mnist", "Temperature", "Truncation"), ("vae-mnist", "Truncation", "Temperature")],
)
def test_a_model_has_the_options_that_fit_it(
    site: httpx.Client, open_page: Open, model: str, option: str, other: str
) -> None:
    page = open_page(site, f"/#{model}")
    expect(page.get_by_label(other)).to_be_hidden()
    slider = page.get_by_label(option)
    shown = picture_after(page, f"{option.lower()}=0.5", lambda: slider.fill("0.5"))
    assert shown.ok
    expect(slider.locator("xpath=..").locator("output")).to_have_text("0.5")


def test_classes_can_be_asked_for(tiny_site: httpx.Client, open_page: Open) -> None:
    page = open_page(tiny_site, "/#tiny-classes")
    choose = page.locator("#sample [name=labels]")
    assert choose.locator("option").all_inner_texts() == ["any", *CLASSES]
    shown = picture_after(page, "labels=", lambda: choose.select_option(CLASSES[1]))
    query = httpx.URL(shown.url).params
    assert query["labels"] == CLASSES[1]
    assert shown.body() == tiny_site.get("/sample", params=query).content


def test_a_refusal_is_shown_with_its_reason(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, expected_error="422")
    page.get_by_label("Seed", exact=True).fill("9" * 20)
    expect(page.locator("#sample .problem")).to_contain_text("seed")
    page.get_by_label("Seed", exact=True).fill("9")
    expect(page.locator("#sample .problem")).to_be_empty()


def test_the_film_is_fetched_only_to_be_watched(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, "/#gan-mnist")
    film = page.locator("#film img")
    assert film.get_attribute("src") is None
    shown = picture_after(page, "/film", page.get_by_role("button", name="Watch it learn").click)
    assert shown.headers["content-type"] == "image/webp"
    expect(film).to_be_visible()
    page.get_by_role("button", name="Watch it learn").click()
    expect(film).to_be_hidden()


def test_the_page_waits_for_models_that_are_being_loaded(
    site: httpx.Client, open_page: Open
) -> None:
    page = open_page(site, "about:blank", expected_error="503")
    content = '{"type": "model-loading", "detail": "the models are being loaded"}'
    answer = {"status": 503, "body": content, "headers": {"Retry-After": "1"}}
    page.route("**/models", lambda route: route.fulfill(**answer), times=1)
    page.goto("/")
    expect(page.locator("#loading")).to_have_text("the models are being loaded")
    expect(page.locator("#name")).not_to_be_empty()


def test_the_first_view_is_light(site: httpx.Client, open_page: Open) -> None:
    page = open_page(site, "about:blank")
    requests: list[Any] = []
    # Playwright keeps a note on its handlers, which methods of lists have no room for.
    page.on("requestfinished", lambda request: requests.append(request))  # noqa: PLW0108
    page.goto("/")
    expect(page.locator("#sample .status")).to_contain_text("seed 7")
    page.wait_for_load_state("networkidle")
    sizes = {request.url: request.sizes()["responseBodySize"] for request in requests}
    code = [size for url, size in sizes.items() if "/page/" in url or url.endswith("/")]
    assert len(code) >= 10
    assert sum(code) < MAX_CODE_BYTES
    assert sum(sizes.values()) < MAX_FIRST_VIEW_BYTES
    assert len(requests) < MAX_FIRST_VIEW_REQUESTS
