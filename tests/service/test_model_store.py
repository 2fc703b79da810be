"""The models that the repository ships: every operation, through HTTP."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from service.manifest import Image, Operation, version_folders
from tests.service.answers import answer, array, batch_rows, npy, picture, problem
from tests.service.conftest import SHIPPED_STORE
from tests.service.server import Served

EXPECTED = ("bernoulli-mnist", "dcgan-fashion", "markov-mnist", "nade-mnist")
NAMES = sorted({*EXPECTED, *(name for name, _, _ in version_folders(SHIPPED_STORE))})

NPY = {"Content-Type": "application/x-npy"}

pytestmark = pytest.mark.timeout(120)


def require(shipped: Served, name: str, operation: Operation = "sample") -> None:
    """Skip a test of a model that is not there yet, or cannot do what is tested."""
    models = {model.manifest.name: model for model in shipped.service.catalog.newest()}
    if name not in models:
        pytest.skip(f"{name} is not in the store yet")
    if operation not in models[name].manifest.operations:
        pytest.skip(f"{name} has no {operation}")


def image_of(shipped: Served, name: str) -> Image:
    return shipped.service.catalog.find(name).manifest.image


def strokes(image: Image) -> NDArray[np.uint8]:
    """Return 40 black pictures with white strokes, of the size that a model takes."""
    pixels = np.zeros((40, 28, 28), np.uint8)
    rng = np.random.default_rng(0)
    for drawing in pixels:
        row, column = rng.integers(4, 20, 2)
        drawing[row : row + 4, 4:24] = 255
        drawing[4:24, column : column + 3] = 200
    channels, height, width = image.shape
    scaled = pixels[:, np.arange(height) * 28 // height][:, :, np.arange(width) * 28 // width]
    return scaled if channels == 1 else scaled[..., None].repeat(channels, axis=3)


def is_large(image: Image) -> bool:
    """Tell whether two images are hardly ever the same."""
    return image.num_dims > 100


def draws_binary(shipped: Served, name: str) -> bool:
    """Tell whether images are 0 and 255; a bound shows the mean of p(image given latent)."""
    manifest = shipped.service.catalog.find(name).manifest
    return manifest.image.values == "binary" and manifest.density != "bound"


def sample(shipped: Served, **body: Any) -> httpx.Response:
    return shipped.client.post("/sample", json=body)


def given_class(shipped: Served, name: str) -> dict[str, Any]:
    """Return the class that a conditional model is asked about; nothing for others."""
    return {"labels": [3]} if shipped.service.catalog.find(name).manifest.labels else {}


def test_every_bundle_is_sound(shipped: Served) -> None:
    assert shipped.service.catalog.broken == {}
    assert answer(shipped.client.get("/readyz"))["status"] == "ready"


@pytest.mark.parametrize("name", NAMES)
class TestEveryModel:
    def test_it_makes_the_images_that_its_preview_promises(
        self, shipped: Served, name: str
    ) -> None:
        require(shipped, name)
        images = array(sample(shipped, model=name, n=64, seed=0, format="npy"))
        assert images.shape[0] == 64
        assert len(np.unique(images, axis=0)) == 64 or not is_large(image_of(shipped, name))
        assert (set(np.unique(images)) == {0, 255}) == draws_binary(shipped, name)

    def test_image_5_alone_is_the_sixth_of_many(self, shipped: Served, name: str) -> None:
        require(shipped, name)
        many = answer(sample(shipped, model=name, seed=7, n=6))["images"][5]
        alone = answer(sample(shipped, model=name, seed=7, first_index=5))["images"][0]
        assert alone == many

    @pytest.mark.parametrize("count", [2, 7, 64, 100])
    def test_an_image_does_not_depend_on_its_batch(
        self, shipped: Served, name: str, count: int
    ) -> None:
        require(shipped, name)
        together = array(sample(shipped, model=name, seed=3, n=count, format="npy"))
        for index in (0, count // 2, count - 1):
            alone = sample(shipped, model=name, seed=3, first_index=index, format="npy")
            np.testing.assert_array_equal(array(alone)[0], together[index])

    def test_a_likelihood_does_not_depend_on_its_batch(self, shipped: Served, name: str) -> None:
        require(shipped, name, "log_prob")
        pixels = strokes(image_of(shipped, name))

        def score(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
            params = {"model": name, "format": "npy", **given_class(shipped, name)}
            return array(
                shipped.client.post("/log_prob", content=npy(pixels), params=params, headers=NPY)
            )

        together = score(pixels)
        assert np.isfinite(together).all()
        assert (together < 0).all()
        is_bound = shipped.service.catalog.find(name).manifest.density == "bound"
        for index in (0, 17, 39):
            # A bound draws noise by the index of the image, which must stay the same.
            first = 0 if is_bound else index
            assert score(pixels[first : index + 1])[-1] == together[index]

    def test_surprise_per_pixel_sums_to_minus_log_prob(self, shipped: Served, name: str) -> None:
        require(shipped, name, "log_prob")
        if not shipped.service.catalog.find(name).has_conditionals:
            pytest.skip(f"{name} has no conditionals along one order of the pixels")
        image = image_of(shipped, name)
        body = {"model": name, "images": strokes(image)[:3].tolist(), "per_dim": True}
        for result in answer(shipped.client.post("/log_prob", json=body))["results"]:
            surprise = np.array(result["per_dim"])
            assert surprise.shape == np.shape(body["images"])[1:]
            # A density can exceed 1, a probability cannot.
            assert (surprise >= 0).all() or image.values == "continuous"
            # The graph adds up 784 numbers in single precision.
            assert surprise.sum() == pytest.approx(-result["log_prob"], rel=1e-5)

    def test_its_own_images_are_likelier_than_noise(self, shipped: Served, name: str) -> None:
        require(shipped, name, "log_prob")
        if shipped.service.catalog.find(name).is_bound:
            pytest.skip(f"{name} does not score its own images")
        drawn = answer(sample(shipped, model=name, n=20, seed=1, include=["log_prob"]))["images"]
        image = image_of(shipped, name)
        shape = strokes(image)[:20].shape
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        body = {"model": name, "images": noise.tolist()}
        scored = answer(shipped.client.post("/log_prob", json=body))["results"]
        own, other = ([result["log_prob"] for result in results] for results in (drawn, scored))
        assert np.mean(own) > np.mean(other)
        assert min(own) > max(other) or not is_large(image)

    def test_more_samples_tighten_a_bound(self, shipped: Served, name: str) -> None:
        require(shipped, name, "log_prob")
        if not shipped.service.catalog.find(name).is_bound:
            pytest.skip(f"{name} is exact")
        bounds = []
        images = strokes(image_of(shipped, name)).tolist()
        for number in (1, 100):
            body = {"model": name, "images": images, "num_importance_samples": number}
            body |= given_class(shipped, name)
            results = answer(shipped.client.post("/log_prob", json=body))["results"]
            bounds.append([result["log_prob"] for result in results])
        assert np.mean(bounds[0]) < np.mean(bounds[1])

    def test_noise_is_more_unusual_than_its_own_images(self, shipped: Served, name: str) -> None:
        require(shipped, name, "log_prob")
        model = shipped.service.catalog.find(name)
        if not model.anomaly or model.is_bound or not is_large(model.manifest.image):
            pytest.skip(f"{name} has no p-values of its own images")
        drawn = array(sample(shipped, model=name, n=100, seed=1, format="npy"))
        params = {"model": name} | (
            {"binarize": "stochastic"} if draws_binary(shipped, name) else {}
        )
        response = shipped.client.post("/log_prob", content=npy(drawn), params=params, headers=NPY)
        own = [result["p_value"] for result in answer(response)["results"]]
        noise = np.random.default_rng(0).integers(0, 256, drawn.shape, dtype=np.uint8)
        response = shipped.client.post("/log_prob", content=npy(noise), params=params, headers=NPY)
        other = [result["p_value"] for result in answer(response)["results"]]
        assert max(other) < 0.001
        # Pixels drawn one by one are dust, which a model of digits rightly finds unusual too.
        is_dust = model.manifest.family == "bernoulli"
        assert np.median(own) > (max(other) if is_dust else 0.02)

    def test_it_reconstructs_its_own_images(self, shipped: Served, name: str) -> None:
        require(shipped, name, "reconstruct")
        params = {"model": name, "format": "npy", **given_class(shipped, name)}
        images = array(sample(shipped, n=20, seed=1, **params)).astype(float)
        content = npy(images.astype(np.uint8))
        response = shipped.client.post("/reconstruct", content=content, params=params, headers=NPY)
        errors = np.sqrt(((array(response) - images) ** 2).mean(axis=(1, 2)))
        others = np.sqrt(((np.roll(images, 1, axis=0) - images) ** 2).mean(axis=(1, 2)))
        assert np.median(errors) < np.median(others) / 2

    def test_a_walk_meets_its_anchors_and_moves_smoothly(self, shipped: Served, name: str) -> None:
        require(shipped, name, "interpolate")
        anchors = [{"seed": 1}, {"seed": 2}]
        body: dict[str, Any] = {"model": name, "format": "npy", **given_class(shipped, name)}
        walk = {**body, "anchors": anchors, "steps": 33}
        frames = array(shipped.client.post("/interpolate", json=walk)).astype(float)
        for frame, seed in ((frames[0], 1), (frames[-1], 2)):
            alone = array(sample(shipped, **body, seed=seed))[0]
            np.testing.assert_array_equal(frame, alone)
        changes = np.diff(frames, axis=0).reshape(len(frames) - 1, -1)
        steps = np.sqrt((changes**2).mean(axis=1))
        whole = np.sqrt(((frames[-1] - frames[0]) ** 2).mean())
        # No single one of 32 steps is a jump.
        assert steps.max() < whole / 3

    def test_what_it_cannot_do_is_refused_with_those_that_can(
        self, shipped: Served, name: str
    ) -> None:
        require(shipped, name)
        manifest = shipped.service.catalog.find(name).manifest
        walk = {"model": name, "anchors": [{"seed": 1}, {"seed": 2}]}
        if "interpolate" not in manifest.operations:
            response = shipped.client.post("/interpolate", json=walk)
            assert name not in problem(response, "no-latent-space", 422)["alternatives"]
        if "log_prob" not in manifest.operations:
            body = {"model": name, "images": strokes(manifest.image)[:1].tolist()}
            response = shipped.client.post("/log_prob", json=body)
            content = problem(response, "log-prob-undefined", 422)
            if manifest.image.shape == (1, 28, 28):
                assert set(content["alternatives"]) >= {"bernoulli-mnist", "markov-mnist"}

    def test_another_label_is_another_image_of_the_same_latent(
        self, shipped: Served, name: str
    ) -> None:
        require(shipped, name)
        labels = shipped.service.catalog.find(name).manifest.labels
        if not labels:
            pytest.skip(f"{name} has no classes")
        images = [
            array(sample(shipped, model=name, seed=5, labels=label, format="npy"))[0]
            for label in labels
        ]
        assert len({image.tobytes() for image in images}) == len(labels)

    @pytest.mark.parametrize("file", ["preview", "film"])
    def test_preview_and_film_are_pictures(self, shipped: Served, name: str, file: str) -> None:
        require(shipped, name)
        response = shipped.client.get(f"/models/{name}/{file}")
        shown = PillowImage.open(io.BytesIO(response.content))
        assert PillowImage.MIME[shown.format or ""] == response.headers["content-type"]
        assert min(shown.size) >= 28
        if file == "film":
            assert getattr(shown, "n_frames", 1) > 5

    def test_the_preview_shows_images_of_seed_0(self, shipped: Served, name: str) -> None:
        require(shipped, name)
        preview = picture(shipped.client.get(f"/models/{name}/preview"))
        first = array(sample(shipped, model=name, seed=0, format="npy"))[0]
        scale = preview.shape[0] // (8 * len(first))
        cell = preview[: len(first) * scale : scale, : first.shape[1] * scale : scale]
        assert cell.shape[:2] == first.shape[:2]
        # The preview shows the classes in turn, and was drawn on another machine: of what is no
        # 0 or 1 it may have rounded a level differently, except where sums are exact.
        is_same_anywhere = draws_binary(shipped, name) or name == "dcgan-fashion"
        if is_same_anywhere and not shipped.service.catalog.find(name).manifest.labels:
            np.testing.assert_array_equal(cell, first)


class TestDocumentation:
    def test_every_example_of_a_body_runs(self, shipped: Served) -> None:
        require(shipped, "nade-mnist")
        require(shipped, "dcgan-fashion")
        document = answer(shipped.client.get("/openapi.json"))
        tried = set()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                parameters = operation.get("parameters", ())
                given = {p["name"]: p["example"] for p in parameters if p["in"] == "path"}
                body = operation.get("requestBody", {}).get("content", {})
                for example in body.get("application/json", {}).get("examples", {}).values():
                    url = path.format(**given)
                    response = shipped.client.request(method, url, json=example["value"])
                    assert response.status_code == 200, f"{url} {json.dumps(example)[:200]}"
                    tried.add(path)
        assert tried >= {"/sample", "/complete", "/interpolate", "/log_prob"}
        assert "/v2/models/{name}/infer" in tried


class TestDeterminism:
    def test_an_answer_is_the_same_alone_and_among_32_others(self, shipped: Served) -> None:
        names = [model.manifest.name for model in shipped.service.catalog.newest()]
        requests: list[dict[str, Any]] = []
        for seed, name in enumerate(4 * names):
            body = {"model": name, "n": 1 + 10 * (seed % 3), "seed": seed}
            requests.append({"url": "/sample", "json": body | {"format": "npy"}})
            operations = shipped.service.catalog.find(name).manifest.operations
            if "interpolate" in operations:
                anchors = [{"seed": seed}, {"seed": seed + 1}]
                walk = {"model": name, "anchors": anchors, "steps": 3 + seed}
                requests.append({"url": "/interpolate", "json": walk | {"format": "png"}})
            if "log_prob" in operations:
                few = strokes(image_of(shipped, name))[seed % 30 : seed % 30 + 1 + seed % 4]
                body = {"model": name, "images": few.tolist(), **given_class(shipped, name)}
                requests.append({"url": "/log_prob", "json": body})
        requests = requests[:32]

        def send(request: dict[str, Any]) -> httpx.Response:
            return shipped.client.post(**request)

        alone = [send(request) for request in requests]
        assert {response.status_code for response in alone} == {200}
        num_shared = 0
        for _ in range(2):
            with ThreadPoolExecutor(len(requests)) as clients:
                futures = [clients.submit(send, request) for request in requests]
                together = [future.result() for future in futures]
            for request, before, after in zip(requests, alone, together, strict=True):
                assert after.content == before.content, str(request)[:200]
                num_shared += batch_rows(after) > batch_rows(before)
        assert num_shared > 0
