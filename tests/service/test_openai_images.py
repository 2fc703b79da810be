"""OpenAI's images, asked for by OpenAI's own client of a server process."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import ImagesResponse

from service.images import resize_nearest
from tests.service.answers import answer, array, pixels_of_base64
from tests.service.bundles import (
    HEIGHT,
    WIDTH,
    binary_generator,
    class_generator,
    latent_generator,
    write_bundle,
)
from tests.service.process import Process

pytestmark = pytest.mark.timeout(60)

CLASSES = ("cat", "dog", "T-shirt/top", "1")
SEED = {"seed": 7}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    store = tmp_path_factory.mktemp("store")
    write_bundle(store, "classes", {"generate": class_generator(len(CLASSES))}, labels=CLASSES)
    for version in (1, 2):
        graph = latent_generator(1, gain=version)
        write_bundle(store, "plain", {"generate": graph}, version=version)
    write_bundle(store, "colour", {"generate": latent_generator(3)}, channels=3)
    write_bundle(
        store,
        "binary",
        {"generate": binary_generator()},
        values="binary",
        prior="uniform",
        latent=False,
    )
    process = Process(store, max_rows=20, default_model="plain", drain_window_s=0)
    try:
        with process.ready_client():
            yield process
    finally:
        process.terminate()
        assert process.wait() == 0


@pytest.fixture(scope="module")
def client(process: Process) -> Iterator[openai.OpenAI]:
    with process.client() as http:
        base_url = f"{http.base_url}/v1"
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as made:
        yield made


def pictures(response: ImagesResponse) -> list[Any]:
    return [pixels_of_base64(image.b64_json or "") for image in response.data or ()]


def sampled(process: Process, **body: Any) -> Any:
    """Return the images that /sample makes for seed 7."""
    with process.client() as http:
        return array(http.post("/sample", json={**SEED, "format": "npy", **body}))


def refusal(client: openai.OpenAI, **fields: Any) -> openai.APIStatusError:
    """Check that the client shows our own text of an error, and return it."""
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.generate(**{"prompt": "", "model": "plain"} | fields)
    error = caught.value
    assert str(error) == f"Error code: {error.status_code} - {error.response.json()['detail']}"
    return error


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "number"),
        [("dog", 1), (" DOG\n", 1), ("t-shirt/TOP", 2), ("1", 3), ("0", 0), ("3", 3)],
    )
    def test_it_names_a_class(
        self, client: openai.OpenAI, process: Process, prompt: str, number: int
    ) -> None:
        response = client.images.generate(prompt=prompt, model="classes", n=3, extra_body=SEED)
        expected = sampled(process, model="classes", n=3, labels=[CLASSES[number]])
        np.testing.assert_array_equal(pictures(response), expected)
        assert {image.revised_prompt for image in response.data or ()} == {CLASSES[number]}

    def test_empty_it_leaves_the_class_to_the_seed_which_is_told(
        self, client: openai.OpenAI, process: Process
    ) -> None:
        response = client.images.generate(prompt="", model="classes", n=9, extra_body=SEED)
        np.testing.assert_array_equal(pictures(response), sampled(process, model="classes", n=9))
        with process.client() as http:
            body = {"model": "classes", "n": 9, **SEED}
            labels = [image["label"] for image in answer(http.post("/sample", json=body))["images"]]
        assert [image.revised_prompt for image in response.data or ()] == labels

    def test_a_model_without_classes_takes_an_empty_one(
        self, client: openai.OpenAI, process: Process
    ) -> None:
        response = client.images.generate(prompt="", extra_body=SEED)
        np.testing.assert_array_equal(pictures(response), sampled(process, model="plain"))
        assert response.data is not None
        assert response.data[0].revised_prompt is None

    def test_any_other_is_refused_with_what_is_possible(self, client: openai.OpenAI) -> None:
        error = refusal(client, model="classes", prompt="a cat in space")
        assert error.status_code == 422
        assert (error.param, error.code) == ("prompt", "invalid-request")
        assert "say one of: cat, dog, T-shirt/top, 1" in error.message
        error = refusal(client, prompt="cat")
        assert error.code == "unsupported-operation"
        assert "prompt must be empty; models that can: classes" in error.message


class TestPictures:
    def test_without_a_seed_each_answer_differs_and_tells_its_own(
        self, client: openai.OpenAI, process: Process
    ) -> None:
        first, second = (client.images.generate(prompt="") for _ in range(2))
        assert (pictures(first)[0] != pictures(second)[0]).any()
        seed = (first.model_extra or {})["seed"]
        np.testing.assert_array_equal(pictures(first), sampled(process, seed=seed))

    def test_the_answer_tells_what_it_is(self, client: openai.OpenAI) -> None:
        response = client.images.generate(prompt="", model="plain@1")
        assert (response.size, response.output_format) == (f"{WIDTH}x{HEIGHT}", "png")
        assert response.created > 1.7e9
        extra = response.model_extra or {}
        assert (extra["model"], extra["version"]) == ("plain", 1)

    @pytest.mark.parametrize("scale", [1, 2, 37])
    def test_a_whole_multiple_repeats_every_pixel(
        self, client: openai.OpenAI, process: Process, scale: int
    ) -> None:
        size = f"{scale * WIDTH}x{scale * HEIGHT}"
        response = client.images.generate(prompt="", model="colour", size=size, extra_body=SEED)
        (expected,) = sampled(process, model="colour")
        expected = expected.repeat(scale, axis=0).repeat(scale, axis=1)
        np.testing.assert_array_equal(pictures(response)[0], expected)
        assert response.size == size

    def test_any_other_size_is_that_size_with_pixels_as_even_as_can_be(
        self, client: openai.OpenAI
    ) -> None:
        response = client.images.generate(prompt="", size="250x125", extra_body=SEED)
        (picture,) = pictures(response)
        assert picture.shape == (125, 250)
        small = client.images.generate(prompt="", size="auto", extra_body=SEED)
        np.testing.assert_array_equal(picture, resize_nearest(pictures(small)[0], 250, 125))
        # Rows 31 and 32 pixels high, never another.
        edges = np.flatnonzero((picture[1:] != picture[:-1]).any(axis=1))
        assert set(np.diff(edges)) <= {31, 32}

    @pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
    def test_formats(self, client: openai.OpenAI, process: Process, output_format: Any) -> None:
        response = client.images.generate(
            prompt="", model="colour", output_format=output_format, extra_body=SEED
        )
        assert response.output_format == output_format
        expected = sampled(process, model="colour")
        if output_format == "jpeg":  # noise is not what it was made for
            assert pictures(response)[0].shape == expected[0].shape
        else:
            np.testing.assert_array_equal(pictures(response), expected)

    def test_what_is_beyond_openai_goes_into_the_extra_body(
        self, client: openai.OpenAI, process: Process
    ) -> None:
        for model, options in (("plain", {"truncation": 0.3}), ("binary", {"temperature": 0.3})):
            response = client.images.generate(
                prompt="", model=model, n=5, extra_body=SEED | options
            )
            expected = sampled(process, model=model, n=5, **options)
            np.testing.assert_array_equal(pictures(response), expected)
            assert (expected != sampled(process, model=model, n=5)).any()

    @pytest.mark.parametrize(
        "field", [{"stream": 0}, {"stream": True}, {"partial_images": False}, {"partial_images": 1}]
    )
    def test_what_is_only_equal_to_a_possible_value_is_refused(
        self, process: Process, field: dict[str, Any]
    ) -> None:
        with process.client() as http:
            response = http.post("/v1/images/generations", json={"prompt": ""} | field)
        assert response.status_code == 422
        assert response.json()["error"]["param"] == next(iter(field))

    def test_what_changes_nothing_is_taken(self, client: openai.OpenAI) -> None:
        assert client.images.generate(
            prompt="",
            n=1,
            size="auto",
            quality="auto",
            background="auto",
            moderation="low",
            response_format="b64_json",
            user="me",
            stream=False,
        ).data


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "param", "told"),
        [
            ({"response_format": "url"}, "response_format", "ask for b64_json"),
            ({"size": "256x256"}, "size", "the model draws 8x4"),
            ({"size": "4x2"}, "size", "or for larger of the same proportions, such as 64x32"),
            ({"size": "large"}, "size", "pattern"),
            ({"size": "4096x2048", "n": 3}, "size", "too large"),
            ({"n": 21}, "n", "at most 20 images"),
            ({"n": 0}, "n", "greater than or equal to 1"),
            ({"quality": "hd"}, "quality", "auto"),
            ({"style": "vivid"}, "style", "not permitted"),
            ({"background": "transparent"}, "background", "opaque"),
            ({"output_format": "gif"}, "output_format", "png"),
            ({"extra_body": {"seed": -1}}, "seed", "greater than or equal to 0"),
        ],
        ids=str,
    )
    def test_the_client_shows_what_is_wrong(
        self, client: openai.OpenAI, fields: dict[str, Any], param: str, told: str
    ) -> None:
        error = refusal(client, **fields)
        assert isinstance(error, openai.UnprocessableEntityError)
        assert error.param == param
        assert error.type == "invalid_request_error"
        assert told in error.message

    def test_no_picture_is_streamed(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.UnprocessableEntityError, match="stream"):
            client.images.generate(prompt="", stream=True)

    @pytest.mark.parametrize("model", ["dall-e-3", "gpt-image-1.5", "../plain", "plain@3"])
    def test_an_unknown_model_is_not_found(self, client: openai.OpenAI, model: str) -> None:
        error = refusal(client, model=model)
        assert isinstance(error, openai.NotFoundError)
        assert "available: binary@1" in error.message

    def test_a_path_that_is_not_offered_is_told_too(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="there is nothing at /v1/chat/completions"):
            client.chat.completions.create(model="plain", messages=[])


class TestModels:
    def test_the_newest_version_of_each_is_listed(self, client: openai.OpenAI) -> None:
        listed = client.models.list().data
        assert [model.id for model in listed] == ["binary", "classes", "colour", "plain"]
        assert {model.object for model in listed} == {"model"}

    def test_one_is_described(self, client: openai.OpenAI) -> None:
        model = client.models.retrieve("plain@1")
        assert (model.id, model.owned_by) == ("plain@1", "ptheta")
        assert model.created == 946_684_800  # the year 2000, as the bundle says
        with pytest.raises(openai.NotFoundError, match="available"):
            client.models.retrieve("gpt-image-1")


def test_a_picture_is_never_made_smaller_or_mixed() -> None:
    pixels = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    for scale in (1, 1.5, 7.3):
        resized = resize_nearest(pixels, round(scale * WIDTH), round(scale * HEIGHT))
        assert set(resized.ravel()) == set(pixels.ravel())
