"""A manifest is strict: what it does not say, or says wrongly, is refused with the field named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.manifest import (
    Image,
    Manifest,
    Operation,
    read_manifest,
    sha256_of,
    version_folders,
    write_manifest,
)

Content = dict[str, Any]
Change = Callable[[Content], object]


@pytest.fixture
def content(tiny_store: Path) -> Content:
    text = (tiny_store / "tiny-binary/1/model.json").read_text()
    parsed: Content = json.loads(text)
    return parsed


def test_a_manifest_survives_the_round_trip(tiny_store: Path, tmp_path: Path) -> None:
    for _, _, folder in version_folders(tiny_store):
        manifest = read_manifest(folder)
        write_manifest(tmp_path, manifest)
        assert read_manifest(tmp_path) == manifest


def test_a_manifest_does_not_change(content: Content) -> None:
    manifest = Manifest.model_validate_json(json.dumps(content))
    with pytest.raises(ValidationError, match="frozen"):
        manifest.version = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pointer", "change"),
    [
        ("name", lambda c: c.update(name="Tiny Binary")),
        ("name", lambda c: c.update(name="../evil")),
        ("name", lambda c: c.update(name="x" * 65)),
        ("version", lambda c: c.update(version=0)),
        ("schema_version", lambda c: c.update(schema_version=2)),
        ("density", lambda c: c.update(density="certain")),
        ("secret", lambda c: c.update(secret=1)),
        ("description", lambda c: c.pop("description")),
        ("image.shape", lambda c: c["image"].update(shape=[2, 4, 8])),
        ("image.shape", lambda c: c["image"].update(shape=[1, 0, 8])),
        ("image.shape", lambda c: c["image"].update(shape=[1, 8])),
        ("image.values", lambda c: c["image"].update(values="ternary")),
        ("noise.prior", lambda c: c["noise"].update(prior="cauchy")),
        ("noise.shape", lambda c: c["noise"].update(shape=[-1])),
        ("noise", lambda c: c["noise"].update(latent=True)),  # of shape (1, 4, 8)
        ("ordering", lambda c: c.update(ordering="spiral")),
        ("graphs.train", lambda c: c["graphs"].update(train=c["graphs"]["generate"])),
        ("graphs.generate.file", lambda c: c["graphs"]["generate"].update(file="../g.onnx")),
        ("graphs.generate.file", lambda c: c["graphs"]["generate"].update(file="/etc/g.onnx")),
        ("graphs.generate.file", lambda c: c["graphs"]["generate"].update(file="generate.pkl")),
        ("graphs.generate.file", lambda c: c["graphs"]["generate"].update(file="g.onnx\n")),
        ("graphs.generate.sha256", lambda c: c["graphs"]["generate"].update(sha256="00")),
        ("graphs.generate.max_batch_rows", lambda c: c["graphs"]["generate"].pop("max_batch_rows")),
        ("files", lambda c: c["files"].update({"../../etc/passwd": "0" * 64})),
        ("files", lambda c: c["files"].update({"/etc/passwd": "0" * 64})),
        ("files", lambda c: c["files"].update({"..": "0" * 64})),
        ("files", lambda c: c["files"].update({"a\\b": "0" * 64})),
        ("files", lambda c: c["files"].update({".hidden": "0" * 64})),
        ("files.README.md", lambda c: c["files"].update({"README.md": "X" * 64})),
        ("training.seconds", lambda c: c["training"].update(seconds=-1)),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(
    content: Content, pointer: str, change: Change
) -> None:
    change(content)
    with pytest.raises(ValidationError) as raised:
        Manifest.model_validate_json(json.dumps(content))
    (problem,) = raised.value.errors()
    assert ".".join(map(str, problem["loc"])).startswith(pointer)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["graphs"].pop("generate"),
        lambda c: c["graphs"].pop("log_prob"),
        lambda c: c.update(density="implicit"),
    ],
    ids=["no-generator", "exact-without-log-prob", "implicit-with-log-prob"],
)
def test_graphs_must_fit_the_density(content: Content, change: Change) -> None:
    change(content)
    with pytest.raises(ValidationError, match=r"generate graph|does not fit"):
        Manifest.model_validate_json(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("tiny-latent", ("sample", "interpolate")),
        ("tiny-binary", ("sample", "log_prob")),
        ("tiny-rgb", ("sample", "interpolate", "log_prob")),
    ],
)
def test_operations_follow_from_the_graphs(
    tiny_store: Path, name: str, operations: tuple[Operation, ...]
) -> None:
    assert read_manifest(tiny_store / name / "1").operations == operations


def test_no_two_classes_share_a_name(content: Content) -> None:
    content["labels"] = ["cat", "dog", "cat"]
    with pytest.raises(ValidationError, match="two classes share a name: cat, dog, cat"):
        Manifest.model_validate_json(json.dumps(content))


def test_hidden_folders_are_not_even_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is being published may be renamed between two looks."""
    for folder in ("model/1", "model/10", "model/2", "model/draft", ".staging/1"):
        (tmp_path / folder).mkdir(parents=True)
    looked_into: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: (looked_into.append(Path(path).name), scandir(path))[1]
    )
    assert [version for _, version, _ in version_folders(tmp_path)] == [1, 2, 10]
    assert ".staging" not in looked_into
    assert "model" in looked_into


def test_dims_are_counted_with_channels() -> None:
    assert Image(shape=(3, 4, 8), values="8-bit").num_dims == 96


def test_a_missing_manifest_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"model\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": NaN}'])
def test_what_is_no_manifest_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match="Manifest"):
        read_manifest(tmp_path)


def test_the_hash_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_of(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_only_numbered_folders_are_versions_and_they_are_sorted_as_numbers(tmp_path: Path) -> None:
    for name in ("b/10", "b/9", "a/1", "a/01", "a/0", "a/v2", "a/-1", ".tmp/1", "a/2.part"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/3").write_text("a file")
    found = [(name, version) for name, version, _ in version_folders(tmp_path)]
    assert found == [("a", 1), ("b", 9), ("b", 10)]
