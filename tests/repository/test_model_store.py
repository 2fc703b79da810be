"""The shipped bundles are whole, sound and small."""

from pathlib import Path

import pytest

from service.manifest import MANIFEST_FILE, read_manifest, sha256_of, version_folders

ROOT = Path(__file__).parents[2]
STORE = ROOT / "model_store"
MAX_BUNDLE_BYTES = 12 * 10**6
MAX_STORE_BYTES = 80 * 10**6
BUNDLES = version_folders(STORE)

bundles = pytest.mark.parametrize(
    ("name", "version", "folder"),
    BUNDLES,
    ids=[f"{name}@{version}" for name, version, _ in BUNDLES],
)


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_store_is_small_and_not_empty() -> None:
    assert BUNDLES
    assert num_bytes(STORE) <= MAX_STORE_BYTES


@bundles
def test_its_manifest_describes_its_files(name: str, version: int, folder: Path) -> None:
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.version) == (name, version)
    hashes = {graph.file: graph.sha256 for graph in manifest.graphs.values()} | dict(manifest.files)
    assert {path.name for path in folder.iterdir()} == {MANIFEST_FILE, *hashes}
    assert {file: sha256_of(folder / file) for file in hashes} == hashes
    for graph in manifest.graphs.values():
        assert (folder / graph.file).stat().st_size == graph.num_bytes


@bundles
def test_it_is_small(name: str, version: int, folder: Path) -> None:
    assert num_bytes(folder) <= MAX_BUNDLE_BYTES
