"""The model store in memory: every bundle verified, loaded and warm before it is served."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.anomaly import CALIBRATION_FILE, AnomalyScore, Preparation, read_calibration
from service.bounds import graph_class
from service.device import CPU, Device, choose_device
from service.errors import (
    LogProbUndefinedError,
    NoLatentSpaceError,
    UnknownModelError,
    UnsupportedOperationError,
)
from service.graph import LABEL, NEUTRAL_INPUTS, Graph, Session
from service.images import read_npz
from service.manifest import (
    GOLDEN_FILE,
    Manifest,
    Operation,
    Role,
    read_manifest,
    sha256_of,
    version_folders,
)
from service.metrics import GraphMetrics, Metrics
from service.model import Model
from service.settings import Settings, available_cpus
from service.workers import Workers

logger = logging.getLogger(__name__)

# What the service gives to a graph, and what it cannot do without.
_INPUTS: dict[Role, set[str]] = {
    "generate": {"noise", LABEL, *NEUTRAL_INPUTS},
    "log_prob": {"image", "noise", LABEL},
    "encode": {"image", LABEL},
}
_OUTPUTS: dict[Role, set[str]] = {
    "generate": {"image"},
    "log_prob": {"log_prob"},
    "encode": {"mean", "log_var"},
}
# Another processor rounds differently, and a pixel drawn right at its threshold then changes the
# pixels after it: a sampler must reproduce this share of the golden rows, other graphs all.
_GOLDEN_SHARE = {"generate": 0.7, "log_prob": 1.0, "encode": 1.0}
_GOLDEN_TOLERANCE = 2e-3


class BrokenBundleError(ValueError):
    """A bundle is not what its manifest says; it is not served."""


class Catalog:
    """All models of the store, by name and version.

    Args:
        settings: Where the store is, and what is served by default.
        workers: Where the graphs run.
        metrics: What hears of them.
        max_queue_rows: Most rows that wait per graph.
    """

    def __init__(
        self, settings: Settings, workers: Workers, metrics: Metrics, max_queue_rows: int
    ) -> None:
        self._settings = settings
        self._max_queue_rows = max_queue_rows
        self._device = choose_device(settings.device, settings.gpu_memory_bytes)
        self._metrics = metrics
        self._workers = workers
        self._versions: dict[str, dict[int, Model]] = {}
        self.broken: dict[str, str] = {}

    def load(self) -> None:
        """Load every bundle of the store; broken ones are left out and told by `broken`.

        Raises:
            FileNotFoundError: There is no store.
        """
        store = self._settings.model_store
        if not store.is_dir():
            raise FileNotFoundError(f"there is no model store at {store}; set PTHETA_MODEL_STORE")
        # A GPU is shared by all graphs; on a CPU, reading is mostly computing: the golden rows.
        num_readers = available_cpus() if self._device.name == "cpu" else 1
        with ThreadPoolExecutor(num_readers) as readers:
            found = [
                (name, version, folder, readers.submit(read_bundle, folder, self._device))
                for name, version, folder in version_folders(store)
            ]
        for name, version, folder, bundle in found:
            try:
                model = make_model(bundle.result(), self._make_graph)
            except Exception as error:  # whatever ails one bundle must not harm the others
                reason = str(error).replace(f"{folder}/", "")  # clients may read it
                logger.error("%s@%d is broken and not served: %s", name, version, reason)
                self.broken[f"{name}@{version}"] = reason
                self._metrics.add_broken(f"{name}@{version}")
            else:
                self._versions.setdefault(name, {})[version] = model
                queues = [(role, graph.batcher) for role, graph in model.graphs.items()]
                self._metrics.add_model(model.manifest, queues)
        logger.info("loaded %s", ", ".join(self.references()) or "no model")

    def models(self) -> list[Model]:
        """List all versions of all models."""
        return [
            model for _, versions in sorted(self._versions.items()) for model in versions.values()
        ]

    def newest(self) -> list[Model]:
        """List the newest version of each model."""
        return [versions[max(versions)] for _, versions in sorted(self._versions.items())]

    def references(self) -> list[str]:
        """List what a request may name, as `name@version`."""
        return [model.reference for model in self.models()]

    def versions(self, name: str) -> list[int]:
        """List the versions of a model."""
        return sorted(self._versions.get(name, {}))

    def find(self, reference: str | None, operation: Operation | None = None) -> Model:
        """Find a model that a request names.

        Args:
            reference: `name` for the newest version, `name@version`, or None for the default.
            operation: What it must be able to do.

        Raises:
            UnknownModelError: No such model or version.
            UnsupportedOperationError: It cannot do this; tells which models can.
        """
        model = self._lookup(reference) if reference else self._default(operation)
        if operation is not None and operation not in model.operations:
            raise self._refusal(model, operation)
        return model

    def alternatives(self, model: Model, operation: Operation) -> list[str]:
        """List newest models that can do what `model` cannot; for log_prob on the same shape."""
        return [
            other.manifest.name
            for other in self.newest()
            if operation in other.manifest.operations
            and (
                operation != "log_prob" or other.manifest.image.shape == model.manifest.image.shape
            )
        ]

    def _lookup(self, reference: str) -> Model:
        name, _, version = reference.partition("@")
        versions = self._versions.get(name, {})
        if not version and versions:
            return versions[max(versions)]
        for number, model in versions.items():
            if version.lstrip("0") == str(number):
                return model
        raise UnknownModelError(reference, self.references())

    def _default(self, operation: Operation | None) -> Model:
        if self._settings.default_model:
            return self._lookup(self._settings.default_model)
        models = self.newest()
        able = [m for m in models if operation is None or operation in m.manifest.operations]
        latent = [model for model in able if model.manifest.noise.latent]
        for model in [*latent, *able, *models]:
            return model
        raise UnknownModelError("(default)", [])

    def _refusal(self, model: Model, operation: Operation) -> UnsupportedOperationError:
        alternatives = self.alternatives(model, operation)
        if operation == "log_prob":
            return LogProbUndefinedError(model.reference, alternatives)
        if operation in {"interpolate", "encode", "reconstruct"}:
            return NoLatentSpaceError(model.reference, alternatives)
        reason = f"{model.reference} cannot {operation}"
        return UnsupportedOperationError(reason, alternatives)

    def _make_graph(self, session: Session, role: Role, manifest: Manifest) -> Graph:
        return graph_class(role, manifest)(
            session,
            role,
            manifest,
            self._workers,
            max_queue_rows=self._max_queue_rows,
            max_wait_s=self._settings.max_wait_s,
            metrics=GraphMetrics(self._metrics, manifest.reference, role),
        )


@dataclass(frozen=True)
class Bundle:
    """A bundle that is what its manifest says, with warm graphs that nobody can call yet."""

    folder: Path
    manifest: Manifest
    sessions: dict[Role, Session]
    anomaly: dict[Preparation, AnomalyScore]


def read_bundle(folder: Path, device: Device = CPU) -> Bundle:
    """Verify and load one bundle, and warm its graphs up on their golden arrays.

    Raises:
        BrokenBundleError: A file, a hash, a graph, a shape or a result is not what the manifest
            says.
        OSError: A file cannot be read.
        ValueError: The manifest breaks a rule.
    """
    manifest = read_manifest(folder)
    if (manifest.name, str(manifest.version)) != (folder.parent.name, folder.name):
        raise BrokenBundleError(f"the manifest is that of {manifest.reference}")
    for file, sha256 in manifest.files.items():
        _verify(folder / file, sha256)
    sessions: dict[Role, Session] = {}
    for role, graph in manifest.graphs.items():
        path = folder / graph.file
        _verify(path, graph.sha256)
        try:
            session = Session(path, device, graph.activation_bytes)
        except Exception as error:  # the runtime's own classes share no better base
            raise BrokenBundleError(f"{path.name} cannot be loaded: {error}") from error
        missing = _OUTPUTS[role] - set(session.outputs)
        if missing:
            raise BrokenBundleError(f"{path.name} has no output {', '.join(sorted(missing))}")
        foreign = set(session.inputs) - _INPUTS[role]
        if foreign:
            raise BrokenBundleError(f"{path.name} wants {', '.join(sorted(foreign))}")
        _check_labels(session, role, manifest)
        _check_noise(session, role, manifest)
        sessions[role] = session
    golden = _read_golden(folder / GOLDEN_FILE)
    for role, session in sessions.items():
        _replay_golden(golden, role, session, manifest)
    return Bundle(folder, manifest, sessions, _read_anomaly(folder, manifest, golden))


def make_model(bundle: Bundle, make_graph: Callable[[Session, Role, Manifest], Graph]) -> Model:
    """Let calls come to the graphs of a bundle."""
    graphs = {
        role: make_graph(session, role, bundle.manifest)
        for role, session in bundle.sessions.items()
    }
    return Model(bundle.manifest, graphs, bundle.folder, bundle.anomaly)


def _check_labels(session: Session, role: Role, manifest: Manifest) -> None:
    if LABEL in session.inputs and not manifest.labels:
        raise BrokenBundleError(f"{role} wants a label, but the manifest names no labels")
    if LABEL not in session.inputs and manifest.labels and role != "encode":
        raise BrokenBundleError(f"the manifest names labels, but {role} takes none")


def _check_noise(session: Session, role: Role, manifest: Manifest) -> None:
    if role != "log_prob":
        return
    is_bound = manifest.density == "bound"
    if ("noise" in session.inputs, "log_weight" in session.outputs) != (is_bound, is_bound):
        raise BrokenBundleError(
            f"a log_prob of density {manifest.density} {'takes' if is_bound else 'has no'} noise "
            f"and {'gives' if is_bound else 'no'} log_weight"
        )


def _verify(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise BrokenBundleError(f"{path.name} is missing")
    if sha256_of(path) != sha256:
        raise BrokenBundleError(f"{path.name} is damaged: its SHA-256 is not the manifest's")


def _read_golden(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return read_npz(path)
    except Exception as error:  # NumPy and its archive share no better base
        raise BrokenBundleError(f"{path.name} cannot be read: {error}") from error


def _read_anomaly(
    folder: Path, manifest: Manifest, golden: dict[str, NDArray[Any]]
) -> dict[Preparation, AnomalyScore]:
    if manifest.calibration is None:
        return {}
    try:
        return read_calibration(folder / CALIBRATION_FILE, golden["log_prob.image"])
    except ValueError as error:
        raise BrokenBundleError(str(error)) from error


def _replay_golden(
    golden: dict[str, NDArray[Any]], role: Role, session: Session, manifest: Manifest
) -> None:
    try:
        inputs = {name: golden[f"{role}.{name}"] for name in session.inputs}
        expected = {name: golden[f"{role}.{name}"] for name in session.outputs}
    except KeyError as error:
        raise BrokenBundleError(f"{GOLDEN_FILE} lacks {error}") from error
    row_shapes = {"noise": manifest.noise.shape, "image": manifest.image.shape}
    is_bound = role == "log_prob" and manifest.density == "bound"
    for name, array in (inputs | expected).items():
        row_shape = row_shapes.get(name, array.shape[1:])
        if is_bound and name == "noise":
            row_shape = (*array.shape[1:2], *row_shape)  # any number of samples
        if not array.size or array.shape[1:] != row_shape:
            raise BrokenBundleError(
                f"the golden {name} of {role} has shape {array.shape}, not "
                f"(N, {', '.join(map(str, row_shape))})"
            )
    try:
        outputs = session.run(inputs)
    except Exception as error:  # the runtime's own classes share no better base
        raise BrokenBundleError(f"{role} does not run: {error}") from error
    if session.device.pads_batches:
        _probe_largest_batch(session, inputs, manifest.graphs[role].max_batch_rows)
    for name, array in expected.items():
        share = _share_of_equal_rows(outputs[name], array)
        if share < _GOLDEN_SHARE[role]:
            raise BrokenBundleError(f"{role} reproduces {share:.0%} of the golden rows of {name}")


def _probe_largest_batch(session: Session, inputs: dict[str, NDArray[Any]], rows: int) -> None:
    # A GPU that cannot hold the largest batch should say so now, not under load.
    try:
        session.run(
            {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}
        )
    except Exception as error:  # the runtime's own classes share no better base
        raise BrokenBundleError(f"a batch of {rows} rows does not run: {error}") from error


def _share_of_equal_rows(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    if actual.shape != expected.shape:
        return 0.0
    close = np.isclose(actual, expected, rtol=1e-5, atol=_GOLDEN_TOLERANCE, equal_nan=True)
    return float(close.reshape(len(close), -1).all(axis=1).mean())
