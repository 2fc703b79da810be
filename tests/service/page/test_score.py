"""The front page: drawing, scoring and completing."""

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.service.answers import answer, pixels_of, pixels_of_base64, png
from tests.service.page.browsing import Locator, Page, Response, expect
from tests.service.page.conftest import Open

SEVEN = [(80, 60), (200, 60), (170, 110), (130, 160), (110, 230)]


def open_bench(client: httpx.Client, open_page: Open, model: str, **options: Any) -> Page:
    """Open the page where one draws, and wait for the first score."""
    page = open_page(client, f"/#{model}", **options)
    page.locator("#score").scroll_into_view_if_needed()
    expect(page.locator("#score .result dd").first).not_to_be_empty()
    page.wait_for_load_state("networkidle")
    return page


def answer_after(page: Page, path: str, act: Any) -> tuple[dict[str, Any], Response]:
    """Do something, and return the JSON that is sent to a route and the answer."""
    with page.expect_response(lambda response: response.url.endswith(path)) as caught:
        act()
    response = caught.value
    return json.loads(response.request.post_data or ""), response


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
    flat = image.evaluate(
        """async (image) => {
          await image.decode();
          const [width, height] = [image.naturalWidth, image.naturalHeight];
          const context = new OffscreenCanvas(width, height).getContext("2d");
          context.drawImage(image, 0, 0);
          return [height, width, ...context.getImageData(0, 0, width, height).data];
        }"""
    )
    height, width, *levels = flat
    return np.array(levels, dtype=np.uint8).reshape(height, width, 4)[..., 0]


def score_of(client: httpx.Client, model: str, pixels: Any, **fields: Any) -> dict[str, Any]:
    """Return the first result of the route itself."""
    body = {"model": model, "images": [np.asarray(pixels).tolist()], **fields}
    result: dict[str, Any] = answer(client.post("/log_prob", json=body))["results"][0]
    return result


def shown_as(log_prob: float) -> str:
    return f"{log_prob:.2f}".replace("-", "−")


def test_a_drawing_is_scored(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist")
    body, _ = answer_after(page, "/log_prob", lambda: draw(page, SEVEN))
    drawn = pixels_of_base64(body["images"][0])
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
    body, _ = answer_after(page, "/log_prob", lambda: draw(page, SEVEN))
    drawn = pixels_of_base64(body["images"][0])
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
    expect(page.locator("#score .completions")).to_be_hidden()
    body, response = answer_after(page, "/log_prob", lambda: draw(page, SEVEN))
    result = response.json()["results"][0]
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

    body, _ = answer_after(page, "/log_prob", {"choose": choose, "drop": drop}[way])
    assert np.array_equal(pixels_of_base64(body["images"][0]), pixels_of(content))
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
    body, _ = answer_after(page, "/complete", lambda: draw(page, SEVEN))
    assert (body["known_rows"], body["n"]) == (14, 16)
    image = page.locator("#score .completions img")
    expect(image).to_have_attribute("alt", "16 ways to go on from the first 14 rows")
    sheet = pixels_shown(image)
    known = pixels_of_base64(body["image"])
    assert sheet.shape == (4 * 28 * 5, 4 * 28 * 5)
    tiles = sheet[::5, ::5].reshape(4, 28, 4, 28).swapaxes(1, 2).reshape(16, 28, 28)
    assert all(np.array_equal(tile[:14], known[:14]) for tile in tiles)
    assert len({tile.tobytes() for tile in tiles}) > 8

    rows = page.get_by_label("Rows known")
    body, _ = answer_after(page, "/complete", lambda: rows.fill("20"))
    assert body["known_rows"] == 20
    expect(image).to_have_attribute("alt", "16 ways to go on from the first 20 rows")
    other, _ = answer_after(page, "/complete", page.get_by_role("button", name="Draw others").click)
    assert other["seed"] != body["seed"]


def test_tools_change_the_picture(site: httpx.Client, open_page: Open) -> None:
    page = open_bench(site, open_page, "nade-mnist")

    def image_after(name: str) -> Any:
        button = page.get_by_role("button", name=name)
        body, _ = answer_after(page, "/log_prob", button.click)
        return pixels_of_base64(body["images"][0])

    assert not image_after("Clear").any()
    assert (image_after("Invert") == 255).all()
    sample = image_after("Take a sample")
    assert 0 < (sample == 255).sum() < 392
    draw(page, SEVEN)
    page.get_by_label("Erase").check()
    pad = page.locator("canvas.pad")
    body, _ = answer_after(page, "/log_prob", lambda: pad.click(position={"x": 80, "y": 60}))
    assert pixels_of_base64(body["images"][0])[6, 8] == 0


def test_colour_models_get_colours(tiny_site: httpx.Client, open_page: Open) -> None:
    page = open_bench(tiny_site, open_page, "tiny-rgb")
    page.get_by_label("Colour").fill("#ff8000")
    pad = page.locator("canvas.pad")
    page.get_by_role("button", name="Clear").click()
    body, _ = answer_after(page, "/log_prob", lambda: pad.click(position={"x": 18, "y": 18}))
    drawn = pixels_of_base64(body["images"][0])
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
    body, _ = answer_after(page, "/log_prob", lambda: choose.set_input_files(files=[file]))  # type: ignore[list-item]
    assert np.array_equal(pixels_of_base64(body["images"][0]), pixels)


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
