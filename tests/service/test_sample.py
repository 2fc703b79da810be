"""POST and GET /sample: every field and rule of the contract."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.answers import (
    answer,
    array,
    batch_rows,
    invalid,
    picture,
    pixels_of_base64,
    problem,
)
from tests.service.bundles import HEIGHT, LATENT_DIM, MAX_BATCH_ROWS, WIDTH
from tests.service.conftest import Serve

IMMUTABLE: dict[str, str | int] = {"model": "tiny-latent@1", "seed": 7}
MODELS = ("tiny-latent", "tiny-binary", "tiny-grey", "tiny-rgb")


def sample(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/sample", json=body)


class TestAnswer:
    def test_without_a_field_it_is_one_image_of_the_default_model(
        self, client: httpx.Client
    ) -> None:
        response = client.post("/sample")
        content = answer(response)
        assert content.keys() == {"model", "version", "seed", "images"}
        assert (content["model"], content["version"]) == ("tiny-latent", 2)
        assert [image.keys() for image in content["images"]] == [{"index", "png"}]
        assert response.headers["x-model"] == "tiny-latent@2"
        assert response.headers["x-seed"] == str(content["seed"])

    @pytest.mark.parametrize("model", MODELS)
    def test_images_have_the_shape_of_the_model(self, client: httpx.Client, model: str) -> None:
        content = answer(sample(client, model=model, n=3))
        assert [image["index"] for image in content["images"]] == [0, 1, 2]
        shape = (HEIGHT, WIDTH, 3) if model == "tiny-rgb" else (HEIGHT, WIDTH)
        for image in content["images"]:
            assert pixels_of_base64(image["png"]).shape == shape

    def test_every_byte_of_base64_is_standard(self, client: httpx.Client) -> None:
        """Of 64 noisy pictures, some hold + or /, which another alphabet would write otherwise."""
        content = answer(sample(client, model="tiny-grey", n=64, seed=0))
        texts = "".join(image["png"] for image in content["images"])
        assert {"+", "/"} <= set(texts)
        assert not {"-", "_"} & set(texts)

    def test_a_version_may_be_named(self, client: httpx.Client) -> None:
        first = answer(sample(client, model="tiny-latent@1", seed=1))
        second = answer(sample(client, model="tiny-latent@2", seed=1))
        assert (first["version"], second["version"]) == (1, 2)
        assert first["images"] != second["images"]

    def test_server_timing_tells_queue_infer_and_rows(self, client: httpx.Client) -> None:
        response = sample(client, n=3)
        metrics = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
        assert metrics[:2] == ["queue", "infer"]
        assert batch_rows(response) >= 3


class TestSeeds:
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("image_format", ["json", "png", "webp", "jpeg", "npy"])
    def test_the_same_seed_gives_the_same_bytes(
        self, client: httpx.Client, model: str, image_format: str
    ) -> None:
        body = {"model": model, "n": 5, "seed": 7, "format": image_format}
        assert sample(client, **body).content == sample(client, **body).content

    def test_another_seed_gives_other_images(self, client: httpx.Client) -> None:
        one, other = (sample(client, seed=seed, format="npy").content for seed in (1, 2))
        assert one != other

    def test_without_a_seed_one_is_drawn_and_told(self, client: httpx.Client) -> None:
        first, second = answer(sample(client)), answer(sample(client))
        assert first["seed"] != second["seed"]
        assert answer(sample(client, seed=first["seed"])) == first

    @pytest.mark.parametrize("model", MODELS)
    def test_image_5_alone_is_the_sixth_of_many(self, client: httpx.Client, model: str) -> None:
        many = answer(sample(client, model=model, seed=7, n=6))["images"][5]
        alone = answer(sample(client, model=model, seed=7, first_index=5))["images"][0]
        assert alone == many
        assert alone["index"] == 5

    @pytest.mark.parametrize("seed", [0, 2**53, 2**53 + 1, 2**64 - 1])
    def test_a_large_seed_is_text(self, client: httpx.Client, seed: int) -> None:
        as_number = answer(sample(client, seed=seed))
        as_text = answer(sample(client, seed=str(seed)))
        assert as_number == as_text
        assert as_number["seed"] == (seed if seed <= 2**53 else str(seed))

    @pytest.mark.parametrize(
        "seed",
        [-1, 2**64, str(2**64), "-1", "1.0", 1.0, 1.5, "", "x", "١", True, [], "9" * 5000],
        ids=lambda seed: repr(seed)[:20],
    )
    def test_what_is_no_seed_is_refused(self, client: httpx.Client, seed: Any) -> None:
        invalid(sample(client, seed=seed), "/seed")

    @pytest.mark.parametrize("first_index", [0, 2**32, 2**63 - 1])
    def test_an_index_may_be_large(self, client: httpx.Client, first_index: int) -> None:
        content = answer(sample(client, seed=1, first_index=first_index, n=2))
        indices = [image["index"] for image in content["images"]]
        assert [int(index) for index in indices] == [first_index, first_index + 1]

    @pytest.mark.parametrize("first_index", [-1, 2**63, 1.5])
    def test_what_is_no_index_is_refused(self, client: httpx.Client, first_index: Any) -> None:
        invalid(sample(client, first_index=first_index), "/first_index")


class TestCount:
    def test_a_request_of_several_batches_is_one_answer(self, client: httpx.Client) -> None:
        count = 5 * MAX_BATCH_ROWS + 3
        response = sample(client, model="tiny-rgb", n=count, seed=3, format="npy")
        many = array(response)
        assert many.shape == (count, HEIGHT, WIDTH, 3)
        assert batch_rows(response) <= MAX_BATCH_ROWS
        for first in (0, 17, count - 2):
            few = sample(client, model="tiny-rgb", n=2, seed=3, first_index=first, format="npy")
            np.testing.assert_array_equal(array(few), many[first : first + 2])

    @pytest.mark.parametrize("n", [0, -1, 65_537, 10**30, 1.5, "3", None, True])
    def test_what_is_no_count_is_refused(self, client: httpx.Client, n: Any) -> None:
        if n is None:  # the same as leaving it out
            assert len(answer(sample(client, n=n))["images"]) == 1
        else:
            invalid(sample(client, n=n), "/n")

    def test_the_limit_of_the_server_is_told(self, serve: Serve) -> None:
        with serve(max_rows=4) as small:
            assert len(answer(sample(small.client, n=4))["images"]) == 4
            assert "at most 4" in invalid(sample(small.client, n=5), "/n")["detail"]
            latents = [[0.0] * LATENT_DIM] * 5
            invalid(sample(small.client, latents=latents), "/n")


class TestLatents:
    def test_latents_of_a_seed_give_its_images(self, client: httpx.Client) -> None:
        drawn = answer(sample(client, seed=7, n=3, include=["latents"]))
        latents = [image.pop("latent") for image in drawn["images"]]
        given = answer(sample(client, latents=latents))
        assert given["images"] == drawn["images"]
        assert given["seed"] is None

    def test_told_latents_are_those_after_truncation(self, client: httpx.Client) -> None:
        drawn = answer(sample(client, seed=7, n=2, truncation=0.5, include=["latents"]))
        latents = [image.pop("latent") for image in drawn["images"]]
        assert answer(sample(client, latents=latents))["images"] == drawn["images"]

    def test_truncation_scales_given_and_drawn_latents(self, client: httpx.Client) -> None:
        whole = answer(sample(client, seed=7, include=["latents"]))["images"][0]["latent"]
        half = answer(sample(client, seed=7, truncation=0.5, include=["latents"]))
        assert half["images"][0]["latent"] == [0.5 * value for value in whole]
        given = answer(sample(client, latents=[whole], truncation=0.5, include=["latents"]))
        assert given["images"] == half["images"]

    def test_truncation_of_a_uniform_latent_is_about_one_half(self, client: httpx.Client) -> None:
        body = {"model": "tiny-rgb", "include": ["latents"], "truncation": 0.5}
        half = answer(sample(client, latents=[[0.0, 0.5, 1.0]], **body))["images"][0]
        assert half["latent"] == [0.25, 0.5, 0.75]
        drawn = answer(sample(client, **body, seed=7))["images"][0]["latent"]
        assert 0.25 < min(drawn) < max(drawn) < 0.75

    def test_without_truncation_nothing_changes(self, client: httpx.Client) -> None:
        assert answer(sample(client, seed=7, truncation=1.0)) == answer(sample(client, seed=7))

    @pytest.mark.parametrize("length", [1, LATENT_DIM - 1, LATENT_DIM + 1])
    def test_latents_of_another_length_are_refused(self, client: httpx.Client, length: int) -> None:
        good, bad = [0.0] * LATENT_DIM, [0.0] * length
        content = invalid(sample(client, latents=[good, bad]), "/latents/1")
        assert str(LATENT_DIM) in content["detail"]

    @pytest.mark.parametrize(
        ("latents", "pointer"),
        [
            ([], "/latents"),
            ("zero", "/latents"),
            ([[0, 0, "0"]], "/latents/0/2"),
            ([[0, 0, None]], "/latents/0/2"),
            ([[0, 0, 1e7]], "/latents/0/2"),
            ([[0, 0, -1e300]], "/latents/0/2"),
        ],
    )
    def test_what_is_no_latent_is_refused(
        self, client: httpx.Client, latents: Any, pointer: str
    ) -> None:
        invalid(sample(client, latents=latents), pointer)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_what_is_not_finite_is_refused(self, client: httpx.Client, number: str) -> None:
        for field, text in [("/latents/0/0", f'{{"latents": [[{number}, 0, 0]]}}')]:
            invalid(client.post("/sample", content=text), field)
        invalid(client.post("/sample", content=f'{{"truncation": {number}}}'), "/truncation")

    def test_latents_and_a_seed_are_one_too_many(self, client: httpx.Client) -> None:
        invalid(sample(client, latents=[[0.0] * LATENT_DIM], seed=1), "/seed")

    def test_a_count_must_agree_with_the_latents(self, client: httpx.Client) -> None:
        latents = [[0.0] * LATENT_DIM] * 2
        assert len(answer(sample(client, latents=latents, n=2))["images"]) == 2
        invalid(sample(client, latents=latents, n=3), "/n")

    @pytest.mark.parametrize(
        "more", [{"latents": [[0.0]]}, {"truncation": 0.5}, {"include": ["latents"]}]
    )
    def test_a_model_without_latents_refuses_them_and_names_others(
        self, client: httpx.Client, more: dict[str, Any]
    ) -> None:
        content = problem(sample(client, model="tiny-binary", **more), "no-latent-space", 422)
        assert content["alternatives"] == ["tiny-latent", "tiny-rgb"]

    @pytest.mark.parametrize("truncation", [0, -0.5, 1.01, "half"])
    def test_what_is_no_truncation_is_refused(self, client: httpx.Client, truncation: Any) -> None:
        invalid(sample(client, truncation=truncation), "/truncation")


class TestTemperature:
    def test_temperature_is_one_unless_told(self, client: httpx.Client) -> None:
        body = {"model": "tiny-binary", "seed": 1, "n": 8}
        assert answer(sample(client, **body, temperature=1)) == answer(sample(client, **body))

    def test_a_cold_model_draws_its_most_likely_image(self, client: httpx.Client) -> None:
        cold = array(
            sample(client, model="tiny-binary", n=20, seed=1, temperature=1e-3, format="npy")
        )
        assert (cold == cold[0]).all()
        warm = array(sample(client, model="tiny-binary", n=20, seed=1, format="npy"))
        assert not (warm == warm[0]).all()

    def test_a_model_without_conditionals_refuses_it_and_names_others(
        self, client: httpx.Client
    ) -> None:
        content = problem(
            sample(client, model="tiny-latent", temperature=0.5), "unsupported-operation", 422
        )
        assert content["alternatives"] == ["tiny-binary"]

    @pytest.mark.parametrize("temperature", [0, -1, 10.5, "hot"])
    def test_what_is_no_temperature_is_refused(
        self, client: httpx.Client, temperature: Any
    ) -> None:
        invalid(sample(client, model="tiny-binary", temperature=temperature), "/temperature")


class TestLabels:
    def test_models_without_classes_refuse_labels(self, client: httpx.Client) -> None:
        content = problem(sample(client, labels=["cat"]), "unsupported-operation", 422)
        assert content["alternatives"] == []


class TestInclude:
    def test_log_prob_is_that_of_the_image(self, client: httpx.Client) -> None:
        body = {"model": "tiny-binary", "seed": 1, "n": 4}
        told = answer(sample(client, **body, include=["log_prob"]))["images"]
        pixels = array(sample(client, **body, format="npy"))
        scored = answer(
            client.post("/log_prob", json={"model": "tiny-binary", "images": pixels.tolist()})
        )
        assert [image["log_prob"] for image in told] == [
            result["log_prob"] for result in scored["results"]
        ]

    def test_log_prob_of_an_implicit_model_is_refused(self, client: httpx.Client) -> None:
        content = problem(sample(client, include=["log_prob"]), "log-prob-undefined", 422)
        assert content["alternatives"] == ["tiny-binary", "tiny-grey"]

    def test_both_may_be_asked_for_twice(self, client: httpx.Client) -> None:
        include = ["latents", "log_prob", "latents"]
        content = answer(sample(client, model="tiny-rgb", include=include))
        assert content["images"][0].keys() == {"index", "png", "latent", "log_prob"}

    def test_other_things_are_refused(self, client: httpx.Client) -> None:
        invalid(sample(client, include=["weights"]), "/include/0")


class TestPictures:
    @pytest.mark.parametrize("model", ["tiny-latent", "tiny-rgb"])
    @pytest.mark.parametrize(
        ("n", "columns", "rows_and_columns"),
        [(1, None, (1, 1)), (5, None, (2, 3)), (5, 2, (3, 2)), (5, 5, (1, 5)), (2, 4, (1, 4))],
    )
    def test_images_lie_row_by_row_and_what_is_missing_is_black(
        self,
        client: httpx.Client,
        model: str,
        n: int,
        columns: int | None,
        rows_and_columns: tuple[int, int],
    ) -> None:
        body = {"model": model, "seed": 7, "n": n}
        sheet = picture(sample(client, **body, columns=columns, format="png"))
        images = array(sample(client, **body, format="npy"))
        rows, across = rows_and_columns
        assert sheet.shape[:2] == (rows * HEIGHT, across * WIDTH)
        for position in range(rows * across):
            top, left = position // across * HEIGHT, position % across * WIDTH
            cell = sheet[top : top + HEIGHT, left : left + WIDTH]
            expected = images[position] if position < n else np.zeros_like(images[0])
            np.testing.assert_array_equal(cell, expected)

    @pytest.mark.parametrize("scale", [1, 3, 16])
    def test_enlarging_repeats_pixels(self, client: httpx.Client, scale: int) -> None:
        small = picture(sample(client, seed=7, n=4, format="png"))
        large = picture(sample(client, seed=7, n=4, format="png", scale=scale))
        np.testing.assert_array_equal(large, small.repeat(scale, 0).repeat(scale, 1))

    def test_pictures_inside_json_are_enlarged_too(self, client: httpx.Client) -> None:
        content = answer(sample(client, scale=2))
        assert pixels_of_base64(content["images"][0]["png"]).shape == (2 * HEIGHT, 2 * WIDTH)

    def test_webp_keeps_every_pixel_and_jpeg_is_near(self, client: httpx.Client) -> None:
        body = {"model": "tiny-rgb", "seed": 7, "n": 4, "scale": 8}
        exact = picture(sample(client, **body, format="png"))
        webp = picture(sample(client, **body, format="webp"), "image/webp")
        np.testing.assert_array_equal(webp, exact)
        jpeg = picture(sample(client, **body, format="jpeg"), "image/jpeg")
        # JPEG halves the resolution of colour; on the whole it is still the same picture.
        assert np.abs(jpeg.astype(int) - exact).mean() < 8

    @pytest.mark.parametrize(
        ("field", "value"),
        [("columns", 0), ("columns", 1025), ("scale", 0), ("scale", 17), ("scale", 1.5)],
    )
    def test_a_layout_that_cannot_be_is_refused(
        self, client: httpx.Client, field: str, value: Any
    ) -> None:
        invalid(sample(client, format="png", **{field: value}), f"/{field}")

    @pytest.mark.parametrize("image_format", ["webp", "jpeg"])
    def test_a_picture_that_the_format_cannot_hold_is_refused(
        self, client: httpx.Client, image_format: str
    ) -> None:
        body = {"n": 1024, "columns": 1024, "scale": 16, "format": image_format}
        content = invalid(sample(client, **body), "/scale")
        assert f"{1024 * WIDTH * 16}×{HEIGHT * 16}" in content["detail"]


class TestFormats:
    @pytest.mark.parametrize(
        ("image_format", "media_type"),
        [
            ("json", "application/json"),
            ("png", "image/png"),
            ("webp", "image/webp"),
            ("jpeg", "image/jpeg"),
            ("npy", "application/x-npy"),
        ],
    )
    def test_field_and_header_choose_the_same(
        self, client: httpx.Client, image_format: str, media_type: str
    ) -> None:
        by_field = sample(client, seed=7, format=image_format)
        by_header = client.post("/sample", json={"seed": 7}, headers={"Accept": media_type})
        assert by_field.headers["content-type"] == media_type
        assert by_field.content == by_header.content

    def test_the_field_wins_over_the_header(self, client: httpx.Client) -> None:
        response = client.post(
            "/sample", json={"format": "png"}, headers={"Accept": "application/json"}
        )
        picture(response)

    def test_another_format_is_refused_with_those_that_are_possible(
        self, client: httpx.Client
    ) -> None:
        assert "npy" in invalid(sample(client, format="gif"), "/format")["detail"]

    def test_another_media_type_is_not_acceptable(self, client: httpx.Client) -> None:
        response = client.post("/sample", headers={"Accept": "text/html"})
        content = problem(response, "not-acceptable", 406)
        assert content["possible"] == [
            "application/json",
            "image/png",
            "image/webp",
            "image/jpeg",
            "application/x-npy",
        ]

    def test_npy_is_bytes_with_channels_last(self, client: httpx.Client) -> None:
        grey = array(sample(client, n=3, format="npy"))
        colour = array(sample(client, model="tiny-rgb", n=3, format="npy"))
        assert grey.shape == (3, HEIGHT, WIDTH)
        assert colour.shape == (3, HEIGHT, WIDTH, 3)
        assert grey.dtype == colour.dtype == np.uint8


class TestRefusals:
    @pytest.mark.parametrize("model", ["nobody", "tiny-latent@9"])
    def test_an_unknown_model_is_told_with_those_that_exist(
        self, client: httpx.Client, model: str
    ) -> None:
        content = problem(sample(client, model=model), "unknown-model", 404)
        assert "tiny-binary@1" in content["available"]
        assert "tiny-binary@1" in content["detail"]

    @pytest.mark.parametrize("model", ["", "a b", "../x", "x@", "x@one", "X", "x" * 81, 5])
    def test_what_is_no_model_reference_is_refused(self, client: httpx.Client, model: Any) -> None:
        invalid(sample(client, model=model), "/model")

    def test_an_unknown_field_is_refused(self, client: httpx.Client) -> None:
        invalid(sample(client, sed=7), "/sed")

    def test_every_wrong_field_is_told_at_once(self, client: httpx.Client) -> None:
        content = problem(sample(client, n=0, scale=99, sed=1), "invalid-request", 422)
        assert {field["pointer"] for field in content["errors"]} == {"/n", "/scale", "/sed"}

    @pytest.mark.parametrize("timeout_ms", [0, -1, 86_400_001, 1.5])
    def test_what_is_no_timeout_is_refused(self, client: httpx.Client, timeout_ms: Any) -> None:
        invalid(sample(client, timeout_ms=timeout_ms), "/timeout_ms")


class TestGet:
    def test_it_is_a_png_unless_asked_otherwise(self, client: httpx.Client) -> None:
        shown = picture(client.get("/sample", params={"seed": 7, "n": 4}))
        np.testing.assert_array_equal(shown, picture(sample(client, seed=7, n=4, format="png")))
        response = client.get("/sample", headers={"Accept": "application/json"})
        assert answer(response)["model"] == "tiny-latent"

    def test_a_browser_gets_a_picture(self, client: httpx.Client) -> None:
        accept = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
        response = client.get("/sample", headers={"Accept": accept})
        assert response.headers["content-type"] in {"image/png", "image/webp"}

    def test_all_fields_may_be_parameters(self, client: httpx.Client) -> None:
        fields: dict[str, Any] = {
            "model": "tiny-rgb@1",
            "n": 3,
            "seed": str(2**64 - 1),
            "first_index": 4,
            "truncation": 0.5,
            "format": "json",
            "columns": 2,
            "scale": 2,
            "timeout_ms": 5000,
        }
        by_query = client.get("/sample", params=fields | {"include": "latents,log_prob"})
        by_body = sample(client, **fields, include=["latents", "log_prob"])
        assert answer(by_query) == answer(by_body)

    def test_the_answer_names_model_and_seed(self, client: httpx.Client) -> None:
        headers = client.get("/sample", params={"seed": 7}).headers
        assert (headers["x-model"], headers["x-seed"]) == ("tiny-latent@2", "7")

    @pytest.mark.parametrize(
        ("query", "pointer"),
        [
            ("n=0", "/n"),
            ("n=many", "/n"),
            ("seed=-1", "/seed"),
            ("truncation=nan", "/truncation"),
            ("truncation=inf", "/truncation"),
            ("sed=1", "/sed"),
            ("latents=0,0,0", "/latents"),
            ("format=exe", "/format"),
            ("include=weights", "/include/0"),
            ("model=a%20b", "/model"),
        ],
    )
    def test_a_parameter_that_breaks_its_rule_is_named(
        self, client: httpx.Client, query: str, pointer: str
    ) -> None:
        invalid(client.get(f"/sample?{query}"), pointer)

    def test_a_parameter_may_come_once(self, client: httpx.Client) -> None:
        response = client.get("/sample?seed=1&seed=2")
        assert "twice" in problem(response, "invalid-request", 422)["detail"]


class TestCaching:
    def test_seed_and_version_make_it_immutable(self, client: httpx.Client) -> None:
        first = client.get("/sample", params=IMMUTABLE)
        assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
        tag = first.headers["etag"]
        assert tag.startswith('"')
        assert "accept" in first.headers["vary"].lower()
        assert client.get("/sample", params=IMMUTABLE).headers["etag"] == tag
        again = client.get("/sample", params=IMMUTABLE, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert again.headers["cache-control"] == first.headers["cache-control"]

    @pytest.mark.parametrize("value", ["W/{tag}", '"other", {tag}', "*"])
    def test_every_form_of_if_none_match_is_read(self, client: httpx.Client, value: str) -> None:
        tag = client.get("/sample", params=IMMUTABLE).headers["etag"]
        known = {"If-None-Match": value.format(tag=tag)}
        assert client.get("/sample", params=IMMUTABLE, headers=known).status_code == 304

    def test_a_tag_of_something_else_is_not_known(self, client: httpx.Client) -> None:
        response = client.get("/sample", params=IMMUTABLE, headers={"If-None-Match": '"other"'})
        assert response.status_code == 200

    def test_with_a_seed_alone_a_new_version_is_noticed(self, client: httpx.Client) -> None:
        headers = client.get("/sample", params={"model": "tiny-latent", "seed": 7}).headers
        assert headers["cache-control"] == "no-cache"
        assert "etag" in headers

    def test_without_a_seed_nothing_is_kept(self, client: httpx.Client) -> None:
        headers = client.get("/sample", params={"model": "tiny-latent@1"}).headers
        assert headers["cache-control"] == "no-store"
        assert "etag" not in headers

    def test_whatever_changes_the_bytes_changes_the_tag(self, client: httpx.Client) -> None:
        base: dict[str, Any] = {"model": "tiny-latent@1", "seed": 7}
        changes: list[dict[str, Any]] = [
            {},
            {"seed": 8},
            {"model": "tiny-latent@2"},
            {"n": 2},
            {"first_index": 1},
            {"truncation": 0.5},
            {"scale": 2},
            {"columns": 3},
            {"format": "webp"},
            {"format": "json", "include": "latents"},
        ]
        tags = [client.get("/sample", params=base | change).headers["etag"] for change in changes]
        assert len(set(tags)) == len(tags)
        by_accept = client.get("/sample", params=base, headers={"Accept": "image/webp"})
        assert by_accept.headers["etag"] != tags[0]
