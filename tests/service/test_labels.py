"""Class-conditional models: labels in every route, drawn from the seed where none is given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.graph import INDEX, LABEL, SEED, Graph, Session
from service.manifest import read_manifest
from service.metrics import GraphMetrics, Metrics
from service.model import seeded_rows
from service.noise import draw, draw_labels
from service.workers import Workers
from tests.service.answers import answer, array, invalid, picture, problem
from tests.service.bundles import (
    HEIGHT,
    LATENT_DIM,
    MAX_BATCH_ROWS,
    WIDTH,
    class_completer,
    class_generator,
    class_log_prob,
    identity_generator,
    latent_generator,
    write_bundle,
)
from tests.service.conftest import Serve

CLASSES = ("cat", "dog", "2", "1", "T-shirt/top")
GARMENT = 4
CONDITIONAL = ["classes", "completing-classes", "scored-classes"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of conditional models, and of one that is not."""
    made = tmp_path_factory.mktemp("classes")
    generate = class_generator(len(CLASSES))
    write_bundle(made, "classes", {"generate": generate}, labels=CLASSES)
    graphs = {"generate": generate, "log_prob": class_log_prob()}
    write_bundle(made, "scored-classes", graphs, labels=CLASSES)  # type: ignore[arg-type]
    write_bundle(
        made,
        "completing-classes",
        {"generate": class_completer(len(CLASSES)), "log_prob": class_log_prob()},
        labels=CLASSES,
        prior="uniform",
        latent=False,
        ordering="raster",
    )
    write_bundle(made, "plain", {"generate": latent_generator(1)})
    return made


@pytest.fixture(scope="module")
def client(serve: Serve, store: Path) -> Iterator[httpx.Client]:
    """Return a client of those models; the default is `classes`."""
    with serve(model_store=store) as running:
        yield running.client


def sample(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/sample", json={"model": "classes", "seed": 7} | body)


def labels_of(response: httpx.Response) -> list[str]:
    return [image["label"] for image in answer(response)["images"]]


def pixels(client: httpx.Client, **body: Any) -> Any:
    return array(sample(client, **body, format="npy"))


class TestDraws:
    def test_every_class_is_as_likely_as_the_others(self) -> None:
        indices = np.arange(20_000, dtype=np.uint64)
        counts = np.bincount(draw_labels(indices * 0 + 3, indices, 7), minlength=7)
        # Seven standard deviations of a binomial count.
        assert np.abs(counts - 20_000 / 7).max() < 7 * np.sqrt(20_000 / 7)

    def test_they_depend_on_seed_and_index_alone(self) -> None:
        indices = np.arange(50, dtype=np.uint64)
        seeds = indices[::-1] * 1000
        together = draw_labels(seeds, indices, 10)
        alone = [draw_labels(seeds[i : i + 1], indices[i : i + 1], 10)[0] for i in range(50)]
        np.testing.assert_array_equal(together, alone)
        assert together.dtype == np.int64
        assert set(together) <= set(range(10))

    def test_they_are_another_stream_than_the_noise(self) -> None:
        indices = np.arange(5000, dtype=np.uint64)
        uniforms = draw("uniform", indices * 0, indices, (1,))[:, 0]
        labels = draw_labels(indices * 0, indices, 10)
        # The noise's own first word would give these labels; correlation of 5,000 pairs.
        assert abs(np.corrcoef(uniforms, labels)[0, 1]) < 0.06


class TestGraph:
    @pytest.fixture
    def graph(self, store: Path) -> Iterator[Graph]:
        workers = Workers(1)
        folder = store / "classes/1"
        manifest = read_manifest(folder)
        metrics = GraphMetrics(Metrics(), manifest.reference, "generate")
        yield Graph(
            Session(folder / "generate.onnx"),
            "generate",
            manifest,
            workers,
            max_queue_rows=100,
            max_wait_s=0,
            metrics=metrics,
        )
        workers.close()

    def test_given_and_drawn_labels_mix_in_one_batch(self, graph: Graph) -> None:
        noise = np.random.default_rng(0).normal(size=(2, LATENT_DIM)).astype(np.float32)
        parts: list[dict[str, Any]] = [
            seeded_rows(7, 0, 3),
            {"noise": noise, LABEL: np.array([4, 0])},
            seeded_rows(8, 5, 2) | {LABEL: np.array([3, 3])},
            seeded_rows(9, 2**40, 2),
        ]
        together = graph.run(parts)
        alone = [graph.run([part]) for part in parts]
        for name in ("image", "noise", LABEL):
            expected = np.concatenate([outputs[name] for outputs in alone])
            np.testing.assert_array_equal(together[name], expected)
        drawn = draw_labels(parts[0][SEED], parts[0][INDEX], len(CLASSES))
        np.testing.assert_array_equal(together[LABEL][:3], drawn)
        np.testing.assert_array_equal(together[LABEL][3:7], [4, 0, 3, 3])


class TestSample:
    def test_left_out_they_are_drawn_from_the_seed_and_told(self, client: httpx.Client) -> None:
        labels = labels_of(sample(client, n=40))
        assert set(labels) == set(CLASSES)
        assert labels == labels_of(sample(client, n=40))
        assert labels != labels_of(sample(client, n=40, seed=8))

    def test_image_5_alone_has_the_label_of_the_sixth_of_many(self, client: httpx.Client) -> None:
        many = answer(sample(client, n=6))["images"]
        assert answer(sample(client, first_index=5))["images"] == many[5:]

    def test_the_drawn_labels_given_change_nothing(self, client: httpx.Client) -> None:
        drawn = sample(client, n=10)
        assert sample(client, n=10, labels=labels_of(drawn)).content == drawn.content

    def test_one_label_is_that_of_all_images(self, client: httpx.Client) -> None:
        assert labels_of(sample(client, n=3, labels=["dog"])) == ["dog"] * 3

    def test_there_are_as_many_images_as_labels(self, client: httpx.Client) -> None:
        assert labels_of(sample(client, labels=["dog", 0, 4])) == ["dog", "cat", "T-shirt/top"]

    def test_a_lone_label_needs_no_list(self, client: httpx.Client) -> None:
        for label in ("T-shirt/top", GARMENT):
            assert labels_of(sample(client, labels=label)) == ["T-shirt/top"]

    def test_a_name_comes_before_a_number_in_digits(self, client: httpx.Client) -> None:
        """Classes 2 and 3 are named "2" and "1"; 1 as a number is the dog."""
        assert labels_of(sample(client, labels=["2", "1", 1, 2, "3", "0"])) == [
            *("2", "1", "dog", "2", "1", "cat"),
        ]

    def test_the_label_changes_the_image_and_not_the_latent(self, client: httpx.Client) -> None:
        images = [
            answer(sample(client, labels=label, include=["latents"]))["images"][0]
            for label in range(len(CLASSES))
        ]
        assert len({image["png"] for image in images}) == len(CLASSES)
        assert len({tuple(image["latent"]) for image in images}) == 1

    def test_a_request_of_several_batches_keeps_its_labels_in_order(
        self, client: httpx.Client
    ) -> None:
        count = 3 * MAX_BATCH_ROWS + 5
        labels = [number % len(CLASSES) for number in range(count)]
        many = pixels(client, labels=labels)
        for position in (0, MAX_BATCH_ROWS, count - 1):
            alone = pixels(client, labels=labels[position], first_index=position)
            np.testing.assert_array_equal(many[position], alone[0])

    def test_latents_of_a_class_give_its_images(self, client: httpx.Client) -> None:
        drawn = answer(sample(client, n=3, include=["latents"]))["images"]
        latents = [image["latent"] for image in drawn]
        labels = [image["label"] for image in drawn]
        body = {"model": "classes", "latents": latents, "labels": labels}
        given = answer(client.post("/sample", json=body))["images"]
        assert [image["png"] for image in given] == [image["png"] for image in drawn]

    def test_latents_without_a_seed_need_labels(self, client: httpx.Client) -> None:
        body = {"model": "classes", "latents": [[0.0] * LATENT_DIM]}
        invalid(client.post("/sample", json=body), "/labels")

    @pytest.mark.parametrize(
        "label", ["cow", "", "5", 5, -1, 10**30, "-1", "٣", "CAT", " cat", "x" * 10_000]
    )
    def test_an_unknown_label_lists_the_classes(self, client: httpx.Client, label: Any) -> None:
        response = sample(client, labels=["dog", label])
        content = invalid(response, "/labels/1")
        assert "0 (cat), 1 (dog), 2 (2), 3 (1), 4 (T-shirt/top)" in content["detail"]
        assert len(content["detail"]) < 400

    @pytest.mark.parametrize("labels", [["cat"] * 2, ["cat"] * 4])
    def test_neither_one_nor_n_labels_are_refused(self, client: httpx.Client, labels: Any) -> None:
        assert (
            "one for each of the 3"
            in invalid(sample(client, n=3, labels=labels), "/labels")["detail"]
        )

    @pytest.mark.parametrize("labels", [[], "", 1.0, True, {"a": 1}])
    def test_what_are_no_labels_is_refused(self, client: httpx.Client, labels: Any) -> None:
        content = problem(sample(client, labels=labels), "invalid-request", 422)
        assert content["errors"][0]["pointer"].startswith("/labels")

    def test_a_model_without_classes_names_those_with(self, client: httpx.Client) -> None:
        for body in ({"labels": ["cat"]}, {"labels": 0}):
            response = sample(client, model="plain", **body)
            content = problem(response, "unsupported-operation", 422)
            assert content["alternatives"] == CONDITIONAL
        assert "label" not in answer(sample(client, model="plain"))["images"][0]

    def test_log_prob_is_that_of_the_image_given_its_label(self, client: httpx.Client) -> None:
        body = {"model": "scored-classes", "n": 6}
        told = answer(sample(client, **body, include=["log_prob"]))["images"]
        scores = [image["log_prob"] for image in told]
        labels = [image["label"] for image in told]
        images = pixels(client, **body)
        for image, label, score in zip(images, labels, scores, strict=True):
            # The score is of the floats before they become bytes: half a level per pixel.
            expected = -CLASSES.index(label) * float(image.sum()) / 255
            assert score == pytest.approx(expected, abs=4 * image.size / 255)

    def test_by_query_they_are_joined_by_commas(self, client: httpx.Client) -> None:
        params = {"model": "classes@1", "seed": 7, "labels": "cat,T-shirt/top,1", "format": "npy"}
        shown = array(client.get("/sample", params=params))
        by_body = pixels(client, labels=["cat", "T-shirt/top", "1"])
        np.testing.assert_array_equal(shown, by_body)
        invalid(client.get("/sample", params=params | {"labels": "cat,cow"}), "/labels/1")

    def test_they_change_the_tag(self, client: httpx.Client) -> None:
        params = {"model": "classes@1", "seed": 7}
        tags = {
            client.get("/sample", params=params | more).headers["etag"]
            for more in ({}, {"labels": "cat"}, {"labels": "dog"})
        }
        assert len(tags) == 3
        assert picture(client.get("/sample", params=params)).size


class TestInterpolate:
    @staticmethod
    def walk(client: httpx.Client, **body: Any) -> httpx.Response:
        anchors = [{"seed": 7, "index": 1}, {"seed": 8}]
        body = {"model": "classes", "anchors": anchors, "steps": 4} | body
        return client.post("/interpolate", json=body)

    def test_the_path_is_in_the_class_of_its_first_seed(self, client: httpx.Client) -> None:
        frames = answer(self.walk(client))["frames"]
        first = answer(sample(client, first_index=1))["images"][0]
        assert frames[0]["png"] == first["png"]
        assert {frame["label"] for frame in frames} == {first["label"]}

    def test_its_ends_are_the_anchors_in_the_class_that_is_given(
        self, client: httpx.Client
    ) -> None:
        frames = answer(self.walk(client, labels="dog"))["frames"]
        assert {frame["label"] for frame in frames} == {"dog"}
        for frame, at in ((frames[0], {"first_index": 1}), (frames[-1], {"seed": 8})):
            assert frame["png"] == answer(sample(client, labels="dog", **at))["images"][0]["png"]

    def test_two_different_labels_are_refused_and_two_equal_are_one(
        self, client: httpx.Client
    ) -> None:
        content = invalid(self.walk(client, labels=["cat", "dog"]), "/labels")
        assert "give one label" in content["detail"]
        assert self.walk(client, labels=["dog", 1]).content == (
            self.walk(client, labels=["dog"]).content
        )

    def test_unknown_labels_and_models_without_classes_are_refused(
        self, client: httpx.Client
    ) -> None:
        invalid(self.walk(client, labels=["cow"]), "/labels/0")
        refused = self.walk(client, model="plain", labels=["cat"])
        assert problem(refused, "unsupported-operation", 422)["alternatives"] == CONDITIONAL
        assert "label" not in answer(self.walk(client, model="plain"))["frames"][0]

    def test_latents_alone_need_a_label(self, client: httpx.Client) -> None:
        anchors = [{"latent": [1, 0, 0]}, {"latent": [0, 1, 0]}]
        invalid(self.walk(client, anchors=anchors), "/labels")
        assert answer(self.walk(client, anchors=anchors, labels=0))["frames"]
        mixed = [anchors[0], {"seed": 7}]
        frames = answer(self.walk(client, anchors=mixed))["frames"]
        assert {frame["label"] for frame in frames} == set(labels_of(sample(client)))

    def test_by_query_too(self, client: httpx.Client) -> None:
        params = {"model": "classes", "seeds": "7,8", "labels": "dog", "format": "npy"}
        anchors = [{"seed": 7}, {"seed": 8}]
        by_body = self.walk(client, anchors=anchors, labels=["dog"], steps=8, format="npy")
        assert client.get("/interpolate", params=params).content == by_body.content


class TestComplete:
    IMAGE = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)

    def complete(self, client: httpx.Client, **body: Any) -> httpx.Response:
        body = {"image": self.IMAGE.tolist(), "known_rows": 1, "seed": 7} | body
        return client.post("/complete", json={"model": "completing-classes"} | body)

    def test_the_rest_is_drawn_in_the_class_that_is_given(self, client: httpx.Client) -> None:
        images = array(self.complete(client, labels=["dog", GARMENT], format="npy"))
        greys = np.array([51, 204])[:, None, None]  # 255 · 1/5 and 255 · 4/5
        expected = np.where(np.arange(HEIGHT)[:, None] < 1, self.IMAGE, greys)
        np.testing.assert_array_equal(images, expected)

    def test_left_out_labels_are_drawn_and_told(self, client: httpx.Client) -> None:
        told = labels_of(self.complete(client, n=6, include=["log_prob"]))
        assert told == labels_of(sample(client, model="completing-classes", n=6))
        assert len(set(told)) > 1
        assert labels_of(self.complete(client, first_index=5)) == told[5:]

    def test_an_unknown_label_is_refused(self, client: httpx.Client) -> None:
        invalid(self.complete(client, labels=["cow"]), "/labels/0")


class TestLogProb:
    IMAGES = np.arange(3 * 32, dtype=np.uint8).reshape(3, 4, 8)

    def score(self, client: httpx.Client, **body: Any) -> httpx.Response:
        body = {"model": "scored-classes", "images": self.IMAGES.tolist()} | body
        return client.post("/log_prob", json=body)

    @pytest.mark.parametrize("labels", [["dog"], [4, "cat", "2"]])
    def test_it_is_that_given_the_labels(self, client: httpx.Client, labels: Any) -> None:
        results = answer(self.score(client, labels=labels))["results"]
        numbers = {"dog": 1, 4: 4, "cat": 0, "2": 2}
        factors = np.array([numbers[label] for label in labels])
        expected = -factors * self.IMAGES.astype(float).sum(axis=(1, 2)) / 255
        # Single precision, 32 summands.
        assert [result["log_prob"] for result in results] == pytest.approx(expected, rel=1e-6)

    def test_labels_are_needed_and_checked(self, client: httpx.Client) -> None:
        assert "say of which class" in invalid(self.score(client), "/labels")["detail"]
        invalid(self.score(client, labels=["cow"]), "/labels/0")
        invalid(self.score(client, labels=["cat", "cat"]), "/labels")

    def test_a_model_without_classes_refuses_them(self, serve: Serve, tmp_path: Path) -> None:
        graphs = {"generate": identity_generator(), "log_prob": class_log_prob()}
        graphs["log_prob"] = graphs["log_prob"].replace(", int64[N] label)", ")")
        graphs["log_prob"] = graphs["log_prob"].replace("(label)", "(brightness)")
        write_bundle(tmp_path, "grey", graphs, prior="uniform", latent=False)  # type: ignore[arg-type]
        with serve(model_store=tmp_path) as running:
            response = self.score(running.client, model="grey", labels=["cat"])
            assert problem(response, "unsupported-operation", 422)["alternatives"] == []


class TestModels:
    def test_the_classes_are_told(self, client: httpx.Client) -> None:
        assert answer(client.get("/models/classes"))["labels"] == list(CLASSES)
        assert answer(client.get("/models/plain"))["labels"] == []

    @pytest.mark.parametrize(
        ("generate", "labels", "reason"),
        [
            (class_generator(3), (), "names no labels"),
            (latent_generator(1), CLASSES, "generate takes none"),
        ],
    )
    def test_a_graph_that_disagrees_with_the_manifest_is_broken(
        self, serve: Serve, tmp_path: Path, generate: str, labels: tuple[str, ...], reason: str
    ) -> None:
        write_bundle(tmp_path, "odd", {"generate": generate}, labels=labels)
        with serve(model_store=tmp_path) as running:
            assert reason in running.service.catalog.broken["odd@1"]
