"""Graphs draw their own noise, mix calls of every kind, and can be stopped."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.batcher import Stop, StoppedError
from service.graph import INDEX, SEED, TRUNCATION, Graph, Session
from service.manifest import Role, read_manifest
from service.metrics import GraphMetrics, Metrics
from service.model import seeded_rows
from service.noise import draw
from service.workers import Workers
from tests.service.bundles import slow_generator, write_graph


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(1)
    yield made
    made.close()


def load(store: Path, name: str, workers: Workers, role: Role = "generate") -> Graph:
    folder = store / name / "1"
    manifest = read_manifest(folder)
    return Graph(
        Session(folder / f"{role}.onnx"),
        role,
        manifest,
        workers,
        max_queue_rows=100,
        max_wait_s=0,
        metrics=GraphMetrics(Metrics(), manifest.reference, role),
    )


def seeded(seed: int, first: int, count: int, **more: float) -> dict[str, Any]:
    rows: dict[str, Any] = seeded_rows(seed, first, count)
    return rows | {name: np.full(count, value, np.float32) for name, value in more.items()}


def test_a_session_tells_the_names_of_its_tensors(tiny_store: Path) -> None:
    session = Session(tiny_store / "tiny-binary/1/log_prob.onnx")
    assert session.inputs == ["image"]
    assert session.outputs == ["log_prob", "conditional_log_prob"]


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(Exception, match=r"(?i)protobuf|model"):
        Session(path)


@pytest.mark.parametrize("name", ["tiny-latent", "tiny-binary", "tiny-rgb"])
def test_noise_by_seed_equals_the_same_noise_given(
    tiny_store: Path, workers: Workers, name: str
) -> None:
    graph = load(tiny_store, name, workers)
    noise = read_manifest(tiny_store / name / "1").noise
    rows = seeded_rows(7, 5, 4)
    given = draw(noise.prior, rows[SEED], rows[INDEX], noise.shape)
    by_seed, by_noise = graph.run([rows]), graph.run([{"noise": given}])
    np.testing.assert_array_equal(by_seed["noise"], given)
    np.testing.assert_array_equal(by_seed["image"], by_noise["image"])


def test_calls_of_every_kind_mix_in_one_batch(tiny_store: Path, workers: Workers) -> None:
    graph = load(tiny_store, "tiny-latent", workers)
    noise = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    parts = [
        seeded(7, 0, 2),
        {"noise": noise},
        seeded(2**64 - 1, 2**63, 1, **{TRUNCATION: 0.5}),
        seeded(0, 9, 2, **{TRUNCATION: 0.25}),
        {"noise": noise[:1]},
        seeded(7, 1, 1),
    ]
    together = graph.run(parts)
    alone = [graph.run([part]) for part in parts]
    for name in ("image", "noise"):
        np.testing.assert_array_equal(
            together[name], np.concatenate([outputs[name] for outputs in alone])
        )


def test_truncation_scales_the_noise(tiny_store: Path, workers: Workers) -> None:
    graph = load(tiny_store, "tiny-latent", workers)
    full = graph.run([seeded(7, 0, 3)])
    half = graph.run([seeded(7, 0, 3, **{TRUNCATION: 0.5})])
    np.testing.assert_array_equal(half["noise"], full["noise"] / 2)


def test_truncation_pulls_uniform_noise_to_the_middle(tiny_store: Path, workers: Workers) -> None:
    graph = load(tiny_store, "tiny-rgb", workers)
    full = graph.run([seeded(7, 0, 3)])
    half = graph.run([seeded(7, 0, 3, **{TRUNCATION: 0.5})])
    # Halfway between two single-precision numbers near ½.
    np.testing.assert_allclose(half["noise"], 0.25 + full["noise"] / 2, atol=2**-24)


def test_running_leaves_the_rows_of_the_caller_alone(tiny_store: Path, workers: Workers) -> None:
    graph = load(tiny_store, "tiny-latent", workers)
    rows = seeded(7, 0, 3, **{TRUNCATION: 0.5})
    before = {name: array.copy() for name, array in rows.items()}
    graph.run([rows, rows])
    for name, array in rows.items():
        np.testing.assert_array_equal(array, before[name])


def test_temperature_is_one_where_it_is_left_out(tiny_store: Path, workers: Workers) -> None:
    graph = load(tiny_store, "tiny-binary", workers)
    plain, hot = seeded(1, 0, 8), seeded(1, 0, 8, temperature=10.0)
    mixed = graph.run([plain, hot, plain])["image"]
    neutral = graph.run([seeded(1, 0, 8, temperature=1.0)])["image"]
    np.testing.assert_array_equal(mixed[:8], neutral)
    np.testing.assert_array_equal(mixed[16:], neutral)
    np.testing.assert_array_equal(mixed[8:16], graph.run([hot])["image"])
    assert not np.array_equal(mixed[8:16], neutral)


def test_a_scoring_graph_joins_images(tiny_store: Path, workers: Workers) -> None:
    graph = load(tiny_store, "tiny-binary", workers, "log_prob")
    images = (np.random.default_rng(0).random((5, 1, 4, 8)) < 0.3).astype(np.float32)
    together = graph.run([{"image": images[:2]}, {"image": images[2:]}])
    whole = graph.run([{"image": images}])
    for name in ("log_prob", "conditional_log_prob"):
        np.testing.assert_array_equal(together[name], whole[name])


def test_pixels_of_a_byte_each_score_as_the_same_pixels_in_floats(
    tiny_store: Path, workers: Workers
) -> None:
    graph = load(tiny_store, "tiny-binary", workers, "log_prob")
    bits = np.random.default_rng(0).random((5, *graph.manifest.image.shape)) < 0.5
    parts = [{"image": bits}], [{"image": bits[:2]}, {"image": bits[2:].astype(np.float32)}]
    expected = graph.run([{"image": bits.astype(np.float32)}])["log_prob"]
    for rows in parts:
        np.testing.assert_array_equal(graph.run(rows)["log_prob"], expected)


@pytest.mark.timeout(60)
def test_a_long_run_can_be_stopped(tmp_path: Path) -> None:
    write_graph(tmp_path / "generate.onnx", slow_generator())
    session = Session(tmp_path / "generate.onnx")
    stop, began, outcome = Stop(), threading.Event(), []

    def run() -> None:
        began.set()
        try:
            session.run({"noise": np.full((1, 3), 1e6, np.float32)}, stop)
        except Exception as error:  # whatever it is, it is what the test is about
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    began.wait()
    assert thread.is_alive()  # it would be for minutes
    stop.request()
    thread.join()
    assert [type(error) for error in outcome] == [StoppedError]


@pytest.mark.timeout(60)
def test_a_run_that_was_stopped_before_it_began_does_not_begin(tmp_path: Path) -> None:
    write_graph(tmp_path / "generate.onnx", slow_generator())
    session = Session(tmp_path / "generate.onnx")
    stop = Stop()
    stop.request()
    with pytest.raises(StoppedError):
        session.run({"noise": np.full((1, 3), 1e6, np.float32)}, stop)


def test_a_session_works_after_a_run_that_failed(tiny_store: Path) -> None:
    session = Session(tiny_store / "tiny-latent/1/generate.onnx")
    noise = np.ones((2, 3), np.float32)
    before = session.run({"noise": noise})["image"]
    with pytest.raises(Exception, match=r"(?i)dimension"):
        session.run({"noise": np.ones((2, 4), np.float32)}, Stop())
    np.testing.assert_array_equal(session.run({"noise": noise})["image"], before)
