"""POST /encode, POST /reconstruct, and pictures as anchors of /interpolate."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.service.answers import (
    answer,
    array,
    invalid,
    npy,
    picture,
    pixels_of_base64,
    png,
    png_base64,
    problem,
)
from tests.service.bundles import (
    ENCODER,
    HEIGHT,
    LATENT_DIM,
    POSTERIOR_STD,
    WIDTH,
    latent_generator,
    write_bundle,
    write_vae_store,
)
from tests.service.conftest import Serve

NPY = {"Content-Type": "application/x-npy"}
ROUTES = ("/encode", "/reconstruct")


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Return a client of a model with an encoder, and of others without."""
    store = write_vae_store(tmp_path_factory.mktemp("encoders"))
    write_bundle(store, "fragile", {"generate": latent_generator(1), "encode": fragile_encoder()})
    with serve(model_store=store) as running:
        yield running.client


def fragile_encoder() -> str:
    """Return the logarithm of the first pixels, which is not finite where one is black."""
    return f"""
    encode (float[N, 1, {HEIGHT}, {WIDTH}] image)
            => (float[N, {LATENT_DIM}] mean, float[N, {LATENT_DIM}] log_var) {{
        flat = Constant <value_ints = [-1, {HEIGHT * WIDTH}]> ()
        begin = Constant <value_ints = [0]> ()
        end = Constant <value_ints = [{LATENT_DIM}]> ()
        axis = Constant <value_ints = [1]> ()
        x = Reshape (image, flat)
        first = Slice (x, begin, end, axis)
        mean = Log (first)
        log_var = Identity (first)
    }}"""


def pixels(count: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(6)
    return rng.integers(1, 256, (count, HEIGHT, WIDTH), dtype=np.uint8)


def send(client: httpx.Client, route: str, count: int = 2, **body: Any) -> httpx.Response:
    images = pixels(count).tolist()
    return client.post(route, json={"model": "tiny-vae", "images": images} | body)


def means(count: int) -> NDArray[np.float64]:
    result: NDArray[np.float64] = pixels(count).reshape(count, -1) / 255 @ ENCODER
    return result


def decoded(client: httpx.Client, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    body = {"model": "tiny-vae", "latents": latents.tolist(), "format": "npy"}
    return array(client.post("/sample", json=body))


def encoded(client: httpx.Client, count: int) -> NDArray[np.float32]:
    return array(send(client, "/encode", count, format="npy"))[:, 0]


class TestEncode:
    def test_latents_are_the_posterior_of_each_image(self, client: httpx.Client) -> None:
        response = send(client, "/encode", 3)
        content = answer(response)
        assert (content["model"], content["version"]) == ("tiny-vae", 1)
        assert response.headers["x-model"] == "tiny-vae@1"
        assert [latent["index"] for latent in content["latents"]] == [0, 1, 2]
        made = np.array([latent["mean"] for latent in content["latents"]])
        np.testing.assert_allclose(made, means(3), atol=1e-5)  # single precision
        log_vars = np.array([latent["log_var"] for latent in content["latents"]])
        np.testing.assert_allclose(log_vars, 2 * math.log(POSTERIOR_STD), atol=1e-6)

    def test_npy_holds_mean_and_log_var_of_each_image(self, client: httpx.Client) -> None:
        made = array(send(client, "/encode", 3, format="npy"))
        assert made.shape == (3, 2, LATENT_DIM)
        assert made.dtype == np.float32
        np.testing.assert_allclose(made[:, 0], means(3), atol=1e-5)

    def test_files_and_arrays_are_encoded_alike(self, client: httpx.Client) -> None:
        params = {"model": "tiny-vae", "format": "npy"}
        by_json = array(send(client, "/encode", 2, format="npy"))
        by_npy = array(client.post("/encode", content=npy(pixels(2)), params=params, headers=NPY))
        files = [("images", ("x.png", png(image), "image/png")) for image in pixels(2)]
        by_form = array(client.post("/encode", files=files, data=params))
        np.testing.assert_array_equal(by_json, by_npy)
        np.testing.assert_array_equal(by_json, by_form)

    def test_without_a_model_one_with_an_encoder_encodes(self, client: httpx.Client) -> None:
        content = answer(client.post("/encode", json={"images": pixels(1).tolist()}))
        assert content["model"] == "fragile"

    def test_a_latent_that_is_not_finite_is_our_fault(self, client: httpx.Client) -> None:
        black = np.zeros((1, HEIGHT, WIDTH), np.uint8).tolist()
        for route in ROUTES:
            response = client.post(route, json={"model": "fragile", "images": black})
            problem(response, "inference-failed", 500)


class TestReconstruct:
    def test_an_image_is_what_its_mean_decodes_to(self, client: httpx.Client) -> None:
        made = array(send(client, "/reconstruct", 3, format="npy"))
        np.testing.assert_array_equal(made, decoded(client, encoded(client, 3)))

    def test_json_holds_a_picture_of_each_image(self, client: httpx.Client) -> None:
        content = answer(send(client, "/reconstruct", 2, scale=2))
        assert [image["index"] for image in content["images"]] == [0, 1]
        expected = array(send(client, "/reconstruct", 2, format="npy"))
        for image, small in zip(content["images"], expected, strict=True):
            large = small.repeat(2, axis=0).repeat(2, axis=1)
            np.testing.assert_array_equal(pixels_of_base64(image["png"]), large)

    @pytest.mark.parametrize("answer_format", ["png", "webp", "jpeg"])
    def test_one_picture_shows_all(self, client: httpx.Client, answer_format: str) -> None:
        response = send(client, "/reconstruct", 3, format=answer_format, columns=2, scale=3)
        shown = picture(response, f"image/{answer_format}")
        assert shown.shape == (2 * 3 * HEIGHT, 2 * 3 * WIDTH) or answer_format == "webp"
        assert shown.shape[:2] == (2 * 3 * HEIGHT, 2 * 3 * WIDTH)

    def test_a_picture_may_not_be_too_large(self, client: httpx.Client) -> None:
        response = send(client, "/reconstruct", 40, format="webp", columns=1024, scale=16)
        problem(response, "invalid-request", 422)


class TestAnchors:
    def walk(self, client: httpx.Client, anchors: list[Any], **body: Any) -> httpx.Response:
        named = {"model": "tiny-vae", "anchors": anchors}
        return client.post("/interpolate", json=named | body)

    def test_pictures_are_walked_between_in_a_straight_line(self, client: httpx.Client) -> None:
        anchors = [{"image": png_base64(image)} for image in pixels(2)]
        content = answer(self.walk(client, anchors, steps=3))
        assert content["method"] == "lerp"
        start, end = encoded(client, 2)
        expected = np.stack([start, (start + end) / 2, end])
        made = np.array([frame["latent"] for frame in content["frames"]])
        np.testing.assert_allclose(made, expected, atol=1e-6)

    def test_the_ends_are_the_reconstructions(self, client: httpx.Client) -> None:
        anchors = [{"image": png_base64(image)} for image in pixels(2)]
        frames = array(self.walk(client, anchors, steps=4, format="npy"))
        expected = array(send(client, "/reconstruct", 2, format="npy"))
        np.testing.assert_array_equal(frames[[0, -1]], expected)

    def test_anchors_of_all_kinds_mix_in_their_order(self, client: httpx.Client) -> None:
        image = {"image": png_base64(pixels(1)[0])}
        latent = {"latent": [0.5, -1.0, 2.0]}
        anchors = [{"seed": 4, "index": 2}, image, latent, image]
        content = answer(self.walk(client, anchors, steps=2))
        made = [frame["latent"] for frame in content["frames"]]
        mean = encoded(client, 1)[0].tolist()
        assert made[1:] == [mean, [0.5, -1.0, 2.0], mean]
        assert made[0] not in (mean, latent["latent"])

    @pytest.mark.parametrize("text", ["", "no base64!", "iVBORw0KGgo="])
    def test_what_is_no_picture_is_blamed(self, client: httpx.Client, text: str) -> None:
        invalid(self.walk(client, [{"seed": 1}, {"image": text}]), "/anchors/1/image")

    def test_a_picture_of_another_size_is_blamed(self, client: httpx.Client) -> None:
        large = png_base64(np.zeros((HEIGHT + 1, WIDTH), np.uint8))
        content = invalid(self.walk(client, [{"image": large}, {"seed": 1}]), "/anchors/0/image")
        assert "resize=true" in content["detail"]

    def test_a_picture_of_another_size_and_colour_can_be_made_fit(
        self, client: httpx.Client
    ) -> None:
        image = pixels(1)[0]
        doubled = np.stack([image.repeat(2, axis=0).repeat(2, axis=1)] * 3, axis=-1)
        fitting = {"image": png_base64(doubled), "resize": True, "convert": True}
        content = answer(self.walk(client, [fitting, {"seed": 1}], steps=2))
        reference = client.post(
            "/encode",
            data={"model": "tiny-vae", "resize": "true", "convert": "true"},
            files={"images": png(doubled)},
        )
        assert content["frames"][0]["latent"] == answer(reference)["latents"][0]["mean"]

    def test_an_anchor_is_one_thing(self, client: httpx.Client) -> None:
        both = {"image": png_base64(pixels(1)[0]), "seed": 1}
        invalid(self.walk(client, [{"seed": 1}, both]), "/anchors/1")

    def test_models_without_an_encoder_name_others(self, client: httpx.Client) -> None:
        anchors = [{"seed": 1}, {"image": png_base64(pixels(1)[0])}]
        response = self.walk(client, anchors, model="tiny-latent")
        content = problem(response, "no-latent-space", 422)
        assert content["alternatives"] == ["fragile", "tiny-vae"]


class TestRefusals:
    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("model", ["tiny-latent", "tiny-binary"])
    def test_models_without_an_encoder_refuse_and_name_others(
        self, client: httpx.Client, route: str, model: str
    ) -> None:
        content = problem(send(client, route, model=model), "no-latent-space", 422)
        assert content["alternatives"] == ["fragile", "tiny-vae"]

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("binarize", "threshold"),
            ("num_importance_samples", 3),
            ("timeout_ms", 0),
            ("seed", -1),
        ],
    )
    def test_fields_that_break_their_rule_are_blamed(
        self, client: httpx.Client, route: str, field: str, value: Any
    ) -> None:
        invalid(send(client, route, **{field: value}), f"/{field}")

    @pytest.mark.parametrize("route", ROUTES)
    def test_models_without_classes_take_no_labels(self, client: httpx.Client, route: str) -> None:
        problem(send(client, route, labels=[1]), "unsupported-operation", 422)

    @pytest.mark.parametrize("route", ROUTES)
    def test_no_images_and_other_bodies_are_refused(self, client: httpx.Client, route: str) -> None:
        invalid(client.post(route, json={"model": "tiny-vae"}), "/images")
        headers = {"Content-Type": "text/plain"}
        response = client.post(route, content=b"x", headers=headers)
        problem(response, "unsupported-media-type", 415)

    def test_only_reconstructions_have_a_layout(self, client: httpx.Client) -> None:
        invalid(send(client, "/encode", scale=2), "/scale")
        invalid(send(client, "/encode", format="png"), "/format")
