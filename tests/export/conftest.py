"""Tiny data, tiny recipes and the runs that several tests share."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# The service's environment has no torch; its tests run without these.
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]

if find_spec("torch"):
    import torch

    from export.convert import convert
    from export.evaluate import evaluate
    from export.recipe import Recipe
    from export.train import train

    torch.set_num_threads(1)

# What libraries say of their own code or of our deliberate choices, by message and nothing wider.
_FOREIGN_WARNINGS = (
    # torch deprecates parts that Lightning still uses.
    r"ignore:.*isinstance\(treespec, LeafSpec\).* is deprecated",
    # One process reads images from memory faster than several pass them on.
    "ignore:.*does not have many workers",
    # Implicit models and small runs have no validation part.
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    # A run goes on in the folder that holds its checkpoint.
    "ignore:Checkpoint directory .* exists and is not empty",
    # Tests train on the CPU, wherever they run.
    "ignore:GPU available but not used",
)

MODELS: dict[str, dict[str, Any]] = {
    "nade": {"hidden": 20},
    "dcgan": {"latent_dim": 4, "generator_channels": [8, 4], "discriminator_channels": [4, 8]},
}


def pytest_configure(config: pytest.Config) -> None:
    for line in _FOREIGN_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


def correlated_images(num_images: int, size: int) -> np.ndarray:
    """Draw grey images whose pixels depend on each other and on their place, (N, H, W) uint8."""
    rng = np.random.default_rng(0)
    brightness = rng.random((num_images, 1, 1))
    slope = np.linspace(0.5, 1.2, size * size).reshape(size, size)
    noise = rng.random((num_images, size, size))
    return (255 * np.clip(0.6 * brightness * slope + 0.4 * noise, 0, 1)).astype(np.uint8)


def tiny_recipe(source: Path, family: str, **changes: Any) -> "Recipe":
    """Describe a training of seconds; `changes` replace hyperparameters and training fields."""
    training = {"epochs": 2, "batch_size": 32, "learning_rate": 1e-2} | changes.pop("training", {})
    return Recipe.model_validate(
        {
            "name": f"tiny-{family.replace('_', '-')}",
            "family": family,
            "description": "A tiny model.",
            "data": {"source": str(source), "binarization": binarization_of(family)},
            "model": MODELS.get(family, {}),
            "training": training,
            "film": {"rows": 2, "columns": 3, "frames": 3},
            "max_batch_rows": 50,
        }
        | changes
    )


def binarization_of(family: str) -> str:
    return "none" if family == "dcgan" else "fixed"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 300 images of 8×8."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, train_images=correlated_images(300, 8))
    return path


@pytest.fixture(scope="session")
def make_recipe(data: Path) -> Callable[..., "Recipe"]:
    """Make a tiny recipe of a family."""
    return lambda family, **changes: tiny_recipe(data, family, **changes)


@pytest.fixture(scope="session", params=["nade", "dcgan"])
def finished_run(
    request: pytest.FixtureRequest,
    make_recipe: Callable[..., "Recipe"],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple["Recipe", Path]:
    """A trained, converted and evaluated run, with a density and without; not to be changed."""
    recipe = make_recipe(request.param)
    run = tmp_path_factory.mktemp("runs") / recipe.name
    train(recipe, run)
    convert(recipe, run)
    evaluate(recipe, run)
    return recipe, run
