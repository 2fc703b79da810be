"""Bounds: samples by (seed, image, number), however they are split, and what /log_prob says."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logsumexp  # type: ignore[import-untyped]

from service.bounds import (
    FIRST_SAMPLE,
    NUM_SAMPLES,
    SAMPLES_PER_ROW,
    BoundGraph,
    combine,
    given_rows,
    graph_class,
    join_weights,
    rows_per_image,
    sample_rows,
)
from service.catalog import BrokenBundleError, make_model, read_bundle
from service.graph import INDEX, SEED, Graph, Session
from service.manifest import Manifest, Role, read_manifest, sha256_of, write_manifest
from service.metrics import GraphMetrics, Metrics
from service.model import Model
from service.noise import Stream, draw, draw_importance
from service.workers import Workers
from tests.service.answers import answer, array, invalid, npy, problem
from tests.service.bundles import (
    DECODER,
    ENCODER,
    HEIGHT,
    LATENT_DIM,
    POSTERIOR_STD,
    WIDTH,
    latent_generator,
    linear_bound,
    linear_encoder,
    square_log_prob,
    write_bundle,
    write_vae_store,
)
from tests.service.conftest import Serve

FloatArray = NDArray[np.float64]


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Return a client of a model with a bound, among others without."""
    store = write_vae_store(tmp_path_factory.mktemp("bounds"))
    with serve(model_store=store, max_importance_samples=3000, max_queue_rows=4096) as running:
        yield running.client


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(1)
    yield made
    made.close()


def load(folder: Path, workers: Workers) -> Model:
    """Load a bundle."""

    def make_graph(session: Session, role: Role, manifest: Manifest) -> Graph:
        return graph_class(role, manifest)(
            session,
            role,
            manifest,
            workers,
            max_queue_rows=100,
            max_wait_s=0,
            metrics=GraphMetrics(Metrics(), manifest.reference, role),
        )

    return make_model(read_bundle(folder), make_graph)


def pixels(count: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (count, HEIGHT, WIDTH), dtype=np.uint8)


def score(client: httpx.Client, images: NDArray[np.uint8], **body: Any) -> httpx.Response:
    return client.post("/log_prob", json={"model": "tiny-vae", "images": images.tolist()} | body)


def log_probs(response: httpx.Response) -> FloatArray:
    return np.array([result["log_prob"] for result in answer(response)["results"]])


def log_weights(images: NDArray[np.uint8], num_samples: int, seed: int = 0) -> FloatArray:
    """Compute log w of `linear_bound` by its formula, in double precision, (N, K)."""
    indices = np.arange(len(images), dtype=np.uint64)
    seeds = np.full_like(indices, seed)
    noise = draw_importance(seeds, indices, indices * 0, num_samples, LATENT_DIM).astype(float)
    x = images.reshape(len(images), 1, -1) / 255
    z = x @ ENCODER + POSTERIOR_STD * noise
    square_error = ((x - z @ DECODER.T) ** 2).sum(axis=2)
    entropy = LATENT_DIM * math.log(POSTERIOR_STD)
    weights: FloatArray = ((noise**2 - z**2).sum(axis=2) - square_error) / 2 + entropy
    return weights


def given_noise(num_images: int, num_samples: int) -> FloatArray:
    rng = np.random.default_rng(num_samples)
    return rng.standard_normal((num_images, num_samples, LATENT_DIM), dtype=np.float32)


class TestNoise:
    def test_samples_do_not_depend_on_how_many_there_are_or_how_they_are_split(self) -> None:
        seeds, indices = np.array([3, 3, 2**64 - 1], np.uint64), np.array([0, 9, 5], np.uint64)
        zeros = indices * 0
        many = draw_importance(seeds, indices, zeros, 10, 5)
        np.testing.assert_array_equal(draw_importance(seeds, indices, zeros, 4, 5), many[:, :4])
        rest = draw_importance(seeds, indices, zeros + 4, 6, 5)
        np.testing.assert_array_equal(rest, many[:, 4:])
        np.testing.assert_array_equal(
            draw_importance(seeds[1:2], indices[1:2], zeros[:1], 10, 5), many[1:2]
        )

    def test_no_two_samples_share_their_numbers(self) -> None:
        seeds, indices = np.array([3, 3, 4], np.uint64), np.array([0, 1, 0], np.uint64)
        noise = draw_importance(seeds, indices, indices * 0, 300, 4)
        assert len(np.unique(noise)) == noise.size

    def test_it_is_a_stream_of_its_own(self) -> None:
        one = np.array([7], np.uint64)
        noise = draw_importance(one, one, one * 0, 1, 8)[0, 0]
        for stream in (Stream.NOISE, Stream.LABEL, Stream.BINARIZATION):
            assert not (draw("normal", one, one, (8,), stream)[0] == noise).any()

    def test_it_is_standard_normal(self) -> None:
        indices = np.arange(200, dtype=np.uint64)
        noise = draw_importance(indices * 0, indices, indices * 0, 100, 5)
        # A mean over 100,000 draws, five standard errors.
        assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
        assert abs((noise**2).mean() - 1) < 5 * math.sqrt(2 / noise.size)
        # Neighbouring samples and images are uncorrelated.
        assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 5 / math.sqrt(noise.size)
        assert abs((noise[1:] * noise[:-1]).mean()) < 5 / math.sqrt(noise.size)


class TestRows:
    @pytest.mark.parametrize("num_samples", [1, 2, 31, 32, 33, 64, 65, 1000])
    def test_every_sample_of_every_image_is_in_one_row(self, num_samples: int) -> None:
        rows = sample_rows(np.zeros((3, 1, 2, 2), np.float32), 7, num_samples)
        named = [
            (int(index), int(first) + k)
            for index, first, count in zip(
                rows[INDEX], rows[FIRST_SAMPLE], rows[NUM_SAMPLES], strict=True
            )
            for k in range(count)
        ]
        assert named == [(index, k) for index in range(3) for k in range(num_samples)]
        assert rows[NUM_SAMPLES].max() <= SAMPLES_PER_ROW
        assert len(rows["image"]) == 3 * rows_per_image(num_samples)
        assert (rows[SEED] == 7).all()

    def test_the_bound_and_its_error_are_those_of_all_weights_at_once(self) -> None:
        weights = np.random.default_rng(0).normal(-800, 3, (4, 6))  # exp of them underflows
        parts = weights.reshape(4 * 2, 3)
        outputs = {
            "log_sum": logsumexp(parts, axis=1),
            "log_sum_square": logsumexp(2 * parts, axis=1),
        }
        combined = combine(outputs, num_images=4, num_samples=6)
        ratios = np.exp(weights - weights.max(axis=1, keepdims=True))
        expected = np.log(ratios.mean(axis=1)) + weights.max(axis=1)
        np.testing.assert_allclose(combined["log_prob"], expected, rtol=1e-12)
        error = ratios.std(axis=1, ddof=1) / ratios.mean(axis=1) / math.sqrt(6)
        np.testing.assert_allclose(combined["std_error"], error, rtol=1e-9)

    def test_weights_of_zero_and_nan_stay_what_they_are(self) -> None:
        log_sum = np.array([-np.inf, -np.inf, -np.inf, 0.0, np.nan, 0.0])
        outputs = {"log_sum": log_sum, "log_sum_square": log_sum}
        log_prob = combine(outputs, num_images=3, num_samples=2)["log_prob"]
        np.testing.assert_array_equal(log_prob, [-np.inf, -math.log(2), np.nan])

    def test_the_error_is_the_spread_over_other_seeds(self, client: httpx.Client) -> None:
        images = pixels(1)
        fields = {"num_importance_samples": 500}
        bounds = [log_probs(score(client, images, seed=s, **fields))[0] for s in range(60)]
        told = answer(score(client, images, **fields))["results"][0]["std_error"]
        # 60 seeds know a standard deviation to about a tenth.
        assert np.std(bounds, ddof=1) == pytest.approx(told, rel=0.35)


class TestBatches:
    @pytest.fixture
    def graph(self, tmp_path: Path, workers: Workers) -> BoundGraph:
        graphs = {"generate": latent_generator(1), "log_prob": linear_bound()}
        folder = write_bundle(tmp_path, "bound", graphs)  # type: ignore[arg-type]
        made = load(folder, workers).graphs["log_prob"]
        assert isinstance(made, BoundGraph)
        return made

    def test_rows_are_the_same_alone_and_in_any_batch(self, graph: BoundGraph) -> None:
        calls = [(70, 1), (1, 2), (33, 1), (5, 0)]
        images = (pixels(2)[:, None] / 255).astype(np.float32)
        parts = [sample_rows(images, seed, number) for number, seed in calls]
        parts.insert(1, given_rows(images, given_noise(2, 33)))  # one call brings its own noise
        together = graph.run(parts)
        start = 0
        for part in parts:
            for row in range(len(part["image"])):
                alone = graph.run([{name: array[row : row + 1] for name, array in part.items()}])
                for name, values in alone.items():
                    np.testing.assert_array_equal(values[0], together[name][start + row])
            start += len(part["image"])
        assert start == len(together["log_sum"]) == 2 * (3 + 2 + 1 + 2 + 1)

    @pytest.mark.parametrize("num_samples", [1, 2, 32, 33, 100])
    def test_noise_that_is_given_leads_to_the_weights_of_the_whole_graph(
        self, graph: BoundGraph, num_samples: int
    ) -> None:
        images = (pixels(3)[:, None] / 255).astype(np.float32)
        noise = given_noise(3, num_samples)
        rows = graph.run([given_rows(images, noise)])
        whole = graph.session.run({"image": images, "noise": noise})
        # Single precision; the rows sum the same weights in another order.
        weights = join_weights(rows, 3, num_samples)
        np.testing.assert_allclose(weights, whole["log_weight"], rtol=1e-5)
        log_prob = combine(rows, 3, num_samples)["log_prob"]
        np.testing.assert_allclose(log_prob, whole["log_prob"], rtol=1e-5)

    def test_only_rows_with_equally_many_samples_share_a_run(self, graph: BoundGraph) -> None:
        shapes = []
        run = graph.session.run
        graph.session.run = lambda inputs, stop=None: (  # type: ignore[method-assign]
            shapes.append(inputs["noise"].shape) or run(inputs, stop)  # type: ignore[func-returns-value]
        )
        images = np.zeros((2, 1, HEIGHT, WIDTH), np.float32)
        graph.run([sample_rows(images, 0, number) for number in (1, 33, 1)])
        assert sorted(shapes) == [(2, 16, LATENT_DIM), (2, 17, LATENT_DIM), (4, 1, LATENT_DIM)]


class TestAnswers:
    @pytest.mark.parametrize("num_samples", [1, 2, 32, 33, 50, 400])
    def test_the_bound_is_that_of_the_formula(self, client: httpx.Client, num_samples: int) -> None:
        images = pixels(3)
        response = score(client, images, num_importance_samples=num_samples, seed=11)
        weights = log_weights(images, num_samples, seed=11)
        expected = logsumexp(weights, axis=1) - math.log(num_samples)
        # Single precision over 32 squares.
        np.testing.assert_allclose(log_probs(response), expected, atol=1e-4)

    def test_without_a_number_it_is_the_elbo_of_seed_0(self, client: httpx.Client) -> None:
        content = answer(score(client, pixels(2)))
        assert content["density"] == "bound"
        assert content["estimator"] == "elbo"
        assert content["num_importance_samples"] == 1
        assert content["preprocess"] == {"binarize": None}
        assert content["results"][0].keys() == {"index", "log_prob", "bits_per_dim", "status"}
        bounds = [result["log_prob"] for result in content["results"]]
        np.testing.assert_allclose(bounds, log_weights(pixels(2), 1)[:, 0], atol=1e-4)

    def test_more_samples_are_called_iwae_and_have_an_error(self, client: httpx.Client) -> None:
        content = answer(score(client, pixels(2), num_importance_samples=64))
        assert content["estimator"] == "iwae"
        assert content["num_importance_samples"] == 64
        weights = log_weights(pixels(2), 64)
        ratios = np.exp(weights - weights.max(axis=1, keepdims=True))
        expected = ratios.std(axis=1, ddof=1) / ratios.mean(axis=1) / 8
        errors = [result["std_error"] for result in content["results"]]
        np.testing.assert_allclose(errors, expected, rtol=1e-3)

    def test_a_tighter_bound_is_higher_on_average(self, client: httpx.Client) -> None:
        images = pixels(200)
        elbo, l_5, l_50 = (
            log_probs(score(client, images, num_importance_samples=k)).mean() for k in (1, 5, 50)
        )
        assert elbo < l_5 < l_50

    def test_npy_holds_the_bounds_in_double_precision(self, client: httpx.Client) -> None:
        fields = {"num_importance_samples": 40, "seed": 3}
        params = {"model": "tiny-vae", "format": "npy"} | fields
        headers = {"Content-Type": "application/x-npy"}
        made = array(
            client.post("/log_prob", content=npy(pixels(3)), params=params, headers=headers)
        )
        assert made.dtype == np.float64
        np.testing.assert_array_equal(made, log_probs(score(client, pixels(3), **fields)))

    def test_an_image_takes_the_noise_of_its_own_index(self, client: httpx.Client) -> None:
        same = np.repeat(pixels(1), 3, axis=0)
        bounds = log_probs(score(client, same, num_importance_samples=4))
        assert len(set(bounds.tolist())) == 3
        assert bounds[0] == log_probs(score(client, same[:1], num_importance_samples=4))[0]

    def test_a_large_number_of_samples_is_split_into_rows(self, client: httpx.Client) -> None:
        response = score(client, pixels(1), num_importance_samples=3000)
        weights = log_weights(pixels(1), 3000)
        expected = logsumexp(weights, axis=1) - math.log(3000)
        np.testing.assert_allclose(log_probs(response), expected, atol=1e-4)

    def test_a_bound_tells_its_limit_and_what_it_can(self, client: httpx.Client) -> None:
        described = answer(client.get("/models/tiny-vae"))
        assert described["limits"]["max_importance_samples"] == 3000
        assert described["density"] == "bound"
        assert described["operations"] == [
            "sample",
            "interpolate",
            "log_prob",
            "encode",
            "reconstruct",
        ]
        assert "max_importance_samples" not in answer(client.get("/models/tiny-grey"))["limits"]


class TestRefusals:
    @pytest.mark.parametrize("number", [0, -1, 1.5, "many"])
    def test_a_number_of_samples_is_a_positive_integer(
        self, client: httpx.Client, number: Any
    ) -> None:
        response = score(client, pixels(1), num_importance_samples=number)
        invalid(response, "/num_importance_samples")

    def test_the_operator_limits_the_samples_of_an_image(self, client: httpx.Client) -> None:
        content = invalid(
            score(client, pixels(1), num_importance_samples=3001), "/num_importance_samples"
        )
        assert "at most 3000" in content["detail"]

    def test_the_queue_limits_the_samples_of_a_request(self, client: httpx.Client) -> None:
        images = np.zeros((60, HEIGHT, WIDTH), np.uint8)  # 60 · 94 rows, 4096 may wait
        content = invalid(
            score(client, images, num_importance_samples=3000), "/num_importance_samples"
        )
        assert "5640 rows, at most 4096" in content["detail"]

    def test_exact_models_draw_no_samples(self, client: httpx.Client) -> None:
        response = score(client, pixels(1), model="tiny-grey", num_importance_samples=2)
        assert "exact" in invalid(response, "/num_importance_samples")["detail"]

    def test_a_bound_has_no_conditionals(self, client: httpx.Client) -> None:
        problem(score(client, pixels(1), per_dim=True), "unsupported-operation", 422)

    def test_samples_of_a_bound_are_not_scored(self, client: httpx.Client) -> None:
        body = {"model": "tiny-vae", "include": ["log_prob"]}
        content = problem(client.post("/sample", json=body), "unsupported-operation", 422)
        assert content["alternatives"] == ["tiny-binary", "tiny-grey", "tiny-rgb"]


class TestBundles:
    @pytest.mark.parametrize("density", ["exact", "bound"])
    def test_a_density_that_its_graph_does_not_have_is_refused(
        self, tmp_path: Path, workers: Workers, density: str
    ) -> None:
        log_prob = (
            linear_bound() if density == "exact" else square_log_prob(1, has_conditionals=False)
        )
        graphs = {"generate": latent_generator(1), "log_prob": log_prob}
        folder = write_bundle(tmp_path, "wrong", graphs)  # type: ignore[arg-type]
        manifest = read_manifest(folder).model_copy(update={"density": density})
        write_manifest(folder, manifest)
        with pytest.raises(BrokenBundleError, match=f"density {density}"):
            load(folder, workers)

    def test_golden_noise_of_another_length_is_refused(
        self, tmp_path: Path, workers: Workers
    ) -> None:
        graphs = {"generate": latent_generator(1), "log_prob": linear_bound()}
        folder = write_bundle(tmp_path, "wrong", graphs)  # type: ignore[arg-type]
        with np.load(folder / "golden.npz") as arrays:
            golden = dict(arrays)
        golden["log_prob.noise"] = golden["log_prob.noise"][..., :2]
        np.savez(folder / "golden.npz", **golden)  # type: ignore[arg-type]
        manifest = read_manifest(folder)
        files = manifest.files | {"golden.npz": sha256_of(folder / "golden.npz")}
        write_manifest(folder, manifest.model_copy(update={"files": files}))
        with pytest.raises(BrokenBundleError, match="golden noise of log_prob has shape"):
            load(folder, workers)

    @pytest.mark.parametrize(
        ("noise", "graphs", "message"),
        [
            ({"prior": "uniform"}, {"log_prob": linear_bound()}, "normal prior"),
            ({"latent": False}, {"log_prob": linear_bound()}, "normal prior"),
            ({"latent": False}, {"encode": linear_encoder()}, "encoder needs a latent"),
        ],
    )
    def test_a_manifest_that_contradicts_itself_is_refused(
        self, tmp_path: Path, noise: dict[str, Any], graphs: dict[Any, str], message: str
    ) -> None:
        folder = write_bundle(tmp_path, "wrong", {"generate": latent_generator(1), **graphs})
        manifest = read_manifest(folder)
        wrong = manifest.model_copy(update={"noise": manifest.noise.model_copy(update=noise)})
        write_manifest(folder, wrong)
        with pytest.raises(ValueError, match=message):
            read_manifest(folder)
