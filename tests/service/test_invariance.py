"""The bytes of an answer do not depend on how the server runs: threads, processes, batches."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.device import CPU, Device
from service.graph import Session
from service.manifest import read_manifest, version_folders
from service.noise import draw
from tests.service.conftest import SHIPPED_STORE, Start

pytestmark = pytest.mark.timeout(120)

FOLDERS = [folder for _, _, folder in version_folders(SHIPPED_STORE)]
NUM_IMAGES = 70  # more than one batch, so that several threads share a request


def digests(client: httpx.Client) -> dict[str, str]:
    """Hash what every model answers for one seed; images that it can score are scored."""
    found = {}
    for model in client.get("/models").json()["models"]:
        name = model["name"]
        body = {"model": name, "n": NUM_IMAGES, "seed": 11, "format": "npy"}
        drawn = client.post("/sample", json=body)
        assert drawn.status_code == 200
        found[f"{name} sample"] = hashlib.sha256(drawn.content).hexdigest()
        if "log_prob" in model["operations"] and not model["labels"]:
            scored = client.post(
                f"/log_prob?model={name}&format=npy",
                content=drawn.content,
                headers={"Content-Type": "application/x-npy"},
            )
            assert scored.status_code == 200
            found[f"{name} log_prob"] = hashlib.sha256(scored.content).hexdigest()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="several processes need Linux")
def test_threads_and_processes_change_no_byte(start: Start) -> None:
    answers = []
    for processes, num_threads, quick_s in ((1, 1, 0), (1, 2, 0), (3, 2, 10)):
        process = start(
            SHIPPED_STORE, processes=processes, num_threads=num_threads, quick_s=quick_s
        )
        with process.ready_client() as client:
            answers.append(digests(client))
        process.terminate()
    assert answers[0]
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_padding_changes_no_bit(folder: Path) -> None:
    """Batches of a GPU are filled up to a power of two; here the same is done on the CPU."""
    manifest = read_manifest(folder)
    indices = np.arange(11, dtype=np.uint64)
    noise = draw(manifest.noise.prior, 3 + 0 * indices, indices, manifest.noise.shape)
    path = folder / manifest.graphs["generate"].file
    plain, padded = Session(path), Session(path, Device("cpu", CPU.providers, pads_batches=True))
    with np.load(folder / "golden.npz") as golden:
        examples = {name: golden[f"generate.{name}"] for name in plain.inputs}
    for count in (1, 3, 5, 11):
        inputs = {
            name: np.resize(array, (count, *array.shape[1:])) for name, array in examples.items()
        } | {"noise": noise[:count]}
        for name, expected in plain.run(inputs).items():
            np.testing.assert_array_equal(padded.run(inputs)[name], expected)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_pieces_change_no_bit(folder: Path) -> None:
    """A CPU runs a large batch in pieces where its activations would leave the cache."""
    manifest = read_manifest(folder)
    for role, graph in manifest.graphs.items():
        whole = Session(folder / graph.file)
        assert graph.activation_bytes is not None
        device = replace(CPU, max_activation_bytes=3 * graph.activation_bytes)
        cut = Session(folder / graph.file, device, graph.activation_bytes)
        with np.load(folder / "golden.npz") as golden:
            examples = {name: golden[f"{role}.{name}"] for name in whole.inputs}
        for count in (4, 8):
            inputs = {
                name: np.resize(array, (count, *array.shape[1:]))
                for name, array in examples.items()
            }
            for name, expected in whole.run(inputs).items():
                np.testing.assert_array_equal(cut.run(inputs)[name], expected)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_company_changes_no_bit(folder: Path) -> None:
    """A full batch against smaller ones: kernels divide their work by the number of rows."""
    manifest = read_manifest(folder)
    num_rows = 97
    indices = np.arange(num_rows, dtype=np.uint64)
    for role, graph in manifest.graphs.items():
        session = Session(folder / graph.file)
        with np.load(folder / "golden.npz") as golden:
            examples = {name: golden[f"{role}.{name}"] for name in session.inputs}
        inputs = {
            name: np.resize(array, (num_rows, *array.shape[1:])) for name, array in examples.items()
        }
        if role == "generate":
            noise = draw(manifest.noise.prior, 5 + 0 * indices, indices, manifest.noise.shape)
            inputs["noise"] = noise
        together = session.run(inputs)
        for first, last in ((0, 1), (1, 3), (3, 8), (8, 24), (24, 57), (33, 97)):
            part = {name: np.ascontiguousarray(array[first:last]) for name, array in inputs.items()}
            for name, values in session.run(part).items():
                assert values.tobytes() == together[name][first:last].tobytes(), (role, name, first)
