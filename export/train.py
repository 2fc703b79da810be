"""Training by PyTorch Lightning: reproducible, resumable at every epoch, with a film of samples."""

import csv
import inspect
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, WeightAveraging
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from export.data import FloatArray, Images, Split, dequantized, load_split
from export.model import Batch, GenerativeModel, build_model
from export.recipe import FilmConfig, Recipe
from service.images import to_pixels
from service.manifest import Image
from service.memory import M_MMAP_MAX, M_TRIM_THRESHOLD, tell_malloc
from service.noise import draw

CHECKPOINT_FILE = "last.ckpt"
RECIPE_FILE = "recipe.json"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.csv"
FILM_ARRAYS_FILE = "film.npz"
PRETRAINING_FOLDER = "pretraining"

_REPORTED_PACKAGES = ("torch", "lightning", "onnx", "onnxruntime", "numpy")

Position = tuple[int, int]


class EpochSampler(Sampler[Position]):
    """Shuffle anew in each epoch, as a function of (seed, epoch) alone."""

    def __init__(self, num_images: int, seed: int) -> None:
        self._num_images = num_images
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to iterate over; Lightning calls this, after a resume too."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_images

    def __iter__(self) -> Iterator[Position]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._num_images)
        return ((self._epoch, int(index)) for index in order)


class ImageDataset(Dataset[Batch]):
    """Images in memory, handed out as whole batches as graphs take them.

    Args:
        images: What to hand out.
        draw_seed: Where given, each epoch draws 0 or 1 with the grey level as probability, or
            noise within the grey levels.
        dequantize: Whether to draw noise within the grey levels.
    """

    def __init__(
        self, images: Images, draw_seed: int | None = None, *, dequantize: bool = False
    ) -> None:
        self._images = images
        self._labels = torch.from_numpy(images.labels)
        self._draw_seed = draw_seed
        self._dequantize = dequantize

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, positions: Sequence[Position]) -> Batch:
        epochs, rows = np.array(positions).T
        return torch.from_numpy(self._values(epochs, rows)), self._labels[torch.from_numpy(rows)]

    def _values(self, epochs: NDArray[np.int64], rows: NDArray[np.int64]) -> FloatArray:
        pixels, indices = self._images.pixels[rows], rows.astype(np.uint64)
        if self._draw_seed is not None:
            seeds = (epochs + (self._draw_seed << 32)).astype(np.uint64)
            if self._dequantize:
                return dequantized(pixels, seeds, indices)
            uniforms = draw("uniform", seeds, indices, pixels.shape[1:])
            return (uniforms < pixels / np.float32(255)).astype(np.float32)
        fixed = self._images.dequantization_seed
        if fixed is not None:
            return dequantized(pixels, np.full_like(indices, fixed), indices)
        return (pixels / np.float32(255)).astype(np.float32, copy=False)


class Averaging(WeightAveraging):
    """Exponential moving average of the weights, which others can look through.

    The decay starts low and rises to its final value, so that a short training is not an average
    with the untrained weights.

    Args:
        decay: Final decay per step.
    """

    def __init__(self, decay: float) -> None:
        def average(mean: Tensor, newest: Tensor, num_averaged: Tensor | int) -> Tensor:
            if not newest.is_floating_point():
                return newest  # a buffer of whole numbers, such as an order of the pixels
            share = min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged)))
            return share * mean + (1 - share) * newest

        super().__init__(avg_fn=average)

    @contextmanager
    def averaged(self, model: lightning.LightningModule) -> Iterator[None]:
        """Give the model its averaged weights for a while."""
        if self._average_model is None:
            yield
            return
        self._swap_models(model)
        try:
            yield
        finally:
            self._swap_models(model)


class Reseeding(Callback):
    """Seed torch at the start of each epoch, so that a resumed epoch draws what it would have."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Seed from (recipe's seed, epoch)."""
        seed = np.random.SeedSequence([pl_module.training_config.seed, trainer.current_epoch])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))


class Diary(Callback):
    """Seconds and metrics of every epoch, kept in the checkpoint."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.epochs: list[dict[str, float]] = []
        self._began = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"seconds": self.seconds, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a run again."""
        self.seconds, self.epochs = state_dict["seconds"], list(state_dict["epochs"])

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write down the epoch, before the checkpoint is saved."""
        self.seconds += time.monotonic() - self._began
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.endswith(("_step", "_epoch"))  # Lightning's other names for means
        }
        self.epochs.append({"epoch": trainer.current_epoch, "seconds": self.seconds, **metrics})


class Saving(Checkpoint):
    """Saves after each epoch, when all other callbacks are done with it.

    Lightning's own class saves only where an optimizer took a step, and counting takes none; and
    once training has ended, the weights it went on from are gone, replaced by their average.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Replace the checkpoint."""
        trainer.save_checkpoint(self._path)


class Film(Callback):
    """The same noise drawn at points of the training that are even on a logarithmic scale."""

    def __init__(self, config: FilmConfig, averaging: Averaging | None) -> None:
        self._config = config
        self._averaging = averaging
        self._moments: set[int] = set()
        self.frames: list[NDArray[np.uint8]] = []
        self.num_batches: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"frames": self.frames, "num_batches": self.num_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a run again."""
        self.frames = list(state_dict["frames"])
        self.num_batches = list(state_dict["num_batches"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Choose the moments, and draw the untrained model."""
        total = int(trainer.num_training_batches) * pl_module.training_config.epochs
        self._moments = film_moments(total, self._config.frames)
        if not self.frames:
            self._draw(pl_module, 0)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw where a moment has come."""
        done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        if done in self._moments:
            self._draw(pl_module, done)

    def _draw(self, model: GenerativeModel, num_batches: int) -> None:
        num_images = self._config.rows * self._config.columns
        averaged = self._averaging.averaged(model) if self._averaging else nullcontext()
        with averaged:
            self.frames.append(draw_images(model, num_images))
        self.num_batches.append(num_batches)


def film_moments(num_batches: int, num_frames: int) -> set[int]:
    """Return after how many batches to draw, even on a logarithmic scale, the last included."""
    return {round(num_batches ** (k / (num_frames - 1))) for k in range(num_frames)} | {num_batches}


def draw_images(model: GenerativeModel, num_images: int) -> NDArray[np.uint8]:
    """Draw images of seed 0 with the current weights, in evaluation mode.

    Returns:
        Shape (N, H, W) or (N, H, W, C).
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        inputs = generator_inputs(model, num_images)
        image: Tensor = model.graphs()["generate"](*inputs.values())
    model.train(was_training)
    return to_pixels(image.cpu().numpy())


def generator_inputs(model: GenerativeModel, num_images: int) -> dict[str, Tensor]:
    """Return neutral inputs of the generate graph: seed 0, nothing known, classes in turn."""
    indices = np.arange(num_images, dtype=np.uint64)
    noise = draw(model.noise.prior, np.zeros_like(indices), indices, model.noise.shape)
    unknown = torch.zeros(num_images, *model.image.shape)
    neutral = {
        "noise": torch.from_numpy(noise),
        "label": torch.arange(num_images) % max(model.num_classes, 1),
        "temperature": torch.ones(num_images),
        "known": unknown,
        "known_mask": unknown,
    }
    names = inspect.signature(model.graphs()["generate"].forward).parameters
    return {name: neutral[name].to(model.device) for name in names}


def train(
    recipe: Recipe, run: Path, *, restart: bool = False, stop_after: int | None = None
) -> bool:
    """Train a recipe, or go on where an earlier call stopped.

    Args:
        recipe: What to train.
        run: Folder of checkpoints and measurements.
        restart: Forget what the folder holds.
        stop_after: Stop in good order after so many epochs in all, those of a pretraining
            included; a later call goes on.

    Returns:
        Whether training has come to its end.

    Raises:
        FileNotFoundError: The data is missing.
        ValueError: The folder holds a run of another recipe.
    """
    keep_freed_memory()
    run.mkdir(parents=True, exist_ok=True)
    _claim(run, recipe, restart)
    checkpoint, pretraining = run / CHECKPOINT_FILE, run / PRETRAINING_FOLDER
    before = recipe.before()
    if before:
        if not _is_finished(pretraining) and not train(before, pretraining, stop_after=stop_after):
            return False
        if stop_after is not None:
            stop_after -= before.training.epochs
            if stop_after <= 0:
                return _is_finished(run)
    split = load_split(recipe.data)
    model = new_model(recipe, split)
    if before:
        untrained_nll = read_run(pretraining)["initial_nll"]
        model.load_state_dict(load_model(before, pretraining, split).state_dict())
    else:
        untrained_nll = initial_nll(model, split)
    about = provenance() | {"initial_nll": untrained_nll}
    diary, film = _fit(recipe, model, split, checkpoint, stop_after)

    finished = len(diary.epochs) >= recipe.training.epochs
    about |= {"finished": finished, "seconds": diary.seconds, "last": diary.epochs[-1]}
    frames, num_batches = film.frames, film.num_batches
    if before:  # what came before belongs to the whole
        about["seconds"] += read_run(pretraining)["seconds"]
        with np.load(pretraining / FILM_ARRAYS_FILE) as arrays:
            earlier, moments = list(arrays["frames"]), arrays["num_batches"].tolist()
        frames = [*earlier, frames[-1]]
        num_batches = [*moments, moments[-1] + num_batches[-1]]
    _write_metrics(run, diary.epochs)
    np.savez_compressed(run / FILM_ARRAYS_FILE, frames=np.stack(frames), num_batches=num_batches)
    about["seconds"] = round(about["seconds"], 1)
    (run / RUN_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return finished


def _fit(
    recipe: Recipe,
    model: GenerativeModel,
    split: Split,
    checkpoint: Path,
    stop_after: int | None,
) -> tuple[Diary, Film]:
    """Train a model from the checkpoint on, where there is one; return what was written down."""
    averaging = Averaging(decay=recipe.training.ema_decay) if recipe.training.ema_decay else None
    diary, film = Diary(), Film(recipe.film, averaging)
    callbacks: list[Callback] = [Reseeding(), diary, film, Saving(checkpoint)]
    if averaging:
        callbacks.append(averaging)
    trainer = lightning.Trainer(
        max_epochs=min(stop_after or recipe.training.epochs, recipe.training.epochs),
        callbacks=callbacks,
        logger=False,
        precision=recipe.training.precision,
        gradient_clip_val=recipe.training.gradient_clip or None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=10,
    )
    resumed = checkpoint if checkpoint.is_file() else None
    trainer.fit(
        model,
        *_loaders(recipe, split),
        ckpt_path=resumed,
        weights_only=False,  # our own checkpoint: the film's frames are numpy arrays
    )
    return diary, film


def keep_freed_memory() -> None:
    """Let what is freed serve the next allocation, where there is a glibc to tell.

    Every step of a training allocates the same tensors. glibc takes large ones from the system and
    gives them back each time, and to be given a page costs more than to fill it: a step of an LSTM
    takes twice as long.
    """
    tell_malloc({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def initial_nll(model: GenerativeModel, split: Split, num_images: int = 1000) -> float | None:
    """Measure the mean negative log-likelihood of test images before the first step, in nats.

    The cheapest test there is: zero output biases give D·ln 2, biases at the logits of the mean
    pixel the independent model.
    """
    if model.density == "implicit":
        return None
    first = split.test[:num_images]
    batch = torch.from_numpy(first.values), torch.from_numpy(first.labels)
    with torch.no_grad():
        return float(-model.batch_log_prob(batch).mean())


def new_model(recipe: Recipe, split: Split) -> GenerativeModel:
    """Create a recipe's model with the initial weights that its seed and data give."""
    torch.manual_seed(recipe.training.seed)
    channels, height, width = split.train.pixels.shape[1:]
    image = Image(shape=(channels, height, width), values=recipe.data.values)
    model = build_model(recipe, image, len(split.classes))
    model.initialize(torch.from_numpy(split.train.pixels))
    return model


def load_model(recipe: Recipe, run: Path, split: Split) -> GenerativeModel:
    """Load the trained weights of a run, averaged where the recipe says so.

    Raises:
        FileNotFoundError: The run has no checkpoint.
    """
    path = run / CHECKPOINT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m export train {recipe.name}`")
    model = new_model(recipe, split)
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def read_run(run: Path) -> dict[str, Any]:
    """Read what is known of a run: seconds, versions, figures before and after training.

    Raises:
        FileNotFoundError: Training has not come to a stop of its own yet.
    """
    path = run / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: training was killed, or is still in its pretraining; go on with "
            "`python -m export train`"
        )
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _is_finished(run: Path) -> bool:
    return (run / RUN_FILE).is_file() and bool(read_run(run)["finished"])


def _claim(run: Path, recipe: Recipe, restart: bool) -> None:
    path = run / RECIPE_FILE
    text = recipe.model_dump_json(indent=2)
    # Read, not compared as text: a field that is newer than the run has its default there.
    if path.is_file() and not restart and Recipe.model_validate_json(path.read_bytes()) != recipe:
        raise ValueError(
            f"{run} holds a run of another recipe: give --restart to forget it, or --name for a "
            "run of its own"
        )
    if restart:
        for name in (CHECKPOINT_FILE, RUN_FILE, METRICS_FILE, FILM_ARRAYS_FILE):
            (run / name).unlink(missing_ok=True)
        shutil.rmtree(run / PRETRAINING_FOLDER, ignore_errors=True)
    path.write_text(text, encoding="utf-8")


def _loaders(recipe: Recipe, split: Split) -> tuple[DataLoader[Batch], DataLoader[Batch] | None]:
    training = recipe.training
    draws = split.train_pixels_are_grey or split.train_is_dequantized
    dataset = ImageDataset(
        split.train, training.seed if draws else None, dequantize=split.train_is_dequantized
    )
    if not len(dataset):
        raise ValueError(f"{recipe.data.source} has no training images left")
    batch_size = min(training.batch_size, len(dataset))
    train_loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), training.seed),
        collate_fn=_as_is,
        drop_last=True,
        # A loader draws a number when it starts, in a resumed run before the epoch is seeded and
        # in a straight one after: it must not come from the numbers that training draws.
        generator=torch.Generator(),
    )
    if not len(split.validation):
        return train_loader, None
    positions = [(0, index) for index in range(len(split.validation))]
    validation_loader = DataLoader(
        ImageDataset(split.validation),
        batch_size=min(500, len(positions)),
        sampler=positions,
        collate_fn=_as_is,
    )
    return train_loader, validation_loader


def _as_is(batch: Any) -> Any:
    # The data set hands out whole batches already.
    return batch


def _write_metrics(run: Path, epochs: list[dict[str, float]]) -> None:
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    with (run / METRICS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(epochs)


def provenance() -> dict[str, Any]:
    """Tell where a run takes place: machine, revision of this code, versions of the libraries."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "revision": revision(),
        "versions": {name: package_version(name) for name in _REPORTED_PACKAGES},
    }


def revision() -> str:
    """Return the revision of this code, `unknown` outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
