"""POST /complete, on the shipped models: what is known stays, the rest is drawn given it."""

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.images import encode_picture
from tests.service.answers import (
    answer,
    array,
    invalid,
    npy,
    picture,
    pixels_of_base64,
    png,
    problem,
)
from tests.service.bundles import HEIGHT, WIDTH
from tests.service.server import Served


@pytest.fixture(scope="module")
def digit(shipped: Served) -> NDArray[np.uint8]:
    body = {"model": "nade-mnist", "seed": 5, "format": "npy"}
    pixels: NDArray[np.uint8] = array(shipped.client.post("/sample", json=body))[0]
    return pixels


def complete(
    client: httpx.Client, image: NDArray[np.uint8] | str, /, **body: Any
) -> httpx.Response:
    content = image if isinstance(image, str) else image.tolist()
    return client.post("/complete", json={"model": "nade-mnist", "image": content, **body})


def names(shipped: Served) -> list[str]:
    models = shipped.service.catalog.newest()
    return [m.manifest.name for m in models if "complete" in m.manifest.operations]


def test_known_rows_stay_and_the_rest_is_drawn(shipped: Served, digit: NDArray[np.uint8]) -> None:
    images = array(complete(shipped.client, digit, known_rows=14, n=8, seed=1, format="npy"))
    assert images.shape == (8, 28, 28)
    np.testing.assert_array_equal(images[:, :14], np.broadcast_to(digit[:14], (8, 14, 28)))
    assert len(np.unique(images[:, 14:], axis=0)) == 8


def test_every_ordered_model_can_complete(shipped: Served) -> None:
    assert {"bernoulli-mnist", "markov-mnist", "nade-mnist"} <= set(names(shipped))
    for name in names(shipped):
        body = {"model": name, "seed": 2, "format": "npy"}
        sampled = drawn = array(shipped.client.post("/sample", json=body))
        body |= {"image": drawn[0].tolist()}
        rows = len(drawn[0]) // 2
        completed = array(shipped.client.post("/complete", json=body | {"known_rows": rows}))
        if shipped.service.catalog.find(name).manifest.image.values == "continuous":
            # Real numbers were drawn, and arrive as grey levels: not quite the same beginning. What
            # is completed has begun with grey levels, and is completed to itself.
            body |= {"image": completed[0].tolist()}
            drawn, completed = (
                completed,
                array(shipped.client.post("/complete", json=body | {"known_rows": rows})),
            )
        # The same noise after the same beginning: the very same image.
        assert np.abs(completed.astype(int) - drawn).max() <= 1, name
        unknown = array(shipped.client.post("/complete", json=body | {"known_rows": 0}))
        np.testing.assert_array_equal(unknown, sampled)


def test_the_rest_depends_on_what_is_known(shipped: Served, digit: NDArray[np.uint8]) -> None:
    body = {"known_rows": 14, "seed": 1, "n": 16, "format": "npy"}
    given_digit = array(complete(shipped.client, digit, **body))
    given_nothing = array(complete(shipped.client, np.zeros_like(digit), **body))
    assert (given_digit[:, 14:] != given_nothing[:, 14:]).any()


def test_what_lies_in_the_unknown_part_does_not_matter(
    shipped: Served, digit: NDArray[np.uint8]
) -> None:
    other = digit.copy()
    other[14:] = 255 - other[14:]
    first, second = (
        complete(shipped.client, image, known_rows=14, seed=1).content for image in (digit, other)
    )
    assert first == second


def test_a_mask_may_end_within_a_row(shipped: Served, digit: NDArray[np.uint8]) -> None:
    mask = (np.arange(784) < 14 * 28 + 9).astype(int).reshape(28, 28)
    body = {"mask": mask.tolist(), "seed": 3, "n": 4, "format": "npy"}
    images = array(complete(shipped.client, digit, **body))
    assert (images[:, mask == 1] == digit[mask == 1]).all()


def test_a_mask_of_whole_rows_is_known_rows(shipped: Served, digit: NDArray[np.uint8]) -> None:
    mask = np.zeros((28, 28), dtype=int)
    mask[:14] = 1
    by_mask = complete(shipped.client, digit, mask=mask.tolist(), seed=3)
    assert by_mask.content == complete(shipped.client, digit, known_rows=14, seed=3).content


def test_a_mask_that_is_not_causal_is_refused(shipped: Served, digit: NDArray[np.uint8]) -> None:
    mask = np.zeros((28, 28), dtype=int)
    mask[14:] = 1
    content = invalid(complete(shipped.client, digit, mask=mask.tolist()), "/mask")
    assert "before all unknown ones" in content["detail"]


@pytest.mark.parametrize("picture_format", ["png", "webp", "jpeg"])
def test_it_answers_with_a_picture(
    shipped: Served, digit: NDArray[np.uint8], picture_format: str
) -> None:
    response = complete(shipped.client, digit, known_rows=20, n=4, format=picture_format, scale=2)
    assert picture(response, f"image/{picture_format}").shape[:2] == (112, 112)
    assert response.headers["x-model"].startswith("nade-mnist@")
    assert "x-seed" in response.headers


def test_a_picture_in_base64_is_thresholded(shipped: Served, digit: NDArray[np.uint8]) -> None:
    grey = np.where(digit > 0, 180, 70).astype(np.uint8)
    text = base64.b64encode(encode_picture(grey, "png")).decode()
    content = answer(complete(shipped.client, text, known_rows=14, seed=1, include=["log_prob"]))
    assert content.keys() == {"model", "version", "seed", "images"}
    (image,) = content["images"]
    np.testing.assert_array_equal(pixels_of_base64(image["png"])[:14], digit[:14])
    assert image["log_prob"] < 0


def test_image_5_alone_is_the_sixth_of_many(shipped: Served, digit: NDArray[np.uint8]) -> None:
    many = answer(complete(shipped.client, digit, known_rows=9, seed=7, n=6))["images"][5]
    alone = complete(shipped.client, digit, known_rows=9, seed=7, first_index=5)
    assert answer(alone)["images"][0] == many


def test_without_a_model_one_that_can_is_taken(shipped: Served) -> None:
    name = answer(
        shipped.client.post("/complete", json={"image": [[0] * 28] * 28, "known_rows": 1})
    )
    assert name["model"] in names(shipped)


def test_a_model_that_cannot_is_refused_with_those_that_can(
    shipped: Served, client: httpx.Client, digit: NDArray[np.uint8]
) -> None:
    response = complete(shipped.client, digit, model="dcgan-fashion", known_rows=14)
    content = problem(response, "unsupported-operation", 422)
    assert "nade-mnist" in content["alternatives"]
    tiny = complete(client, np.zeros((HEIGHT, WIDTH), np.uint8), model="tiny-latent", known_rows=1)
    assert problem(tiny, "unsupported-operation", 422)["alternatives"] == []


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"known_rows": 29}, "/known_rows"),
        ({"known_rows": -1}, "/known_rows"),
        ({"mask": [[1] * 28] * 27}, "/mask"),
        ({"mask": [[1] * 27] * 28}, "/mask"),
        ({"mask": [[2] * 28] * 28}, None),
        ({}, "/"),
        ({"known_rows": 1, "mask": [[1] * 28] * 28}, "/"),
        ({"known_rows": 1, "image": [[0] * 27] * 28}, "/image"),
        ({"known_rows": 1, "image": [[0.5] * 28] * 28}, "/image"),
        ({"known_rows": 1, "image": [[256] * 28] * 28}, "/image"),
        ({"known_rows": 1, "image": [[0] * 28, [0]]}, "/image"),
        ({"known_rows": 1, "image": "no picture"}, "/image"),
        ({"known_rows": 1, "temperature": 0}, "/temperature"),
        ({"known_rows": 1, "n": 0}, "/n"),
        ({"known_rows": 1, "surprise": 1}, "/surprise"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(
    shipped: Served, digit: NDArray[np.uint8], fields: dict[str, Any], pointer: str | None
) -> None:
    response = complete(shipped.client, digit, **fields)
    if pointer is None:
        problem(response, "invalid-request", 422)
    else:
        invalid(response, pointer)


class TestForms:
    """The picture as a file, the rest as text: what `curl -F` sends."""

    @staticmethod
    def send(client: httpx.Client, *files: bytes, **fields: str) -> httpx.Response:
        data = {"model": "nade-mnist", "seed": "3"} | fields
        return client.post("/complete", files=[("image", file) for file in files], data=data)

    def test_it_is_what_json_gives(self, shipped: Served, digit: NDArray[np.uint8]) -> None:
        options = {"known_rows": 14, "n": 4, "temperature": 0.7, "format": "npy"}
        by_json = array(complete(shipped.client, digit, seed=3, **options))
        texts = {name: str(value) for name, value in options.items()}
        by_form = array(self.send(shipped.client, png(digit), **texts))
        np.testing.assert_array_equal(by_form, by_json)

    def test_a_mask_is_text_too(self, shipped: Served, digit: NDArray[np.uint8]) -> None:
        mask = (np.arange(784) < 405).astype(int).reshape(28, 28).tolist()
        by_json = complete(shipped.client, digit, mask=mask, seed=3)
        by_form = self.send(shipped.client, png(digit), mask=json.dumps(mask))
        assert by_form.content == by_json.content

    def test_what_else_the_answer_tells_is_chosen_by_commas(
        self, shipped: Served, digit: NDArray[np.uint8]
    ) -> None:
        response = self.send(shipped.client, png(digit), known_rows="14", include="log_prob")
        assert answer(response)["images"][0]["log_prob"] < 0

    def test_a_picture_of_another_kind_is_fitted_if_asked(
        self, shipped: Served, digit: NDArray[np.uint8]
    ) -> None:
        large = np.kron(digit, np.ones((2, 2), np.uint8))
        coloured = png(np.repeat(large[..., None], 3, axis=2))
        refused = invalid(self.send(shipped.client, coloured, known_rows="14"), "/image")
        assert "resize=true" in refused["detail"]
        fit = {"resize": "true", "convert": "true", "known_rows": "14", "format": "npy"}
        fitted = array(self.send(shipped.client, coloured, **fit))[0]
        assert (fitted[:13] == digit[:13]).mean() > 0.98  # but for what scaling blurs
        as_json = base64.b64encode(coloured).decode()
        options = {"resize": True, "convert": True, "known_rows": 14, "format": "npy", "seed": 3}
        np.testing.assert_array_equal(
            array(complete(shipped.client, as_json, **options))[0], fitted
        )

    @pytest.mark.parametrize(
        ("num_files", "fields", "pointer"),
        [
            (0, {"known_rows": "14"}, "/image"),
            (2, {"known_rows": "14"}, "/image"),
            (1, {}, "/"),
            (1, {"known_rows": "half"}, "/known_rows"),
            (1, {"mask": "[[1,"}, "/mask"),
            (1, {"mask": "[[1]]"}, "/mask"),
            (1, {"known_rows": "14", "image": "no file"}, "/image"),
        ],
    )
    def test_what_breaks_a_rule_is_named(
        self,
        shipped: Served,
        digit: NDArray[np.uint8],
        num_files: int,
        fields: dict[str, str],
        pointer: str,
    ) -> None:
        files = [png(digit)] * num_files
        if not files:  # a form all the same
            body = (
                b'--x\r\nContent-Disposition: form-data; name="known_rows"\r\n\r\n14\r\n--x--\r\n'
            )
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            response = shipped.client.post("/complete", content=body, headers=headers)
        else:
            response = self.send(shipped.client, *files, **fields)
        invalid(response, pointer)

    def test_nothing_else_is_read(self, shipped: Served, digit: NDArray[np.uint8]) -> None:
        headers = {"Content-Type": "application/x-npy"}
        response = shipped.client.post("/complete", content=npy(digit), headers=headers)
        content = problem(response, "unsupported-media-type", 415)
        assert content["possible"] == ["application/json", "multipart/form-data"]
        asked = shipped.client.post("/complete?known_rows=3", json={})
        assert "the query is not read here" in problem(asked, "invalid-request", 422)["detail"]
