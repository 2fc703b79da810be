"""Publish a converted and evaluated run as the next version of its model, all or nothing."""

import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.activations import activation_bytes, golden_inputs_of
from export.calibrate import calibrate
from export.card import (
    NEAREST_FILE,
    draw_film,
    draw_nearest,
    draw_preview,
    read_background,
    render_card,
)
from export.convert import BUNDLE_FOLDER, convert
from export.data import Split, load_split
from export.evaluate import METRICS_FILE, evaluate, read_metrics
from export.graph import Graph as OnnxGraph
from export.model import GenerativeModel
from export.recipe import Recipe
from export.train import CHECKPOINT_FILE, load_model, read_run
from service.anomaly import CALIBRATION_FILE
from service.manifest import (
    CARD_FILE,
    FILM_FILE,
    GOLDEN_FILE,
    PREVIEW_FILE,
    Calibration,
    Graph,
    Manifest,
    Role,
    Source,
    Training,
    read_manifest,
    sha256_of,
    version_folders,
    write_manifest,
)

MAX_BUNDLE_BYTES = 12_000_000

_ROLES: tuple[Role, ...] = ("generate", "log_prob", "encode")
_FILES = (GOLDEN_FILE, CALIBRATION_FILE, PREVIEW_FILE, FILM_FILE, NEAREST_FILE)


def publish(recipe: Recipe, run: Path, store: Path, *, unfinished: bool = False) -> Path:
    """Write a bundle into the store as the next version of its model.

    The bundle is written beside the models and renamed into place, so that a service never sees
    half of one. What is missing or older than the checkpoint is converted and evaluated first.

    Args:
        recipe: What was trained.
        run: Folder of the run.
        store: The model store.
        unfinished: Whether to publish even a run that has epochs left.

    Returns:
        The new folder, `<store>/<name>/<version>`.

    Raises:
        FileNotFoundError: The run was never trained, or the data is missing.
        ValueError: The run is unfinished, or the bundle is too large.
    """
    _refuse_unfinished(recipe, run, unfinished)
    make_up_to_date(recipe, run)
    split = load_split(recipe.data)
    model = load_model(recipe, run, split)
    store.mkdir(parents=True, exist_ok=True)
    # The dot hides it from readers of the store; a rename needs the same file system.
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=store))
    try:
        staging.chmod(0o755)
        _write_arrays(recipe, run, staging, model)
        if model.density == "implicit":
            generate = OnnxGraph(staging / "generate.onnx", recipe.max_batch_rows)
            picture = draw_nearest(generate, model, split.train)
            (staging / NEAREST_FILE).write_bytes(picture)
        manifest = describe(recipe, run, staging, model, split, calibrate(recipe, staging))
        return _place(manifest, run, staging, store)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def make_up_to_date(recipe: Recipe, run: Path) -> None:
    """Convert and evaluate a run where that was not done since its checkpoint was written."""
    bundle = run / BUNDLE_FOLDER
    golden, metrics = bundle / GOLDEN_FILE, bundle / METRICS_FILE
    if not _is_newer(golden, run / CHECKPOINT_FILE):
        convert(recipe, run)
    if not _is_newer(metrics, golden):
        evaluate(recipe, run)


def describe(
    recipe: Recipe,
    run: Path,
    folder: Path,
    model: GenerativeModel,
    split: Split,
    calibration: Calibration | None = None,
) -> Manifest:
    """Describe the graphs of a folder in a manifest whose version and files are still open."""
    return Manifest(
        name=recipe.name,
        version=1,
        family=recipe.family,
        description=recipe.description,
        density=model.density,
        image=model.image,
        noise=model.noise,
        labels=split.classes if model.is_conditional else (),
        ordering=model.ordering,
        num_parameters=model.num_parameters(),
        graphs={
            role: Graph(
                file=path.name,
                sha256=sha256_of(path),
                num_bytes=path.stat().st_size,
                max_batch_rows=recipe.max_batch_rows,
                activation_bytes=activation_bytes(path, golden_inputs_of(folder, role)),
            )
            for role in _ROLES
            if (path := folder / f"{role}.onnx").is_file()
        },
        files={},
        metrics=read_metrics(run / BUNDLE_FOLDER),
        calibration=calibration,
        training=_training(recipe, read_run(run), split.source),
    )


def verify(folder: Path) -> Manifest:
    """Read a bundle back and compare every hash.

    Raises:
        OSError: A file is missing.
        ValueError: A file is not what the manifest says.
    """
    manifest = read_manifest(folder)
    expected = {graph.file: graph.sha256 for graph in manifest.graphs.values()} | manifest.files
    for name, sha256 in expected.items():
        if sha256_of(folder / name) != sha256:
            raise ValueError(f"{folder / name} has not the content that its manifest tells")
    return manifest


def _refuse_unfinished(recipe: Recipe, run: Path, unfinished: bool) -> None:
    about = read_run(run)
    if not about["finished"] and not unfinished:
        done = int(about["last"]["epoch"]) + 1
        raise ValueError(
            f"{run} has done {done} of {recipe.training.epochs} epochs: go on with "
            "`python -m export train`, or give --unfinished to publish it as it is"
        )


def _is_newer(path: Path, source: Path) -> bool:
    return path.is_file() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns


def _write_arrays(recipe: Recipe, run: Path, folder: Path, model: GenerativeModel) -> None:
    bundle = run / BUNDLE_FOLDER
    for path in (*bundle.glob("*.onnx"), bundle / GOLDEN_FILE):
        shutil.copyfile(path, folder / path.name)
    generate = OnnxGraph(folder / "generate.onnx", recipe.max_batch_rows)
    (folder / PREVIEW_FILE).write_bytes(draw_preview(generate, model))
    (folder / FILM_FILE).write_bytes(draw_film(run, recipe.film))


def _training(recipe: Recipe, about: dict[str, Any], source: Source) -> Training:
    fields = recipe.model_dump(mode="json")
    # Of a user's own data only the name is told, not where it lies on their machine.
    fields["data"]["source"] = source.name
    return Training(
        data=source,
        recipe=fields,
        seed=recipe.training.seed,
        seconds=about["seconds"],
        machine=about["machine"],
        revision=about["revision"],
        versions=about["versions"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _place(manifest: Manifest, run: Path, staging: Path, store: Path) -> Path:
    """Give the bundle the next free version and rename it into place."""
    (store / manifest.name).mkdir(exist_ok=True)
    version = _next_version(store, manifest.name)
    while True:
        numbered = manifest.model_copy(update={"version": version})
        _write_card_and_manifest(numbered, run, staging)
        target = store / manifest.name / str(version)
        try:
            return staging.rename(target)
        except OSError:
            if not target.exists():
                raise
        version += 1  # another publish was faster


def _next_version(store: Path, name: str) -> int:
    taken = [version for other, version, _ in version_folders(store) if other == name]
    return max(taken, default=0) + 1


def _write_card_and_manifest(manifest: Manifest, run: Path, folder: Path) -> None:
    graphs = {role: OnnxGraph(folder / graph.file) for role, graph in manifest.graphs.items()}
    files = [name for name in _FILES if (folder / name).is_file()]
    hashes = {name: sha256_of(folder / name) for name in files}
    pictured = manifest.model_copy(update={"files": hashes})
    card = render_card(pictured, graphs, read_background(manifest.family, run))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    hashes[CARD_FILE] = sha256_of(folder / CARD_FILE)
    write_manifest(folder, manifest.model_copy(update={"files": hashes}))
    verify(folder)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if num_bytes > MAX_BUNDLE_BYTES:
        raise ValueError(
            f"the bundle of {manifest.name} has {num_bytes:,} bytes, more than the "
            f"{MAX_BUNDLE_BYTES:,} that fit a repository: make the model smaller"
        )
