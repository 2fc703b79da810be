"""A store is served as far as it is sound: a broken bundle is told, and harms no other."""

import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.catalog import Catalog
from service.errors import (
    LogProbUndefinedError,
    NoLatentSpaceError,
    UnknownModelError,
    UnsupportedOperationError,
)
from service.manifest import GOLDEN_FILE, Operation, Role, sha256_of
from service.metrics import Metrics
from service.settings import Settings
from service.workers import Workers
from tests.service.bundles import (
    binary_log_prob,
    identity_generator,
    latent_generator,
    square_log_prob,
    write_bundle,
    write_graph,
)

Load = Callable[..., Catalog]
Break = Callable[[Path], object]


@pytest.fixture
def load(tiny_store: Path) -> Iterator[Load]:
    """Return a function that loads a store."""
    workers = Workers(1)

    def load(store: Path = tiny_store, **settings: Any) -> Catalog:
        catalog = Catalog(Settings(model_store=store, **settings), workers, Metrics(), 1024)
        catalog.load()
        return catalog

    yield load
    workers.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store with a bundle to break and a sound one."""
    write_bundle(
        tmp_path,
        "fragile",
        {"generate": latent_generator(1), "log_prob": square_log_prob(1, has_conditionals=True)},
    )
    write_bundle(tmp_path, "sound", {"generate": latent_generator(1)})
    return tmp_path


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def seal(folder: Path) -> None:
    """Write the hashes of the files as they are now into the manifest."""

    def update(content: dict[str, Any]) -> None:
        content["files"] = {name: sha256_of(folder / name) for name in content["files"]}
        for graph in content["graphs"].values():
            graph["sha256"] = sha256_of(folder / graph["file"])

    edit_manifest(folder, update)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def replace_graph(folder: Path, role: Role, text: str) -> None:
    write_graph(folder / f"{role}.onnx", text)
    seal(folder)


def change_golden(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with np.load(folder / GOLDEN_FILE) as golden:
        arrays = dict(golden)
    change(arrays)
    np.savez(folder / GOLDEN_FILE, **arrays)
    seal(folder)


def write_file(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    seal(folder)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def add_foreign_input(folder: Path) -> None:
    text = latent_generator(1).replace("noise)", "noise, float[N] mood)", 1)
    replace_graph(folder, "generate", text)
    change_golden(folder, lambda a: a.update({"generate.mood": np.ones(6, np.float32)}))


BREAKS: dict[str, tuple[Break, str]] = {
    "no manifest": (lambda f: (f / "model.json").unlink(), "model.json"),
    "manifest is no JSON": (lambda f: (f / "model.json").write_text("{"), "JSON"),
    "manifest is nested too deeply": (
        lambda f: (f / "model.json").write_text("[" * 100_000),
        "JSON",
    ),
    "manifest breaks a rule": (
        lambda f: edit_manifest(f, lambda c: c.update(density="x")),
        "density",
    ),
    "another name": (lambda f: edit_manifest(f, lambda c: c.update(name="other")), "other@1"),
    "another version": (lambda f: edit_manifest(f, lambda c: c.update(version=2)), "fragile@2"),
    "graph is missing": (
        lambda f: (f / "log_prob.onnx").unlink(),
        r"log_prob.onnx is missing",
    ),
    "card is missing": (lambda f: (f / "README.md").unlink(), r"README.md is missing"),
    "golden arrays are missing": (lambda f: (f / GOLDEN_FILE).unlink(), "golden.npz is missing"),
    "a bit of a graph is flipped": (
        lambda f: flip_a_bit(f / "generate.onnx"),
        r"generate.onnx is damaged",
    ),
    "a graph is cut": (
        lambda f: (f / "generate.onnx").write_bytes((f / "generate.onnx").read_bytes()[:99]),
        r"generate.onnx is damaged",
    ),
    "a bit of another file is flipped": (lambda f: flip_a_bit(f / "film.webp"), "film.webp"),
    "the hash is another": (
        lambda f: edit_manifest(f, lambda c: c["graphs"]["generate"].update(sha256="0" * 64)),
        r"generate.onnx is damaged",
    ),
    "graph is none": (
        lambda f: write_file(f, "generate.onnx", b"no graph"),
        "cannot be loaded",
    ),
    "graph is empty": (
        lambda f: write_file(f, "generate.onnx", b""),
        "cannot be loaded|cannot be read",
    ),
    "graph lacks its output": (
        lambda f: replace_graph(f, "log_prob", binary_log_prob().replace("log_prob)", "score)")),
        "has no output log_prob|lacks|cannot be loaded",
    ),
    "graph is of another role": (
        lambda f: replace_graph(f, "generate", square_log_prob(1, has_conditionals=False)),
        "has no output image",
    ),
    "graph computes something else": (
        lambda f: replace_graph(f, "generate", latent_generator(1, gain=1.1)),
        "0% of the golden rows of image",
    ),
    "graph wants what nobody gives": (
        add_foreign_input,
        "wants mood",
    ),
    "graph makes images of another shape": (
        lambda f: edit_manifest(f, lambda c: c["image"].update(shape=[1, 8, 4])),
        r"shape",
    ),
    "graph takes noise of another shape": (
        lambda f: edit_manifest(f, lambda c: c["noise"].update(shape=[7])),
        r"shape",
    ),
    "golden arrays lack one": (
        lambda f: change_golden(f, lambda a: a.pop("log_prob.log_prob")),
        r"golden.npz lacks .*log_prob.log_prob",
    ),
    "golden arrays do not fit": (
        lambda f: change_golden(f, lambda a: a.update({"generate.noise": np.ones((2, 9))})),
        "generate does not run|shape",
    ),
    "golden arrays hold no row": (
        lambda f: change_golden(f, lambda a: a.update({k: a[k][:0] for k in a})),
        "golden",
    ),
    "golden arrays differ": (
        lambda f: change_golden(f, lambda a: a["log_prob.log_prob"].__iadd__(0.1)),
        "0% of the golden rows of log_prob",
    ),
    "golden arrays are no archive": (
        lambda f: write_file(f, GOLDEN_FILE, b"PK\3\4 not a zip"),
        "golden",
    ),
    "golden arrays are text": (lambda f: write_file(f, GOLDEN_FILE, b"hello"), "golden|pickled"),
    "golden arrays are one array": (
        lambda f: write_file(f, GOLDEN_FILE, npy(np.ones(3))),
        "golden",
    ),
    "golden arrays are objects": (
        lambda f: write_file(f, GOLDEN_FILE, npy(np.array([{}], dtype=object))),
        "golden|pickle|[Oo]bject",
    ),
}


@pytest.mark.parametrize(("break_it", "reason"), BREAKS.values(), ids=BREAKS)
def test_a_broken_bundle_is_left_out_with_its_reason_and_others_are_served(
    store: Path, load: Load, caplog: pytest.LogCaptureFixture, break_it: Break, reason: str
) -> None:
    caplog.set_level(logging.ERROR)
    break_it(store / "fragile/1")
    catalog = load(store)
    assert catalog.references() == ["sound@1"]
    assert list(catalog.broken) == ["fragile@1"]
    assert re.search(reason, catalog.broken["fragile@1"])
    assert "fragile@1" in caplog.text


def test_both_are_served_while_neither_is_broken(store: Path, load: Load) -> None:
    seal(store / "fragile/1")
    catalog = load(store)
    assert catalog.references() == ["fragile@1", "sound@1"]
    assert catalog.broken == {}


def test_where_a_processor_rounds_otherwise_a_sampler_may_miss_some_golden_rows(
    store: Path, load: Load
) -> None:
    """One row of six is fewer than the three of ten that may differ."""
    change_golden(store / "fragile/1", lambda arrays: arrays["generate.image"][0].__iadd__(0.5))
    assert load(store).broken == {}


def test_an_older_version_is_served_when_the_newest_is_broken(
    tiny_store: Path, tmp_path: Path, load: Load
) -> None:
    shutil.copytree(tiny_store / "tiny-latent", tmp_path / "tiny-latent")
    flip_a_bit(tmp_path / "tiny-latent/2/generate.onnx")
    catalog = load(tmp_path)
    assert catalog.find("tiny-latent").reference == "tiny-latent@1"
    assert list(catalog.broken) == ["tiny-latent@2"]


def test_files_beside_the_bundles_are_no_bundles(store: Path, load: Load) -> None:
    (store / "README.md").write_text("hello")
    (store / "fragile/notes").mkdir()
    shutil.copytree(store / "fragile/1", store / ".fragile-half-written/1")
    catalog = load(store)
    assert catalog.references() == ["fragile@1", "sound@1"]
    assert catalog.broken == {}


def test_an_empty_store_has_no_model(tmp_path: Path, load: Load) -> None:
    catalog = load(tmp_path)
    assert catalog.models() == []
    with pytest.raises(UnknownModelError, match="the model store is empty"):
        catalog.find(None)


def test_a_missing_store_is_told_with_what_to_do(tmp_path: Path, load: Load) -> None:
    with pytest.raises(FileNotFoundError, match="PTHETA_MODEL_STORE"):
        load(tmp_path / "nowhere")


class TestFind:
    def test_a_name_means_the_newest_version(self, load: Load) -> None:
        assert load().find("tiny-latent").reference == "tiny-latent@2"

    def test_versions_are_compared_as_numbers(self, tmp_path: Path, load: Load) -> None:
        for version in (9, 10):
            write_bundle(tmp_path, "many", {"generate": latent_generator(1)}, version=version)
        assert load(tmp_path).find("many").reference == "many@10"

    def test_a_version_may_be_named(self, load: Load) -> None:
        catalog = load()
        assert catalog.find("tiny-latent@1").reference == "tiny-latent@1"
        assert catalog.versions("tiny-latent") == [1, 2]

    @pytest.mark.parametrize(
        "reference",
        [
            "nobody",
            "nobody@1",
            "tiny-latent@3",
            "tiny-latent@0",
            "tiny-latent@-1",
            "tiny-latent@1@1",
            "tiny-latent@1.0",
            "tiny-latent@ 1",
            "tiny-latent@one",
            "tiny-latent@²",
            pytest.param("tiny-latent@" + "9" * 5000, id="huge"),
            "@1",
            "../tiny-latent",
        ],
    )
    def test_what_is_not_there_is_unknown_and_the_rest_is_listed(
        self, load: Load, reference: str
    ) -> None:
        catalog = load()
        with pytest.raises(UnknownModelError) as raised:
            catalog.find(reference)
        assert raised.value.extensions["available"] == catalog.references()

    @pytest.mark.parametrize(
        ("operation", "name"),
        [(None, "tiny-latent"), ("sample", "tiny-latent"), ("interpolate", "tiny-latent")],
    )
    def test_the_default_is_the_first_latent_model(
        self, load: Load, operation: Operation | None, name: str
    ) -> None:
        assert load().find(None, operation).manifest.name == name

    def test_the_default_can_do_what_is_asked(self, load: Load) -> None:
        assert "log_prob" in load().find(None, "log_prob").manifest.operations

    def test_the_default_can_be_chosen(self, load: Load) -> None:
        catalog = load(default_model="tiny-binary@1")
        assert catalog.find(None, "sample").reference == "tiny-binary@1"
        with pytest.raises(NoLatentSpaceError):
            catalog.find(None, "interpolate")

    def test_a_default_that_is_not_there_is_unknown(self, load: Load) -> None:
        with pytest.raises(UnknownModelError, match="nobody"):
            load(default_model="nobody").find(None)


class TestAlternatives:
    def test_likelihoods_are_looked_for_at_the_same_image_shape(self, load: Load) -> None:
        with pytest.raises(LogProbUndefinedError) as raised:
            load().find("tiny-latent", "log_prob")
        assert raised.value.extensions["alternatives"] == ["tiny-binary", "tiny-grey"]

    def test_latent_spaces_are_looked_for_everywhere(self, load: Load) -> None:
        with pytest.raises(NoLatentSpaceError) as raised:
            load().find("tiny-binary", "interpolate")
        assert raised.value.extensions["alternatives"] == ["tiny-latent", "tiny-rgb"]

    def test_there_may_be_none(self, tmp_path: Path, load: Load) -> None:
        write_bundle(
            tmp_path,
            "alone",
            {
                "generate": identity_generator(),
                "log_prob": square_log_prob(1, has_conditionals=False),
            },
            prior="uniform",
            latent=False,
        )
        with pytest.raises(UnsupportedOperationError, match="none in this store"):
            load(tmp_path).find("alone", "interpolate")
