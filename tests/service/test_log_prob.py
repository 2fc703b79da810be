"""POST /log_prob: three kinds of input that agree, every option, every refusal."""

import base64
import io
import json
import math
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from tests.service.answers import (
    answer,
    array,
    batch_rows,
    invalid,
    npy,
    png,
    png_base64,
    problem,
)
from tests.service.bundles import (
    HEIGHT,
    MAX_BATCH_ROWS,
    NEVER_ON,
    UNDEFINED,
    WIDTH,
    pixel_probs,
)
from tests.service.conftest import Serve

NPY = {"Content-Type": "application/x-npy"}


def grey_pixels(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return pictures in which the two special pixels are off."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH), dtype=np.uint8)
    pixels[:, *NEVER_ON] = pixels[:, *UNDEFINED] = 0
    return pixels


def colour_pixels(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def pixels_for(model: str, count: int) -> NDArray[np.uint8]:
    return colour_pixels(count) if model == "tiny-rgb" else grey_pixels(count)


def score(client: httpx.Client, images: Any, **body: Any) -> httpx.Response:
    if isinstance(images, np.ndarray):
        images = images.tolist()
    return client.post("/log_prob", json={"model": "tiny-binary", "images": images} | body)


def upload(client: httpx.Client, files: list[bytes], **fields: Any) -> httpx.Response:
    named = [("images", (f"{i}.png", file, "image/png")) for i, file in enumerate(files)]
    return client.post("/log_prob", files=named, data={"model": "tiny-binary"} | fields)


def send_npy(client: httpx.Client, content: bytes, **params: Any) -> httpx.Response:
    named = {"model": "tiny-binary"} | params
    return client.post("/log_prob", content=content, params=named, headers=NPY)


def log_probs(response: httpx.Response) -> list[float]:
    return [result["log_prob"] for result in answer(response)["results"]]


class TestValues:
    def test_a_binary_model_scores_pixels_at_the_threshold(self, client: httpx.Client) -> None:
        pixels = grey_pixels(20)
        probs = np.clip(pixel_probs()[0, 0], 1e-300, None)
        on = pixels >= 128
        expected = np.where(on, np.log(probs), np.log1p(-probs)).sum(axis=(1, 2))
        # Single precision over 32 terms.
        np.testing.assert_allclose(log_probs(score(client, pixels)), expected, rtol=1e-5)

    def test_a_grey_model_scores_pixels_as_they_are(self, client: httpx.Client) -> None:
        pixels = grey_pixels(20)
        expected = -((pixels / 255) ** 2).sum(axis=(1, 2))
        # Single precision over 32 terms.
        np.testing.assert_allclose(
            log_probs(score(client, pixels, model="tiny-grey")), expected, rtol=1e-5
        )

    def test_bits_per_dim_is_surprise_per_value_in_bits(self, client: httpx.Client) -> None:
        for model, num_dims in (("tiny-binary", 32), ("tiny-rgb", 96)):
            content = answer(score(client, pixels_for(model, 3), model=model))
            assert content["num_dims"] == num_dims
            for result in content["results"]:
                expected = -result["log_prob"] / (num_dims * math.log(2))
                assert result["bits_per_dim"] == pytest.approx(expected, rel=1e-12)

    def test_a_likelihood_of_zero_is_null_with_a_reason(self, client: httpx.Client) -> None:
        pixels = grey_pixels(3)
        pixels[1, *NEVER_ON] = 255
        fine, impossible, also_fine = answer(score(client, pixels))["results"]
        assert (fine["status"], also_fine["status"]) == ("ok", "ok")
        assert impossible == {
            "index": 1,
            "log_prob": None,
            "bits_per_dim": None,
            "status": "neg_inf",
        }

    def test_what_cannot_be_computed_is_null_and_harms_no_other(self, client: httpx.Client) -> None:
        pixels = grey_pixels(3)
        pixels[1, *UNDEFINED] = 255
        results = answer(score(client, pixels))["results"]
        assert [result["status"] for result in results] == ["ok", "non_finite", "ok"]
        assert results[1]["log_prob"] is None

    def test_the_answer_says_what_was_computed(self, client: httpx.Client) -> None:
        response = score(client, grey_pixels(2))
        content = answer(response)
        assert content.keys() == {
            "model",
            "version",
            "density",
            "estimator",
            "num_dims",
            "preprocess",
            "results",
        }
        assert (content["model"], content["version"]) == ("tiny-binary", 1)
        assert (content["density"], content["estimator"]) == ("exact", "exact")
        assert content["preprocess"] == {"binarize": "threshold"}
        assert [result["index"] for result in content["results"]] == [0, 1]
        assert response.headers["x-model"] == "tiny-binary@1"
        assert batch_rows(response) >= 2

    def test_without_a_model_the_default_that_can_score_does(self, client: httpx.Client) -> None:
        response = client.post("/log_prob", json={"images": colour_pixels(1).tolist()})
        assert answer(response)["model"] == "tiny-rgb"


class TestInputs:
    @pytest.mark.parametrize("model", ["tiny-binary", "tiny-grey", "tiny-rgb"])
    def test_all_kinds_of_input_agree(self, client: httpx.Client, model: str) -> None:
        pixels = pixels_for(model, 5)
        nested = score(client, pixels, model=model)
        answers = [
            score(client, [png_base64(image) for image in pixels], model=model),
            score(
                client,
                [f"data:image/png;base64,{png_base64(image)}" for image in pixels],
                model=model,
            ),
            score(client, [pixels[0].tolist(), *map(png_base64, pixels[1:])], model=model),
            upload(client, [png(image) for image in pixels], model=model),
            send_npy(client, npy(pixels), model=model),
            send_npy(client, npy(pixels.astype(np.float32)), model=model),
            send_npy(client, npy(np.asfortranarray(pixels)), model=model),
        ]
        for response in answers:
            assert answer(response) == answer(nested)

    def test_grey_may_have_a_channel_axis(self, client: httpx.Client) -> None:
        pixels = grey_pixels(2)
        flat = answer(score(client, pixels))
        assert answer(score(client, pixels[..., None])) == flat
        assert answer(send_npy(client, npy(pixels[..., None]))) == flat

    def test_an_answer_does_not_depend_on_what_else_is_scored(self, client: httpx.Client) -> None:
        count = 3 * MAX_BATCH_ROWS + 5
        pixels = grey_pixels(count)
        response = send_npy(client, npy(pixels))
        many = answer(response)["results"]
        assert batch_rows(response) <= MAX_BATCH_ROWS
        assert len(many) == count
        for position in (0, 20, count - 1):
            (alone,) = answer(score(client, pixels[position : position + 1]))["results"]
            assert alone["log_prob"] == many[position]["log_prob"]

    def test_another_media_type_is_refused(self, client: httpx.Client) -> None:
        response = client.post("/log_prob", content=b"x", headers={"Content-Type": "text/csv"})
        content = problem(response, "unsupported-media-type", 415)
        assert content["possible"] == [
            "application/json",
            "multipart/form-data",
            "application/x-npy",
        ]

    def test_json_needs_no_content_type(self, client: httpx.Client) -> None:
        body = json.dumps({"model": "tiny-binary", "images": grey_pixels(1).tolist()})
        assert answer(client.post("/log_prob", content=body.encode()))["results"]


class TestBinarize:
    def test_threshold_is_the_default(self, client: httpx.Client) -> None:
        pixels = grey_pixels(3)
        assert answer(score(client, pixels)) == answer(score(client, pixels, binarize="threshold"))

    def test_stochastic_binarization_depends_on_the_seed_alone(self, client: httpx.Client) -> None:
        pixels = grey_pixels(3)
        first = score(client, pixels, binarize="stochastic", seed=5)
        assert first.content == score(client, pixels, binarize="stochastic", seed="5").content
        assert answer(first)["preprocess"] == {"binarize": "stochastic"}
        other = score(client, pixels, binarize="stochastic", seed=6)
        assert log_probs(first) != log_probs(other)
        default = score(client, pixels, binarize="stochastic")
        assert log_probs(default) == log_probs(score(client, pixels, binarize="stochastic", seed=0))

    @pytest.mark.parametrize("binarization", ["threshold", "stochastic"])
    def test_a_large_array_is_prepared_like_its_images_one_by_one(
        self, client: httpx.Client, binarization: str
    ) -> None:
        pixels = grey_pixels(150).astype(np.uint8)  # prepared in parts
        listed = score(client, pixels, binarize=binarization, seed=3)
        for values in (pixels, pixels.astype(np.float32)):
            sent = send_npy(client, npy(values), binarize=binarization, seed=3)
            assert log_probs(sent) == log_probs(listed)

    def test_black_and_white_images_need_no_decision(self, client: httpx.Client) -> None:
        pixels = np.where(grey_pixels(3) >= 128, 255, 0)
        by_threshold = log_probs(score(client, pixels))
        assert log_probs(score(client, pixels, binarize="stochastic", seed=1)) == by_threshold

    def test_models_of_grey_levels_refuse_it(self, client: httpx.Client) -> None:
        invalid(score(client, grey_pixels(1), model="tiny-grey", binarize="threshold"), "/binarize")

    def test_another_way_is_refused(self, client: httpx.Client) -> None:
        invalid(score(client, grey_pixels(1), binarize="dither"), "/binarize")

    def test_grey_levels_are_not_binarized_for_models_of_grey_levels(
        self, client: httpx.Client
    ) -> None:
        content = answer(score(client, grey_pixels(1), model="tiny-grey"))
        assert content["preprocess"] == {"binarize": None}


class TestPerDim:
    @pytest.mark.parametrize("model", ["tiny-binary", "tiny-rgb"])
    def test_maps_sum_to_minus_log_prob(self, client: httpx.Client, model: str) -> None:
        pixels = pixels_for(model, 4)
        results = answer(score(client, pixels, model=model, per_dim=True))["results"]
        for result in results:
            surprise = np.array(result["per_dim"])
            assert surprise.shape == pixels.shape[1:]
            # The graph sums in single precision.
            assert surprise.sum() == pytest.approx(-result["log_prob"], rel=1e-5)

    def test_the_map_is_the_surprise_of_each_pixel(self, client: httpx.Client) -> None:
        (result,) = answer(score(client, np.zeros((1, HEIGHT, WIDTH), int), per_dim=True))[
            "results"
        ]
        # Single precision.
        np.testing.assert_allclose(
            result["per_dim"], -np.log1p(-pixel_probs()[0, 0]), rtol=1e-5, atol=1e-7
        )

    def test_an_infinite_surprise_is_null(self, client: httpx.Client) -> None:
        pixels = grey_pixels(1)
        pixels[0, *NEVER_ON] = 255
        (result,) = answer(score(client, pixels, per_dim=True))["results"]
        assert result["per_dim"][NEVER_ON[0]][NEVER_ON[1]] is None

    def test_it_is_left_out_unless_asked_for(self, client: httpx.Client) -> None:
        assert "per_dim" not in answer(score(client, grey_pixels(1)))["results"][0]

    def test_models_without_conditionals_refuse_and_name_others(self, client: httpx.Client) -> None:
        response = score(client, grey_pixels(1), model="tiny-grey", per_dim=True)
        content = problem(response, "unsupported-operation", 422)
        assert content["alternatives"] == ["tiny-binary", "tiny-rgb"]


class TestFormats:
    def test_npy_is_one_number_per_image(self, client: httpx.Client) -> None:
        pixels = grey_pixels(4)
        pixels[2, *NEVER_ON] = 255
        scores = array(score(client, pixels, format="npy"))
        assert scores.dtype == np.float64
        assert scores.shape == (4,)
        results = answer(score(client, pixels))["results"]
        told = [result["log_prob"] for result in results]
        np.testing.assert_array_equal(
            scores, [-np.inf if value is None else value for value in told]
        )

    @pytest.mark.parametrize("model", ["tiny-binary", "tiny-rgb"])
    def test_npy_of_maps_is_one_map_per_image(self, client: httpx.Client, model: str) -> None:
        pixels = pixels_for(model, 4)
        body = {"model": model, "per_dim": True}
        maps = array(score(client, pixels, **body, format="npy"))
        assert maps.dtype == np.float64
        assert maps.shape == pixels.shape
        results = answer(score(client, pixels, **body))["results"]
        np.testing.assert_array_equal(maps, [result["per_dim"] for result in results])

    def test_the_header_chooses_too(self, client: httpx.Client) -> None:
        response = client.post(
            "/log_prob",
            content=npy(grey_pixels(2)),
            params={"model": "tiny-binary"},
            headers=NPY | {"Accept": "application/x-npy"},
        )
        assert array(response).shape == (2,)

    def test_pictures_are_not_possible(self, client: httpx.Client) -> None:
        invalid(score(client, grey_pixels(1), format="png"), "/format")


class TestRefusedImages:
    @pytest.mark.parametrize(
        "image",
        [
            [],
            [[]],
            [[0] * WIDTH] * (HEIGHT + 1),
            [[0] * (WIDTH + 1)] * HEIGHT,
            [[0] * HEIGHT] * WIDTH,
            [[[0] * 3] * WIDTH] * HEIGHT,
            [[0] * WIDTH] * (HEIGHT - 1) + [[0] * (WIDTH - 1)],
            [[0.5] * WIDTH] * HEIGHT,
            [["0"] * WIDTH] * HEIGHT,
            [[True] * WIDTH] * HEIGHT,
            [[None] * WIDTH] * HEIGHT,
            [[256] * WIDTH] * HEIGHT,
            [[-1] * WIDTH] * HEIGHT,
            [[10**30] * WIDTH] * HEIGHT,
            [[{}] * WIDTH] * HEIGHT,
            {},
            5,
            None,
            True,
            "",
            "not base64!",
            "aGVsbG8=",
        ],
        ids=lambda image: json.dumps(image)[:30],
    )
    def test_what_is_no_image_is_pointed_at(self, client: httpx.Client, image: Any) -> None:
        good = [[0] * WIDTH] * HEIGHT
        content = invalid(score(client, [good, image]), "/images/1")
        assert content["detail"].startswith("image 1: ")

    @pytest.mark.parametrize("images", [None, [], "x", {}])
    def test_images_are_needed(self, client: httpx.Client, images: Any) -> None:
        invalid(score(client, images), "/images")

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
    def test_what_is_not_finite_is_refused(self, client: httpx.Client, number: str) -> None:
        row = ", ".join([number] * WIDTH)
        image = f"[{', '.join([f'[{row}]'] * HEIGHT)}]"
        response = client.post(
            "/log_prob", content=f'{{"model": "tiny-binary", "images": [{image}]}}'
        )
        problem(response, "invalid-request", 422)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (npy(grey_pixels(2).astype(np.float64)), "uint8 or float32"),
            (npy(grey_pixels(2).astype(np.int64)), "uint8 or float32"),
            (npy(grey_pixels(2).astype(">f4")), "uint8 or float32"),
            (npy(grey_pixels(2).astype(complex)), "uint8 or float32"),
            (npy(grey_pixels(2)[:, :2]), "shape"),
            (npy(grey_pixels(2)[0]), "shape"),
            (npy(np.array(3, np.uint8)), "shape"),
            (npy(colour_pixels(2)), "shape"),
            (npy(grey_pixels(0)), "no image"),
            (npy(np.full((1, HEIGHT, WIDTH), np.nan, np.float32)), "0 to 255"),
            (npy(np.full((1, HEIGHT, WIDTH), 255.5, np.float32)), "0 to 255"),
            (npy(grey_pixels(2))[:-1], "does not hold"),
            (npy(np.array([None], dtype=object)), "object"),
            (b"hello", "npy"),
            (b"", "npy"),
        ],
    )
    def test_what_is_no_array_of_images_is_refused(
        self, client: httpx.Client, content: bytes, reason: str
    ) -> None:
        assert reason in invalid(send_npy(client, content), "/images")["detail"]

    def test_the_limit_of_the_server_is_told(self, serve: Serve) -> None:
        with serve(max_rows=4) as small:
            assert len(log_probs(score(small.client, grey_pixels(4)))) == 4
            for response in (
                score(small.client, grey_pixels(5)),
                send_npy(small.client, npy(grey_pixels(5))),
            ):
                assert "at most 4" in invalid(response, "/images")["detail"]
            files = [png(image) for image in grey_pixels(5)]
            problem(upload(small.client, files), "invalid-request", 400)


class TestPictures:
    @pytest.mark.parametrize("send", ["json", "form"])
    def test_another_size_needs_resize(self, client: httpx.Client, send: str) -> None:
        large = np.zeros((HEIGHT * 3, WIDTH * 3), np.uint8)

        def ask(**more: Any) -> httpx.Response:
            if send == "json":
                return score(client, [png_base64(large)], **more)
            return upload(client, [png(large)], **{k: str(v).lower() for k, v in more.items()})

        assert "resize=true" in invalid(ask(), "/images/0")["detail"]
        expected = log_probs(score(client, np.zeros((1, HEIGHT, WIDTH), int)))
        assert log_probs(ask(resize=True)) == expected

    @pytest.mark.parametrize("send", ["json", "form"])
    def test_colour_to_grey_and_back_needs_convert(self, client: httpx.Client, send: str) -> None:
        level = np.full((HEIGHT, WIDTH), 100, np.uint8)
        colour = np.stack([level] * 3, axis=-1)

        def ask(image: NDArray[np.uint8], **more: Any) -> httpx.Response:
            if send == "json":
                return score(client, [png_base64(image)], **more)
            return upload(client, [png(image)], **{k: str(v).lower() for k, v in more.items()})

        for model, foreign, own in (("tiny-grey", colour, level), ("tiny-rgb", level, colour)):
            assert "convert=true" in invalid(ask(foreign, model=model), "/images/0")["detail"]
            assert log_probs(ask(foreign, model=model, convert=True)) == log_probs(
                ask(own, model=model)
            )

    @pytest.mark.parametrize("picture_format", ["png", "jpeg", "webp"])
    def test_common_formats_are_read(self, client: httpx.Client, picture_format: str) -> None:
        buffer = io.BytesIO()
        PillowImage.new("L", (WIDTH, HEIGHT), 0).save(buffer, picture_format)
        response = upload(client, [buffer.getvalue()], convert="true")
        assert log_probs(response) == log_probs(score(client, np.zeros((1, HEIGHT, WIDTH), int)))

    @pytest.mark.parametrize("content", [b"", b"hello", png(grey_pixels(1)[0])[:40]])
    def test_what_is_no_picture_is_pointed_at(self, client: httpx.Client, content: bytes) -> None:
        good = png(grey_pixels(1)[0])
        detail = invalid(upload(client, [good, content]), "/images/1")["detail"]
        assert "not a readable picture" in detail
        text = base64.b64encode(content).decode()
        invalid(score(client, [png_base64(grey_pixels(1)[0]), text]), "/images/1")


class TestForms:
    def test_fields_are_read_as_text(self, client: httpx.Client) -> None:
        pixels = grey_pixels(2)
        fields = {"binarize": "stochastic", "seed": str(2**64 - 1), "per_dim": "true"}
        by_form = upload(client, [png(image) for image in pixels], **fields)
        assert answer(by_form) == answer(score(client, pixels, **fields | {"per_dim": True}))

    @pytest.mark.parametrize(
        ("field", "value"),
        [("seed", "-1"), ("binarize", "dither"), ("per_dim", "maybe"), ("sed", "1")],
    )
    def test_a_field_that_breaks_its_rule_is_named(
        self, client: httpx.Client, field: str, value: str
    ) -> None:
        invalid(upload(client, [png(grey_pixels(1)[0])], **{field: value}), f"/{field}")

    def test_a_field_may_come_once(self, client: httpx.Client) -> None:
        response = client.post(
            "/log_prob",
            files=[("images", png(grey_pixels(1)[0]))],
            data={"model": "tiny-binary", "seed": ["1", "2"]},
        )
        assert "twice" in invalid(response, "/seed")["detail"]

    def test_a_form_that_is_cut_off_is_not_scored_in_part(self, client: httpx.Client) -> None:
        files = [("images", (f"{i}.png", png(image))) for i, image in enumerate(grey_pixels(2))]
        fields = {"model": "tiny-binary"}
        request = client.build_request("POST", "/log_prob", files=files, data=fields)
        whole = request.read()
        headers = {"Content-Type": request.headers["content-type"]}
        assert answer(client.post("/log_prob", content=whole, headers=headers))["results"]
        for length in (len(whole) // 2, len(whole) - 10):
            response = client.post("/log_prob", content=whole[:length], headers=headers)
            problem(response, "invalid-request", 400)

    def test_files_are_needed(self, client: httpx.Client) -> None:
        response = client.post("/log_prob", files={"model": (None, "tiny-binary")})
        invalid(response, "/images")

    def test_a_file_under_another_name_is_refused(self, client: httpx.Client) -> None:
        files = {"picture": png(grey_pixels(1)[0])}
        invalid(client.post("/log_prob", files=files), "/picture")

    def test_images_that_are_no_files_are_refused(self, client: httpx.Client) -> None:
        response = client.post("/log_prob", files={"images": (None, "text")})
        problem(response, "invalid-request", 422)

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("multipart/form-data", b"--x\r\n\r\n--x--"),
            ("multipart/form-data; boundary=x", b"no boundary"),
            ("multipart/form-data; boundary=x", b"--x\r\nno header\r\n\r\n1\r\n--x--\r\n"),
            ("multipart/form-data; boundary=x", b"--x\r\nA: b\r\n\r\n1\r\n--x--\r\n"),
            ("multipart/form-data; boundary=", b"--\r\n"),
            ("multipart/form-data; boundary=" + "x" * 9000, b"--x\r\n"),
            (
                "multipart/form-data; boundary=x",
                b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n',
            ),
            (
                "multipart/form-data; boundary=x",
                b'--x\r\nContent-Disposition: form-data; name="seed"\r\n\r\n'
                + b"1" * 2_000_000
                + b"\r\n--x--\r\n",
            ),
            (
                "multipart/form-data; boundary=x",
                b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n' * 1000 + b"--x--",
            ),
        ],
        ids=[
            "no-boundary",
            "wrong-boundary",
            "no-header",
            "no-name",
            "empty-boundary",
            "long-boundary",
            "cut-off",
            "long-field",
            "many-fields",
        ],
    )
    def test_a_form_that_cannot_be_read_is_told(
        self, client: httpx.Client, content_type: str, body: bytes
    ) -> None:
        response = client.post("/log_prob", content=body, headers={"Content-Type": content_type})
        assert response.status_code in {400, 422}
        problem(response, "invalid-request", response.status_code)


class TestRefusals:
    def test_implicit_models_have_no_likelihood(self, client: httpx.Client) -> None:
        response = score(client, grey_pixels(1), model="tiny-latent")
        content = problem(response, "log-prob-undefined", 422)
        assert content["alternatives"] == ["tiny-binary", "tiny-grey"]

    def test_an_unknown_model_is_told(self, client: httpx.Client) -> None:
        problem(score(client, grey_pixels(1), model="nobody"), "unknown-model", 404)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("seed", -1),
            ("per_dim", 1),
            ("resize", "yes"),
            ("convert", None),
            ("timeout_ms", 0),
            ("image", []),
            ("model", "?"),
        ],
    )
    def test_a_field_that_breaks_its_rule_is_named(
        self, client: httpx.Client, field: str, value: Any
    ) -> None:
        invalid(score(client, grey_pixels(1), **{field: value}), f"/{field}")

    def test_parameters_of_an_array_are_checked_too(self, client: httpx.Client) -> None:
        content = npy(grey_pixels(1))
        invalid(send_npy(client, content, seed="x"), "/seed")
        invalid(send_npy(client, content, sed="1"), "/sed")
