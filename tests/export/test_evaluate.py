import json
import math
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch

from export.data import Images, load_split
from export.evaluate import (
    evaluate,
    evaluate_over_http,
    file_size_metrics,
    fitting_classifier,
    mean_metric,
    nearest_training_images,
    read_metrics,
    score_test_part,
)
from export.graph import Graph
from export.recipe import Recipe, read_recipe
from export.train import load_model
from service.images import decode_npy, encode_npy

Run = tuple[Recipe, Path]


class Service(BaseHTTPRequestHandler):
    """Answers as the service does, by the graph of a bundle; `fault` makes it misbehave."""

    graph: Graph
    fault = ""
    requests: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        query = parse_qs(urlsplit(self.path).query)
        pixels = decode_npy(body).astype(np.uint8, casting="no")
        self.requests.append(
            {"query": query, "pixels": pixels, "type": self.headers["Content-Type"]}
        )
        images = (pixels / np.float32(255)).astype(np.float32)[:, None]
        log_prob = self.graph({"image": images})["log_prob"].astype(np.float64)
        answer = encode_npy(log_prob[:-1] if self.fault == "short" else log_prob)
        if self.fault == "refused":
            answer = json.dumps({"title": "Overloaded", "detail": "try later"}).encode()
        self.send_response(503 if self.fault == "refused" else 200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def service(finished_run: Run) -> Iterator[tuple[str, type[Service]]]:
    _, run = finished_run
    graph = Graph(run / "bundle" / "log_prob.onnx")
    handler = type("Handler", (Service,), {"graph": graph, "requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", handler
        http.shutdown()


@pytest.mark.parametrize("finished_run", ["nade"], indirect=True)
def test_the_nll_is_the_one_of_the_model_over_the_whole_test_part(finished_run: Run) -> None:
    recipe, run = finished_run
    split = load_split(recipe.data)
    model = load_model(recipe, run, split).requires_grad_(False)
    expected = -model.log_prob(torch.from_numpy(split.test.values)).double().numpy()
    nll, bits = read_metrics(run / "bundle")
    assert (nll.name, nll.unit, nll.protocol) == ("nll", "nats", recipe.protocol)
    assert nll.num_images == len(split.test) == 30
    assert nll.value == pytest.approx(expected.mean(), abs=1e-4)  # single precision
    assert nll.std_error == pytest.approx(expected.std(ddof=1) / math.sqrt(30), rel=1e-4)
    assert bits.unit == "bits per dim"
    assert bits.value == pytest.approx(nll.value / (64 * math.log(2)))


class ByLabel:
    """Stands for a class-conditional graph; tells the labels that it was given."""

    inputs: ClassVar = {"image": ["batch", 1, 2, 2], "label": ["batch"]}

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert list(inputs) == list(self.inputs)
        return {"log_prob": -inputs["label"].astype(np.float32)}


def test_a_conditional_density_is_scored_given_the_own_label_of_each_image() -> None:
    labels = np.arange(2500) % 7
    test = Images(np.zeros((2500, 1, 2, 2), dtype=np.uint8), labels)
    graph: Any = ByLabel()
    np.testing.assert_array_equal(score_test_part(graph, test), -labels)


def test_what_is_measured_is_written_down(finished_run: Run) -> None:
    recipe, run = finished_run
    assert evaluate(recipe, run) == read_metrics(run / "bundle")


@pytest.mark.parametrize("finished_run", ["nade"], indirect=True)
def test_figures_of_simpler_models_follow(finished_run: Run, tmp_path: Path) -> None:
    recipe, run = finished_run
    copy = shutil.copytree(run, tmp_path / "run")
    baseline = mean_metric("bits_per_dim_of_a_gaussian", np.array([3.0, 4.0]), "bits", "mnist")
    (copy / "baselines.json").write_text(json.dumps([baseline.model_dump()]))
    metrics = evaluate(recipe, copy)
    assert metrics == (*read_metrics(run / "bundle"), baseline)
    assert read_metrics(copy / "bundle") == metrics


def test_only_whole_grey_pictures_are_shown_to_the_classifier(make_recipe: Any) -> None:
    def has_one(**data: Any) -> bool:
        fields = {"source": "fashion-mnist", "binarization": "none"} | data
        return fitting_classifier(make_recipe("dcgan", data=fields)) is not None

    assert has_one()
    assert not has_one(pool=2)
    assert not has_one(crop=14)
    assert not has_one(dequantize=True)
    assert not has_one(binarization="fixed")


def test_dequantized_figures_are_not_compared_with_those_of_grey_levels() -> None:
    with pytest.raises(ValueError, match="scores the middle of each"):
        evaluate_over_http("http://127.0.0.1:1", "rnade", read_recipe("rnade-fashion14"))


@pytest.mark.parametrize("finished_run", ["dcgan", "cgan"], indirect=True)
def test_an_implicit_model_is_checked_for_copies(finished_run: Run) -> None:
    _, run = finished_run
    of_samples, of_test, smallest = read_metrics(run / "bundle")
    assert of_samples.name == "nearest_train_distance"
    assert of_test.name == "nearest_train_distance_of_test"
    assert smallest.name == "smallest_train_distance"
    assert 0 < smallest.value < of_samples.value
    assert (of_samples.num_images, of_test.num_images) == (1000, 30)
    assert of_samples.value > 0
    assert of_test.value > 0


def test_a_copy_has_no_distance_and_a_changed_pixel_its_difference() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2500, 1, 5, 5), dtype=np.uint8)
    train = Images(pixels, np.zeros(2500, dtype=np.int64))
    copies = train[2000:2003].values
    copies[1, 0, 2, 2] += 0.25
    copies[2] += 0.1
    # Exactly zero for a copy, in single precision otherwise.
    distances, numbers = nearest_training_images(copies, train)
    assert numbers.tolist() == [2000, 2001, 2002]
    assert distances[0] == 0
    assert distances[1:] == pytest.approx([0.25, 0.1 * 5], rel=1e-5)


def test_a_mean_of_one_image_has_no_standard_error() -> None:
    metric = mean_metric("nll", np.array([3.0]), "nats", "mnist-fixed")
    assert (metric.value, metric.std_error) == (3.0, None)


def test_picture_files_of_noise_hold_all_its_bits_and_files_of_nothing_hardly_any() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(5, dtype=np.int64)
    noise = rng.integers(0, 256, (5, 3, 64, 64)).astype(np.uint8)
    for metric in file_size_metrics(Images(noise, labels), "noise-8-bit"):
        assert 8 < metric.value < 8.2  # a header of 100 bytes is 0.07 bits per dim
    for metric in file_size_metrics(Images(0 * noise, labels), "black-8-bit"):
        assert metric.value < 0.2


def test_a_bundle_without_metrics_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `python -m export evaluate`"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("finished_run", ["nade"], indirect=True)
def test_the_service_is_measured_on_the_same_bits(finished_run: Run, service: Any) -> None:
    recipe, run = finished_run
    url, handler = service
    measured = evaluate_over_http(url + "/", "tiny@1", recipe, batch=16)
    # The card's figure averages the same numbers in another order.
    assert measured.value == pytest.approx(read_metrics(run / "bundle")[0].value, rel=1e-12)
    assert [len(request["pixels"]) for request in handler.requests] == [16, 14]
    first = handler.requests[0]
    assert first["query"] == {"model": ["tiny@1"], "format": ["npy"]}
    assert first["type"] == "application/x-npy"
    assert first["pixels"].dtype == np.uint8
    assert set(np.unique(first["pixels"])) == {0, 255}


@pytest.mark.parametrize("finished_run", ["nade"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "message"), [("refused", "answered 503.*try later"), ("short", r"answered \(29,\)")]
)
def test_a_service_that_misbehaves_is_quoted(
    finished_run: Run, service: Any, fault: str, message: str
) -> None:
    url, handler = service
    handler.fault = fault
    with pytest.raises(ValueError, match=message):
        evaluate_over_http(url, "tiny", finished_run[0])


@pytest.mark.parametrize("finished_run", ["nade"], indirect=True)
def test_no_service_is_told(finished_run: Run) -> None:
    with pytest.raises(OSError, match="refused"):
        evaluate_over_http("http://127.0.0.1:1", "tiny", finished_run[0])
    with pytest.raises(ValueError, match="no http address"):
        evaluate_over_http("file:///etc", "tiny", finished_run[0])
