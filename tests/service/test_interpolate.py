"""POST and GET /interpolate: exact ends, no NaN, every field of the contract."""

import io
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from tests.service.answers import (
    answer,
    array,
    invalid,
    picture,
    pixels_of_base64,
    problem,
)
from tests.service.bundles import HEIGHT, LATENT_DIM, WIDTH
from tests.service.conftest import Serve

TWO: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2}]
THREE: list[dict[str, Any]] = [*TWO, {"seed": 3, "index": 4}]
METHODS = ("slerp", "lerp", "spherical-lerp")


def walk(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/interpolate", json={"anchors": TWO} | body)


def image_of(client: httpx.Client, anchor: dict[str, Any], **more: Any) -> NDArray[np.uint8]:
    """Return what /sample makes of an anchor."""
    if "latent" in anchor:
        body: dict[str, Any] = {"latents": [anchor["latent"]]}
    else:
        body = {"seed": anchor["seed"], "first_index": anchor.get("index", 0)}
    first: NDArray[np.uint8] = array(client.post("/sample", json=body | more | {"format": "npy"}))[
        0
    ]
    return first


class TestEnds:
    @pytest.mark.parametrize("model", ["tiny-latent", "tiny-latent@1", "tiny-rgb"])
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("truncation", [1.0, 0.5])
    def test_anchors_are_met_with_every_pixel(
        self, client: httpx.Client, model: str, method: str, truncation: float
    ) -> None:
        anchors: list[dict[str, Any]] = [*THREE, {"latent": [0.5, -1.0, 2.0]}]
        shared = {"model": model, "truncation": truncation}
        frames = array(
            walk(client, anchors=anchors, steps=4, method=method, format="npy", **shared)
        )
        assert len(frames) == 3 * 3 + 1
        for frame, anchor in zip(frames[::3], anchors, strict=True):
            np.testing.assert_array_equal(frame, image_of(client, anchor, **shared))

    def test_two_steps_are_the_anchors_alone(self, client: httpx.Client) -> None:
        frames = array(walk(client, anchors=THREE, steps=2, format="npy"))
        expected = [image_of(client, anchor) for anchor in THREE]
        np.testing.assert_array_equal(frames, expected)

    def test_every_frame_is_the_image_of_its_latent(self, client: httpx.Client) -> None:
        for frame in answer(walk(client, steps=5))["frames"]:
            np.testing.assert_array_equal(
                pixels_of_base64(frame["png"]), image_of(client, {"latent": frame["latent"]})
            )


class TestPath:
    def test_t_goes_from_0_to_1_in_equal_steps(self, client: httpx.Client) -> None:
        frames = answer(walk(client, anchors=THREE, steps=3))["frames"]
        assert [frame["t"] for frame in frames] == [0, 0.25, 0.5, 0.75, 1]

    def test_eight_steps_are_the_default(self, client: httpx.Client) -> None:
        assert len(answer(walk(client))["frames"]) == 8

    def test_a_loop_ends_one_frame_before_its_start(self, client: httpx.Client) -> None:
        frames = answer(walk(client, anchors=THREE, steps=3, loop=True))["frames"]
        assert len(frames) == 6
        assert [frame["t"] for frame in frames] == pytest.approx([i / 6 for i in range(6)])
        open_path = answer(walk(client, anchors=[*THREE, THREE[0]], steps=3))["frames"]
        assert [frame["png"] for frame in frames] == [frame["png"] for frame in open_path[:-1]]

    @pytest.mark.parametrize(("model", "method"), [("tiny-latent", "slerp"), ("tiny-rgb", "lerp")])
    def test_the_method_follows_from_the_prior(
        self, client: httpx.Client, model: str, method: str
    ) -> None:
        default = answer(walk(client, model=model))
        assert default["method"] == method
        assert default == answer(walk(client, model=model, method=method))

    def test_methods_differ_between_the_anchors(self, client: httpx.Client) -> None:
        latents = {
            method: answer(walk(client, method=method, steps=3))["frames"][1]["latent"]
            for method in METHODS
        }
        assert latents["slerp"] != latents["lerp"] != latents["spherical-lerp"]

    def test_parallel_anchors_are_joined(self, client: httpx.Client) -> None:
        anchors = [{"latent": [1, 2, 3]}, {"latent": [2, 4, 6]}, {"latent": [2, 4, 6]}]
        frames = answer(walk(client, anchors=anchors, steps=3))["frames"]
        assert [frame["latent"] for frame in frames][1] == [1.5, 3, 4.5]

    @pytest.mark.parametrize("other", [[0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
    def test_zero_and_antipodal_anchors_are_refused_by_slerp_alone(
        self, client: httpx.Client, other: list[float]
    ) -> None:
        anchors = [{"latent": [1, 2, 3]}, {"latent": other}]
        content = invalid(walk(client, anchors=anchors), "/anchors")
        assert "lerp" in content["detail"]
        for method in ("lerp", "spherical-lerp"):
            frames = answer(walk(client, anchors=anchors, method=method))["frames"]
            assert np.isfinite([frame["latent"] for frame in frames]).all()

    def test_the_same_walk_gives_the_same_bytes(self, client: httpx.Client) -> None:
        for image_format in ("json", "png", "gif", "webp", "apng", "npy"):
            first, second = (walk(client, format=image_format).content for _ in range(2))
            assert first == second

    def test_truncation_of_a_uniform_latent_is_about_one_half(self, client: httpx.Client) -> None:
        anchors = [{"latent": [0.0, 0.5, 1.0]}, {"latent": [1.0, 1.0, 0.5]}]
        body = {"model": "tiny-rgb", "anchors": anchors, "truncation": 0.5}
        frames = answer(walk(client, **body, steps=2))["frames"]
        assert [frame["latent"] for frame in frames] == [[0.25, 0.5, 0.75], [0.75, 0.75, 0.5]]


class TestFormats:
    @pytest.mark.parametrize("model", ["tiny-latent", "tiny-rgb"])
    @pytest.mark.parametrize("scale", [1, 3])
    def test_png_is_one_strip(self, client: httpx.Client, model: str, scale: int) -> None:
        strip = picture(walk(client, model=model, steps=5, format="png", scale=scale))
        frames = array(walk(client, model=model, steps=5, format="npy"))
        assert strip.shape[:2] == (HEIGHT * scale, 5 * WIDTH * scale)
        np.testing.assert_array_equal(strip[::scale, ::scale], np.concatenate(frames, axis=1))

    @pytest.mark.parametrize("image_format", ["gif", "webp", "apng"])
    @pytest.mark.parametrize("model", ["tiny-latent", "tiny-rgb"])
    def test_animations_show_every_frame_as_long_as_asked(
        self, client: httpx.Client, image_format: str, model: str
    ) -> None:
        body = {"model": model, "steps": 4}
        response = walk(client, **body, format=image_format, fps=20)
        assert response.headers["content-type"] == f"image/{image_format}"
        animation = PillowImage.open(io.BytesIO(response.content))
        frames = array(walk(client, **body, format="npy"))
        assert getattr(animation, "n_frames", 1) == 4
        for position, frame in enumerate(frames):
            animation.seek(position)
            shown = np.asarray(animation.convert("L" if frame.ndim == 2 else "RGB"))
            assert animation.info["duration"] == 50
            if image_format != "gif":  # which has a palette
                np.testing.assert_array_equal(shown, frame)

    def test_the_header_chooses_where_the_field_does_not(self, client: httpx.Client) -> None:
        response = client.post(
            "/interpolate", json={"anchors": TWO}, headers={"Accept": "image/gif"}
        )
        assert response.headers["content-type"] == "image/gif"

    def test_jpeg_is_not_possible(self, client: httpx.Client) -> None:
        invalid(walk(client, format="jpeg"), "/format")
        response = client.post(
            "/interpolate", json={"anchors": TWO}, headers={"Accept": "image/jpeg"}
        )
        problem(response, "not-acceptable", 406)

    def test_the_answer_names_its_model(self, client: httpx.Client) -> None:
        response = walk(client, model="tiny-latent@1")
        content = answer(response)
        assert (content["model"], content["version"]) == ("tiny-latent", 1)
        assert response.headers["x-model"] == "tiny-latent@1"
        assert "batch" in response.headers["server-timing"]


class TestSquare:
    CORNERS = ({"seed": 1}, {"seed": 2}, {"seed": 3, "index": 4}, {"latent": [0.5, -1.0, 2.0]})

    def square(self, client: httpx.Client, **body: Any) -> httpx.Response:
        return walk(client, anchors=list(self.CORNERS), **({"grid": [3, 4]} | body))

    @pytest.mark.parametrize("model", ["tiny-latent", "tiny-rgb"])
    def test_corners_are_the_anchors_with_every_pixel(
        self, client: httpx.Client, model: str
    ) -> None:
        pixels = array(self.square(client, model=model, format="npy"))
        assert pixels.shape[:4] == (3, 4, HEIGHT, WIDTH)
        for (row, column), anchor in zip(
            [(0, 0), (0, -1), (-1, 0), (-1, -1)], self.CORNERS, strict=True
        ):
            expected = image_of(client, anchor, model=model)
            np.testing.assert_array_equal(pixels[row, column], expected)

    def test_json_names_row_and_column(self, client: httpx.Client) -> None:
        frames = answer(self.square(client))["frames"]
        places = [(frame["row"], frame["column"]) for frame in frames]
        assert places == [(row, column) for row in range(3) for column in range(4)]
        pixels = array(self.square(client, format="npy")).reshape(12, HEIGHT, WIDTH)
        for frame, expected in zip(frames, pixels, strict=True):
            np.testing.assert_array_equal(pixels_of_base64(frame["png"]), expected)

    def test_png_is_the_square(self, client: httpx.Client) -> None:
        shown = picture(self.square(client, format="png", scale=2))
        assert shown.shape == (3 * 2 * HEIGHT, 4 * 2 * WIDTH)

    def test_four_seeds_make_a_picture_for_an_img(self, client: httpx.Client) -> None:
        params = {"seeds": "1,2,3,4", "grid": "2,3"}
        shown = picture(client.get("/interpolate", params=params))
        assert shown.shape == (2 * HEIGHT, 3 * WIDTH)

    def test_it_has_four_corners(self, client: httpx.Client) -> None:
        invalid(walk(client, grid=[2, 2]), "/grid")

    @pytest.mark.parametrize("sides", [[1, 4], [4], [2, 2, 2], [513, 2], [600, 600], "2,2"])
    def test_sides_that_are_none_are_refused(self, client: httpx.Client, sides: Any) -> None:
        problem(self.square(client, grid=sides), "invalid-request", 422)

    def test_it_is_as_large_as_the_server_allows(self, client: httpx.Client) -> None:
        assert len(answer(self.square(client, grid=[32, 32]))["frames"]) == 1024
        invalid(self.square(client, grid=[33, 32]), "/grid")

    @pytest.mark.parametrize("field", ["steps", "loop", "fps"])
    def test_what_has_no_meaning_is_refused(self, client: httpx.Client, field: str) -> None:
        invalid(self.square(client, **{field: 5 if field != "loop" else True}), f"/{field}")

    @pytest.mark.parametrize("animation", ["gif", "webp", "apng"])
    def test_it_does_not_move(self, client: httpx.Client, animation: str) -> None:
        invalid(self.square(client, format=animation), "/format")


class TestRefusals:
    @pytest.mark.parametrize(
        "anchors", [None, [], [{"seed": 1}], [{"seed": 1}] * 65, "1,2", {"seed": 1}]
    )
    def test_two_to_64_anchors_are_needed(self, client: httpx.Client, anchors: Any) -> None:
        invalid(walk(client, anchors=anchors), "/anchors")

    @pytest.mark.parametrize(
        "anchor",
        [
            {},
            {"index": 1},
            {"seed": 1, "latent": [0, 0, 1]},
            {"latent": [0] * (LATENT_DIM - 1)},
            {"latent": [0] * (LATENT_DIM + 1)},
            {"latent": [0, 0, "1"]},
            {"latent": []},
            {"latent": [0, 0, 1e9]},
            {"seed": -1},
            {"seed": 1, "index": -1},
            {"sed": 1},
            5,
        ],
    )
    def test_an_anchor_that_is_none_is_pointed_at(self, client: httpx.Client, anchor: Any) -> None:
        content = problem(walk(client, anchors=[{"seed": 1}, anchor]), "invalid-request", 422)
        assert content["errors"][0]["pointer"].startswith("/anchors/1")

    def test_pictures_need_an_encoder(self, client: httpx.Client) -> None:
        anchors = [{"seed": 1}, {"image": "iVBORw0KGgo="}]
        content = problem(walk(client, anchors=anchors), "no-latent-space", 422)
        assert content["alternatives"] == []

    def test_models_without_latents_refuse_and_name_others(self, client: httpx.Client) -> None:
        content = problem(walk(client, model="tiny-binary"), "no-latent-space", 422)
        assert content["alternatives"] == ["tiny-latent", "tiny-rgb"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("steps", 1),
            ("steps", 513),
            ("steps", 2.5),
            ("method", "teleport"),
            ("loop", "maybe"),
            ("truncation", 0),
            ("fps", 0),
            ("fps", 61),
            ("scale", 17),
            ("timeout_ms", 0),
            ("seeds", [1, 2]),
            ("model", "?"),
        ],
    )
    def test_a_field_that_breaks_its_rule_is_named(
        self, client: httpx.Client, field: str, value: Any
    ) -> None:
        invalid(walk(client, **{field: value}), f"/{field}")

    def test_an_unknown_model_is_told(self, client: httpx.Client) -> None:
        problem(walk(client, model="nobody"), "unknown-model", 404)

    def test_a_path_is_as_long_as_the_server_allows(self, serve: Serve) -> None:
        with serve(max_rows=10) as small:
            assert len(answer(walk(small.client, steps=10))["frames"]) == 10
            assert "11 frames" in invalid(walk(small.client, steps=11), "/steps")["detail"]
            assert len(answer(walk(small.client, steps=6, loop=True))["frames"]) == 10
            invalid(walk(small.client, steps=7, loop=True), "/steps")

    def test_an_animation_that_would_be_too_large_is_refused(self, client: httpx.Client) -> None:
        """512 frames of 8 pixels at scale 16 are 65,536 pixels in a row: too much for WebP."""
        assert picture(walk(client, steps=512, format="png")).shape == (HEIGHT, 512 * WIDTH)
        anchors = [{"seed": seed} for seed in range(3)]
        big = {"anchors": anchors, "steps": 512, "scale": 16}
        assert answer(walk(client, **big | {"scale": 1}))["frames"]
        response = walk(client, **big, format="png")
        assert response.status_code == 200  # 8.4 million pixels


class TestGet:
    def test_it_is_the_animation_of_some_seeds(self, client: httpx.Client) -> None:
        shown = client.get("/interpolate", params={"seeds": "1,2", "steps": 4})
        assert shown.headers["content-type"] == "image/webp"
        assert shown.content == walk(client, steps=4, format="webp").content

    @pytest.mark.parametrize(
        ("accept", "expected"),
        [
            ("image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5", "image/webp"),
            ("image/avif,image/webp,image/apng,image/*,*/*;q=0.8", "image/webp"),
            ("image/gif", "image/gif"),
            ("*/*", "image/webp"),
        ],
    )
    def test_a_browser_sees_it_move(self, client: httpx.Client, accept: str, expected: str) -> None:
        headers = {"Accept": accept}
        response = client.get("/interpolate", params={"seeds": "1,2"}, headers=headers)
        assert response.headers["content-type"] == expected

    def test_all_fields_may_be_parameters(self, client: httpx.Client) -> None:
        fields: dict[str, Any] = {
            "model": "tiny-rgb@1",
            "steps": 3,
            "method": "slerp",
            "truncation": 0.5,
            "format": "gif",
            "fps": 7,
            "scale": 2,
            "timeout_ms": 5000,
        }
        by_query = client.get("/interpolate", params=fields | {"seeds": "1,2", "loop": "true"})
        assert by_query.content == walk(client, **fields, loop=True).content

    def test_seeds_above_2_to_the_53_are_exact(self, client: httpx.Client) -> None:
        seeds = [2**64 - 1, 2**53 + 1]
        by_query = client.get(
            "/interpolate", params={"seeds": ",".join(map(str, seeds)), "format": "npy"}
        )
        anchors = [{"seed": str(seed)} for seed in seeds]
        np.testing.assert_array_equal(
            array(by_query), array(walk(client, anchors=anchors, format="npy"))
        )

    @pytest.mark.parametrize("seeds", ["1", "", "1,x", "1,-1", ",".join(["1"] * 65)])
    def test_what_are_no_seeds_is_refused(self, client: httpx.Client, seeds: str) -> None:
        response = client.get("/interpolate", params={"seeds": seeds})
        content = problem(response, "invalid-request", 422)
        assert content["errors"][0]["pointer"].startswith("/seeds")

    def test_seeds_are_needed(self, client: httpx.Client) -> None:
        invalid(client.get("/interpolate"), "/seeds")

    def test_with_a_version_it_is_immutable(self, client: httpx.Client) -> None:
        params = {"model": "tiny-latent@1", "seeds": "1,2"}
        first = client.get("/interpolate", params=params)
        assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
        known = {"If-None-Match": first.headers["etag"]}
        again = client.get("/interpolate", params=params, headers=known)
        assert (again.status_code, again.content) == (304, b"")

    def test_without_a_version_it_is_checked_each_time(self, client: httpx.Client) -> None:
        headers = client.get("/interpolate", params={"seeds": "1,2"}).headers
        assert headers["cache-control"] == "no-cache"

    def test_whatever_changes_the_bytes_changes_the_tag(self, client: httpx.Client) -> None:
        base: dict[str, Any] = {"model": "tiny-latent@1", "seeds": "1,2"}
        changes: list[dict[str, Any]] = [
            {},
            {"seeds": "2,1"},
            {"model": "tiny-latent@2"},
            {"steps": 3},
            {"method": "lerp"},
            {"loop": "true"},
            {"truncation": 0.5},
            {"fps": 3},
            {"scale": 2},
            {"format": "gif"},
        ]
        tags = [
            client.get("/interpolate", params=base | change).headers["etag"] for change in changes
        ]
        assert len(set(tags)) == len(tags)
