"""The front page: drawing, scoring and completing."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.service.answers import answer, pixels_of, pixels_of_base64, png
from tests.service.page.browsing import Locator, Page, Request, expect
from tests.service.page.conftest import Open

SEVEN = [(80, 60), (200, 60), (170, 110), (130, 160), (110, 230)]


def open_bench(client: httpx.Client, open_page: Open, model: str, **options: Any) -> Page:
    """Open the page where one draws, and wait for the first score."""
    page = open_page(client, f"/#{model}", **options)
    page.locator("#score").scroll_into_view_if_needed()
    expect(page.locator("#score .result dd").first).not_to_be_empty()
    expect(page.locator("#score .bench")).to_have_attribute("aria-busy", "false")
    return page


def sent_by(page: Page, act: Callable[[], object]) -> dict[str, Any]:
    """Do something, wait until all is shown, and return the last JSON sent to each route."""
    sent: dict[str, Any] = {}

    def note(request: Request) -> None:
        if request.method == "POST":
            sent[httpx.URL(request.url).path] = json.loads(request.post_data or "")

    page.on("request", note)
    act()
    expect(page.locator("#score .bench")).to_have_attribute("aria-busy", "false")
    page.remove_listener("request", note)
    return sent


def scored_after(page: Page, act: Callable[[], object]) -> NDArray[np.uint8]:
    """Do something, and return the picture that is scored then."""
    return pixels_of_base64(sent_by(page, act)["/log_prob"]["images"][0])


def draw(page: Page, points: list[tuple[int, int]]) -> None:
    """Draw a line on the pad, points in its pixels on the screen."""
    page.get_by_role("button", name="Clear").click()
    pad = page.locator("canvas.pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    assert box is not None
    for position, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x, box["y"] + y, steps=1 if position == 0 else 5)
        if position == 0:
            page.mouse.down()
    page.mouse.up()


def pixels_shown(image: Locator) -> NDArray[np.uint8]:
    """Return the grey levels of a picture on the page; of its bytes the browser keeps none."""
    png_base64 = image.evaluate(
        """async (image) => {
          await image.decode();
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          canvas.getContext("2d").drawImage(image, 0, 0);
          return canvas.toDataURL().split(",")[1];
        }"""
    )
    return pixels_of_base64(png_base64)[..., 0]


def score_of(client: httpx.Client, model: str, pixels: Any, **fields: Any) -> dict[str, Any]:
    """Return the first result of the route itself."""
    body = {"model": model, "images": [np.asarray(pixels).tolist()], **fields}
    result: dict[str, Any] = answer(client.post("/log_prob", json=body))["results"][0]
    return result


def shown_as(log_prob: float) -> str:
    return f"{log_prob:.2f}".replace("-", "−")


def test_a_drawing_is_scored(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist")
    drawn = scored_after(page, lambda: draw(page, SEVEN))
    assert drawn.shape == (28, 28)
    assert set(np.unique(drawn)) == {0, 255}  # a binary model
    for x, y in SEVEN:
        assert drawn[y // 10, x // 10] == 255
    assert 20 < (drawn == 255).sum() < 150
    result = score_of(site, "nade-mnist", drawn)
    log_prob, bits, *_ = page.locator("#score .result dd").all()
    expect(log_prob).to_have_text(shown_as(result["log_prob"]))
    expect(bits).to_have_text(f"{result['bits_per_dim']:.3f}")


def test_the_surprise_map_shows_what_surprises(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist")
    drawn = scored_after(page, lambda: draw(page, SEVEN))
    surprise = np.array(score_of(site, "nade-mnist", drawn, per_dim=True)["per_dim"])
    row, column = np.unravel_index(surprise.argmax(), surprise.shape)
    heat_map = page.locator("#score .surprise canvas")
    said = f"most at row {row + 1}, column {column + 1}: {surprise.max():.1f} nats"
    expect(heat_map).to_have_attribute("aria-label", f"Surprise per pixel; {said}")
    flat = heat_map.evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data]"
    )
    brightness = np.array(flat).reshape(28, 28, 4)[..., :3].sum(axis=2)
    assert np.corrcoef(brightness.ravel(), surprise.ravel())[0, 1] > 0.9
    assert brightness[row, column] == brightness.max()


def test_a_model_without_conditionals_shows_no_map(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "vae-mnist")
    expect(page.locator("#score .surprise")).to_be_hidden()
    body = sent_by(page, lambda: draw(page, SEVEN))["/log_prob"]
    result = answer(site.post("/log_prob", json=body))["results"][0]
    bound = f"≥ {shown_as(result['log_prob'])} ± {result['std_error']:.2f}"
    expect(page.locator("#score .result dd").first).to_have_text(bound)
    assert body["num_importance_samples"] > 1


@pytest.mark.parametrize("way", ["choose", "drop"])
def test_a_file_is_scored(site: httpx.Client, open_page: Open, way: str) -> None:
    page = open_bench(site, open_page, "nade-mnist")
    content = site.get("/sample", params={"model": "nade-mnist", "seed": 12}).content
    file = {"name": "digit.png", "mimeType": "image/png", "buffer": content}

    def choose() -> None:
        page.locator("#score [name=file]").set_input_files(files=[file])  # type: ignore[list-item]

    def drop() -> None:
        transfer = page.evaluate_handle(
            """text => {
              const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
              const transfer = new DataTransfer();
              transfer.items.add(new File([bytes], "digit.png", { type: "image/png" }));
              return transfer;
            }""",
            base64.b64encode(content).decode(),
        )
        page.locator("canvas.pad").dispatch_event("drop", {"dataTransfer": transfer})

    scored = scored_after(page, {"choose": choose, "drop": drop}[way])
    assert np.array_equal(scored, pixels_of(content))
    response = site.post("/log_prob", files={"images": content}, data={"model": "nade-mnist"})
    expected = shown_as(answer(response)["results"][0]["log_prob"])
    expect(page.locator("#score .result dd").first).to_have_text(expected)


def test_a_file_that_is_no_picture_is_refused(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist")
    file = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    page.locator("#score [name=file]").set_input_files(files=[file])  # type: ignore[list-item]
    expect(page.locator("#score .problem")).to_have_text("notes.txt cannot be read as a picture.")


def test_a_half_drawn_digit_is_completed(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist")
    body = sent_by(page, lambda: draw(page, SEVEN))["/complete"]
    assert (body["known_rows"], body["n"]) == (14, 16)
    image = page.locator("#score .made img")
    expect(image).to_have_attribute("alt", "16 ways to go on from the first 14 rows")
    sheet = pixels_shown(image)
    known = pixels_of_base64(body["image"])
    assert sheet.shape == (4 * 28 * 5, 4 * 28 * 5)
    tiles = sheet[::5, ::5].reshape(4, 28, 4, 28).swapaxes(1, 2).reshape(16, 28, 28)
    assert all(np.array_equal(tile[:14], known[:14]) for tile in tiles)
    assert len({tile.tobytes() for tile in tiles}) > 8

    rows = page.get_by_label("Rows known")
    body = sent_by(page, lambda: rows.fill("20"))["/complete"]
    assert body["known_rows"] == 20
    expect(image).to_have_attribute("alt", "16 ways to go on from the first 20 rows")
    other = sent_by(page, page.get_by_role("button", name="Draw others").click)["/complete"]
    assert other["seed"] != body["seed"]


def test_an_encoder_shows_what_it_makes_of_a_drawing(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "vae-mnist")
    body = sent_by(page, lambda: draw(page, SEVEN))["/reconstruct"]
    expected = pixels_of(site.post("/reconstruct", json=body).content)
    image = page.locator("#score .made img")
    expect(image).to_have_attribute("alt", "Your picture, encoded and decoded again")
    assert np.array_equal(pixels_shown(image), expected)
    assert not np.array_equal(expected[::16, ::16], pixels_of_base64(body["images"][0]))
    expect(page.get_by_label("Rows known")).to_be_hidden()
    expect(page.locator("#score .unknown")).to_have_css("top", "280px")


def test_what_a_model_cannot_do_stands_below_what_it_can(
    site: httpx.Client, open_page: Open
) -> None:
    page = open_page(site, "/#nade-mnist")
    titles = page.locator("#model section:visible h3")
    expect(titles).to_have_text(["Sample", "Draw, score, complete", "Walk from seed to seed"])
    page.locator(".choice", has_text="vae-mnist").click()
    expect(titles).to_have_text(["Sample", "Walk from seed to seed", "Draw, score, complete"])


def test_tools_change_the_picture(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist")

    def image_after(name: str) -> NDArray[np.uint8]:
        return scored_after(page, page.get_by_role("button", name=name).click)

    assert not image_after("Clear").any()
    assert (image_after("Invert") == 255).all()
    sample = image_after("Take a sample")
    assert 0 < (sample == 255).sum() < 392
    draw(page, SEVEN)
    page.get_by_label("Erase").check()
    pad = page.locator("canvas.pad")
    assert scored_after(page, lambda: pad.click(position={"x": 80, "y": 60}))[6, 8] == 0


def test_colour_models_get_colours(tiny_site: httpx.Client, open_page: Open) -> None:
    page = open_bench(tiny_site, open_page, "tiny-rgb")
    page.get_by_label("Colour").fill("#ff8000")
    pad = page.locator("canvas.pad")
    page.get_by_role("button", name="Clear").click()
    drawn = scored_after(page, lambda: pad.click(position={"x": 18, "y": 18}))
    assert drawn.shape == (4, 8, 3)
    assert drawn[0, 0].tolist() == [255, 128, 0]
    result = score_of(tiny_site, "tiny-rgb", drawn)
    expect(page.locator("#score .result dd").first).to_have_text(shown_as(result["log_prob"]))


def test_grey_pictures_stay_grey(tiny_site: httpx.Client, open_page: Open) -> None:
    """Every level arrives as it was: neither a canvas nor a colour profile has touched it."""
    page = open_bench(tiny_site, open_page, "tiny-grey")
    pixels = np.arange(0, 256, 8, dtype=np.uint8).reshape(4, 8)
    file = {"name": "ramp.png", "mimeType": "image/png", "buffer": png(pixels)}
    choose = page.locator("#score [name=file]")
    scored = scored_after(page, lambda: choose.set_input_files(files=[file]))  # type: ignore[list-item]
    assert np.array_equal(scored, pixels)


def test_a_large_picture_is_scaled_and_laid_on_white(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist")
    picture = np.zeros((200, 400, 4), dtype=np.uint8)  # transparent, twice as wide as high
    picture[:, 200:, 3] = 255  # its right half black
    file = {"name": "wide.png", "mimeType": "image/png", "buffer": png(picture)}
    choose = page.locator("#score [name=file]")
    scored = scored_after(page, lambda: choose.set_input_files(files=[file]))  # type: ignore[list-item]
    expected = np.zeros((28, 28), dtype=np.uint8)
    expected[7:21, :14] = 255
    assert np.array_equal(scored, expected)


def test_a_p_value_is_shown_where_there_is_one(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist")

    def add(route: Any) -> None:
        response = route.fetch()
        content = response.json()
        content["results"][0] |= {"p_value": 0.0123, "anomaly_score": 4.5}
        route.fulfill(response=response, json=content)

    page.route("**/log_prob", add)
    draw(page, SEVEN)
    result = page.locator("#score .result")
    expect(result).to_contain_text("p-value0.0123")
    expect(result).to_contain_text("Anomaly score4.50")
