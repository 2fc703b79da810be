"""Every method against a real server process, by both clients."""

import asyncio
import io
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as PillowImage

from ptheta_client import AsyncClient, Client, InvalidRequestError, PayloadTooLargeError
from ptheta_client.client import Operations
from tests.client.conftest import CLASSES, Connect, Play
from tests.client.loopback import Step
from tests.service.answers import pixels_of

SHAPE = (4, 8)


def rows(n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (n, *SHAPE), dtype=np.uint8)


def test_models_are_listed_and_described(client: Any) -> None:
    infos = {info.name: info for info in client.models()}
    assert {"tiny-latent", "tiny-binary", "tiny-vae", "tiny-class", "tiny-rgb"} <= infos.keys()
    latent = infos["tiny-latent"]
    assert latent.reference == "tiny-latent@2"
    assert set(latent.versions) == {1, 2}
    assert latent.image_shape == (1, *SHAPE)
    assert latent.latent_dim == 3
    assert infos["tiny-binary"].latent_dim is None
    assert infos["tiny-class"].labels == CLASSES
    assert infos["tiny-vae"].density == "bound"
    assert "reconstruct" in infos["tiny-vae"].operations
    first = client.model("tiny-latent@1")
    assert first.version == 1
    assert first.document["graphs"]["generate"]["sha256"]
    assert client.model("tiny-latent").version == 2


def test_files_of_a_model_are_fetched(client: Any) -> None:
    assert client.model_file("tiny-latent", "card") == b"# tiny-latent\n"
    assert client.model_file("tiny-latent@1", "film") == b"a film"


def test_it_is_ready(client: Any) -> None:
    readiness = client.ready()
    assert readiness.is_ready
    assert readiness.reason is None
    assert "tiny-latent@2" in readiness.models
    assert not readiness.broken


def test_a_seed_decides_the_images(client: Any, url: str) -> None:
    made = client.sample("tiny-latent@1", n=3, seed=2**63, first_index=5, include=["latents"])
    again = client.sample("tiny-latent@1", n=3, seed=2**63, first_index=5)
    body = {"model": "tiny-latent@1", "n": 3, "seed": 2**63, "first_index": 5, "format": "npy"}
    plain = httpx.post(f"{url}/sample", json=body, trust_env=False)
    expected = np.load(io.BytesIO(plain.content))
    assert made.images.dtype == np.uint8
    assert made.images.shape == (3, *SHAPE)
    assert (made.images == expected).all()
    assert (again.images == expected).all()
    assert made.seed == 2**63
    assert made.indices == (5, 6, 7)
    assert made.reference == "tiny-latent@1"
    assert (again.latents, again.labels, again.log_prob) == (None, None, None)
    from_latents = client.sample("tiny-latent@1", latents=made.latents)
    assert from_latents.seed is None
    assert (from_latents.images == expected).all()


def test_a_seed_is_drawn_and_told(client: Any) -> None:
    made = client.sample()
    assert made.model == "tiny-latent"
    assert (client.sample(seed=made.seed).images == made.images).all()


def test_images_become_pil_images(client: Any) -> None:
    made = client.sample("tiny-rgb", n=2, seed=1)
    assert made.images.shape == (2, *SHAPE, 3)
    first, _ = made.pictures()
    assert first.mode == "RGB"
    assert (np.asarray(first) == made.images[0]).all()


def test_options_reach_the_server(client: Any) -> None:
    plain, truncated = (client.sample(seed=1, truncation=t).images for t in (None, 0.1))
    assert (plain != truncated).any()
    made = client.sample("tiny-binary", n=2, seed=1, temperature=0.01, include=["log_prob"])
    assert made.log_prob.shape == (2,)
    assert set(np.unique(made.images)) <= {0, 255}
    labelled = client.sample("tiny-class", labels=["Bag", 2], seed=1)
    assert labelled.labels == ("Bag", "Boot")
    assert client.sample("tiny-class", labels="Coat", n=2).labels == ("Coat", "Coat")


def test_numbers_of_numpy_are_numbers(client: Any) -> None:
    made = client.sample(
        "tiny-class", seed=np.uint64(2**63), n=np.int64(2), labels=np.array([2, 0])
    )
    assert made.labels == ("Boot", "Coat")
    assert made.seed == 2**63
    images = np.full((2, *SHAPE), 255, np.uint8)
    scores = client.log_prob(images, "tiny-class", labels=np.array([2, 0]))
    assert scores.log_prob.tolist() == [-64, 0]


def test_threads_and_tasks_may_share_a_client(url: str) -> None:
    seeds = range(12)
    with Client(url) as client, ThreadPoolExecutor(len(seeds)) as pool:
        of_threads = [made.images for made in pool.map(lambda i: client.sample(seed=i), seeds)]

    async def gather() -> list[Any]:
        async with AsyncClient(url) as client:
            made = await asyncio.gather(*(client.sample(seed=seed) for seed in seeds))
        return [each.images for each in made]

    of_tasks = asyncio.run(gather())
    with Client(url) as client:
        alone = [client.sample(seed=seed).images for seed in seeds]
    assert np.array_equal(of_threads, alone)
    assert np.array_equal(of_tasks, alone)


def test_a_name_that_a_query_would_cut_is_refused(client: Any) -> None:
    with pytest.raises(ValueError, match="comma"):
        client.log_prob(rows(2), "tiny-class", labels=["Coat, red", "Bag"])


def test_a_sheet_comes_as_a_file(client: Any) -> None:
    sheet = client.picture(n=6, seed=1, columns=3, scale=2)
    images = client.sample(n=6, seed=1).images
    pixels = pixels_of(sheet)
    assert pixels.shape == (2 * 2 * SHAPE[0], 3 * 2 * SHAPE[1])
    assert (pixels[: 2 * SHAPE[0] : 2, : 2 * SHAPE[1] : 2] == images[0]).all()
    assert client.picture(format="webp")[8:12] == b"WEBP"


def test_a_walk_goes_from_anchor_to_anchor(client: Any) -> None:
    ends = client.sample(seed=7, n=13, include=["latents"])
    walk = client.interpolate([(7, 3), ends.latents[12]], steps=5)
    assert walk.images.shape == (5, *SHAPE)
    assert (walk.images[0] == ends.images[3]).all()
    assert (walk.images[-1] == ends.images[12]).all()
    assert walk.t == (0, 0.25, 0.5, 0.75, 1)
    assert walk.method == "slerp"
    assert walk.latents.shape == (5, 3)
    first = client.interpolate([np.int64(7), 8], steps=2, method="lerp", loop=True)
    assert (first.images[0] == ends.images[0]).all()


def test_a_walk_may_begin_at_a_picture(client: Any) -> None:
    picture = rows(1)[0]
    mean = client.encode(picture, "tiny-vae").mean[0]
    for anchor in (picture, PillowImage.fromarray(picture)):
        walk = client.interpolate([anchor, 1], "tiny-vae", steps=2)
        assert (walk.latents[0] == mean).all()


def test_a_walk_comes_as_an_animation(client: Any) -> None:
    for picture_format in ("webp", "gif", "apng"):
        content = client.animation([1, 2], steps=6, format=picture_format, fps=20, scale=2)
        with PillowImage.open(io.BytesIO(content)) as animation:
            assert animation.n_frames > 1
            assert animation.size == (2 * SHAPE[1], 2 * SHAPE[0])


def test_images_are_scored_however_they_are_given(client: Any) -> None:
    images = np.where(rows(3) > 127, 255, 0).astype(np.uint8)
    images[:, 0, 0] = images[:, -1, -1] = 0
    expected = client.log_prob(images, "tiny-binary")
    assert expected.density == expected.estimator == "exact"
    assert expected.num_dims == SHAPE[0] * SHAPE[1]
    assert expected.log_prob.shape == (3,)
    assert np.isfinite(expected.log_prob).all()
    bits = -expected.log_prob / (expected.num_dims * math.log(2))
    assert expected.bits_per_dim == pytest.approx(bits)
    pictures = [PillowImage.fromarray(image) for image in images]
    buffer = io.BytesIO()
    pictures[2].save(buffer, "png")
    for given in (
        images.astype(np.float32),
        images.astype(np.int64),
        list(images),
        pictures,
        [images[0], pictures[1], buffer.getvalue()],
    ):
        scores = client.log_prob(given, "tiny-binary")
        assert (scores.log_prob == expected.log_prob).all()
    one = client.log_prob(images[0], "tiny-binary")
    assert one.log_prob.tolist() == expected.log_prob[:1].tolist()
    assert one.results[0].p_value is None or 0 < one.results[0].p_value <= 1


def test_what_is_not_finite_is_told_as_such(client: Any) -> None:
    images = np.zeros((3, *SHAPE), np.uint8)
    images[0, 0, 0] = 255
    images[1, -1, -1] = 255
    scores = client.log_prob(images, "tiny-binary", per_dim=True)
    assert [result.status for result in scores.results] == ["neg_inf", "non_finite", "ok"]
    assert scores.results[0].log_prob == -math.inf
    assert scores.results[0].bits_per_dim == math.inf
    assert math.isnan(scores.results[1].log_prob)
    surprise = scores.results[2].per_dim
    assert surprise.shape == SHAPE
    assert -surprise.sum() == pytest.approx(scores.results[2].log_prob, rel=1e-5)


def test_a_bound_tells_its_spread(client: Any) -> None:
    scores = client.log_prob(rows(2), "tiny-vae", num_importance_samples=9, seed=4)
    again = client.log_prob(rows(2), "tiny-vae", num_importance_samples=9, seed=4)
    assert (scores.density, scores.estimator) == ("bound", "iwae")
    assert scores.num_importance_samples == 9
    assert all(result.std_error > 0 for result in scores.results)
    assert scores.log_prob.tolist() == again.log_prob.tolist()


def test_labels_go_with_images(client: Any) -> None:
    images = np.full((3, *SHAPE), 255, np.uint8)
    scores = client.log_prob(images, "tiny-class", labels=["Coat", 1, "Boot"])
    assert scores.log_prob.tolist() == [0, -32, -64]
    pictures = [PillowImage.fromarray(image) for image in images]
    assert client.log_prob(pictures, "tiny-class", labels="Bag").log_prob.tolist() == [-32] * 3


def test_pictures_are_fitted_where_that_is_asked(client: Any) -> None:
    big = PillowImage.new("RGB", (20, 20), "white")
    with pytest.raises(InvalidRequestError) as raised:
        client.log_prob(big, "tiny-binary")
    assert raised.value.errors[0][0] == "/images/0"
    assert client.log_prob(big, "tiny-grey", resize=True, convert=True).log_prob == [-32]


def test_images_are_encoded_and_reconstructed(client: Any) -> None:
    latents = client.encode(rows(2), "tiny-vae")
    assert latents.mean.shape == latents.log_var.shape == (2, 3)
    assert latents.mean.dtype == np.float32
    assert np.exp(latents.log_var / 2) == pytest.approx(1.2)
    again = client.reconstruct(rows(2), "tiny-vae")
    assert (again.images == client.sample("tiny-vae", latents=latents.mean).images).all()
    assert again.reference == "tiny-vae@1"


def test_a_picture_is_completed(client: Any) -> None:
    picture = rows(1)[0]
    options = {"model": "tiny-class", "n": 2, "seed": 3, "labels": "Boot"}
    made = client.complete(picture, known_rows=2, **options)
    assert made.images.shape == (2, *SHAPE)
    assert (made.images[:, :2] == picture[:2]).all()
    assert (made.images[:, 2:] == round(255 * 2 / 3)).all()
    mask = np.arange(SHAPE[0])[:, None] * np.ones(SHAPE[1]) < 2
    masked = client.complete(PillowImage.fromarray(picture), mask=mask, **options)
    assert (masked.images == made.images).all()


def test_classes_are_told_by_bayes_rule(client: Any) -> None:
    answer = client.classify(rows(4), "tiny-class")
    log_prob = np.stack(
        [client.log_prob(rows(4), "tiny-class", labels=label).log_prob for label in CLASSES], axis=1
    )
    expected = np.exp(log_prob) / np.exp(log_prob).sum(axis=1, keepdims=True)
    assert [result.index for result in answer.results] == [0, 1, 2, 3]
    for result, probs in zip(answer.results, expected, strict=True):
        assert result.label == CLASSES[int(probs.argmax())]
        assert list(result.probs) == list(CLASSES)
        # The service adds up in double, the graph in single precision.
        assert list(result.probs.values()) == pytest.approx(probs, rel=1e-5, abs=1e-12)


def test_scores_tell_how_unusual_an_image_is_where_the_server_does(
    connect: Connect, play: Play
) -> None:
    result = {"index": 0, "log_prob": -1.0, "bits_per_dim": 0.5, "status": "ok"}
    result |= {"p_value": 0.25, "anomaly_score": 1.5, "what comes later": 1}
    content = {"model": "m", "version": 1, "density": "exact", "estimator": "exact"}
    server = play(Step(content=content | {"num_dims": 32, "results": [result]}))
    (score,) = connect(server.url).log_prob(rows(1)).results
    assert (score.p_value, score.anomaly_score) == (0.25, 1.5)


def test_a_square_between_four_anchors_is_shown(client: Any) -> None:
    square = client.interpolate([1, 2, 3, (7, 4)], grid=(2, 3))
    assert square.images.shape == (6, *SHAPE)
    assert square.t is None
    np.testing.assert_array_equal(square.images[5], client.sample(seed=7, first_index=4).images[0])


def test_the_key_is_sent_where_there_is_one(connect: Connect, play: Play) -> None:
    server = play(Step(content={"models": []}))
    connect(server.url, api_key="secret").models()
    connect(server.url).models()
    with_key, without = server.received
    assert with_key.headers["authorization"] == "Bearer secret"
    assert "authorization" not in without.headers


def test_a_key_does_no_harm_where_none_is_wanted(connect: Connect, url: str) -> None:
    assert connect(url, api_key="secret").ready().is_ready


def test_too_large_a_body_is_refused_with_its_own_error(client: Any) -> None:
    with pytest.raises(PayloadTooLargeError):
        client.log_prob(np.zeros((600_000, *SHAPE), np.uint8), "tiny-binary")


def test_a_time_that_cannot_be_is_refused(connect: Connect) -> None:
    with pytest.raises(ValueError, match="positive"):
        connect("http://127.0.0.1:1", timeout_s=0)


@pytest.mark.parametrize("name", [name for name in dir(Operations) if not name.startswith("_")])
def test_every_method_tells_what_it_does(name: str) -> None:
    assert getattr(Operations, name).__doc__
