import csv
import json
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.data import load_split
from export.recipe import Recipe
from export.train import (
    Averaging,
    EpochSampler,
    ImageDataset,
    film_moments,
    generator_inputs,
    load_model,
    new_model,
    read_run,
    revision,
    train,
)

EPOCHS = 3
# Everything that a resume could lose: moving average, schedule, momentum, random numbers.
TRAININGS: dict[str, dict[str, Any]] = {
    "nade": {"ema_decay": 0.9, "schedule": "cosine", "warmup_steps": 3, "gradient_clip": 5.0},
    "dcgan": {"ema_decay": 0.9, "betas": [0.5, 0.999]},
    "vae": {"ema_decay": 0.9, "schedule": "cosine"},
    "cgan": {"ema_decay": 0.9, "betas": [0.5, 0.999]},
    "gan": {"ema_decay": 0.9, "betas": [0.5, 0.99]},
    "markov": {},
}

# Kills itself in the second batch of the second epoch, as an operator or a power cut would.
KILLED_TRAINING = """
import os, signal, sys
from importlib import import_module
from pathlib import Path
import torch
from export.recipe import Recipe
from export.train import train

torch.set_num_threads(1)
recipe = Recipe.model_validate_json(sys.argv[1])
model = import_module(f"export.families.{recipe.family}").Model
step = model.training_step

def dying_step(self, batch, batch_idx):
    if self.trainer.current_epoch == 1 and batch_idx == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)

model.training_step = dying_step
train(recipe, Path(sys.argv[2]))
"""


@pytest.fixture(params=["nade", "dcgan", "cgan", "gan", "vae"])
def recipe(request: pytest.FixtureRequest, make_recipe: Any) -> Recipe:
    training = {"epochs": EPOCHS, **TRAININGS[request.param]}
    recipe: Recipe = make_recipe(request.param, training=training)
    return recipe


def metrics_of(run: Path) -> list[dict[str, str]]:
    """Read what was logged, without the clock."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(recipe: Recipe, run: Path, other: Path) -> None:
    assert metrics_of(run) == metrics_of(other)
    split = load_split(recipe.data)
    weights = load_model(recipe, run, split).state_dict()
    for name, value in load_model(recipe, other, split).state_dict().items():
        assert torch.equal(weights[name], value), name
    with np.load(run / "film.npz") as film, np.load(other / "film.npz") as other_film:
        np.testing.assert_array_equal(film["frames"], other_film["frames"])
        np.testing.assert_array_equal(film["num_batches"], other_film["num_batches"])


def test_a_stopped_run_that_goes_on_equals_a_straight_one(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path / "straight")
    train(recipe, tmp_path / "stopped", stop_after=1)
    assert not read_run(tmp_path / "stopped")["finished"]
    train(recipe, tmp_path / "stopped")
    assert read_run(tmp_path / "stopped")["finished"]
    assert_same_run(recipe, tmp_path / "straight", tmp_path / "stopped")


def test_a_run_killed_within_an_epoch_goes_on_to_the_same_end(
    recipe: Recipe, tmp_path: Path
) -> None:
    train(recipe, tmp_path / "straight")
    command = [sys.executable, "-c", KILLED_TRAINING, recipe.model_dump_json()]
    killed = subprocess.run(
        [*command, str(tmp_path / "killed")], cwd=Path.cwd(), capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "killed" / "run.json").exists()
    train(recipe, tmp_path / "killed")
    assert_same_run(recipe, tmp_path / "straight", tmp_path / "killed")


def test_counting_families_resume_too(make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe("markov", training={"epochs": 2})
    train(recipe, tmp_path / "straight")
    train(recipe, tmp_path / "stopped", stop_after=1)
    train(recipe, tmp_path / "stopped")
    assert_same_run(recipe, tmp_path / "straight", tmp_path / "stopped")


def with_pretraining(recipe: Recipe, **training: Any) -> Recipe:
    """Make a recipe whose pretraining is another one, and whose training differs from that."""
    fields = recipe.model_dump() | {"pretraining": {"training": recipe.training}}
    fields["training"] |= {"seed": 1, **training}
    return Recipe.model_validate(fields)


def test_training_starts_where_a_pretraining_ends(make_recipe: Any, tmp_path: Path) -> None:
    earlier = make_recipe("nade", training={"epochs": 2, "ema_decay": 0.9})
    recipe = with_pretraining(earlier, epochs=1, learning_rate=1e-9)
    train(earlier, tmp_path / "earlier")
    assert train(recipe, tmp_path / "run")
    assert_same_run(earlier, tmp_path / "earlier", tmp_path / "run" / "pretraining")
    split = load_split(recipe.data)
    before = load_model(earlier, tmp_path / "earlier", split).state_dict()
    for name, value in load_model(recipe, tmp_path / "run", split).state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)

    about, about_before = read_run(tmp_path / "run"), read_run(tmp_path / "earlier")
    assert about["initial_nll"] == about_before["initial_nll"]  # the untrained model's
    pretrained = read_run(tmp_path / "run" / "pretraining")["seconds"]
    assert about["seconds"] == pytest.approx(pretrained + about["last"]["seconds"], abs=0.1)
    with (
        np.load(tmp_path / "run" / "film.npz") as film,
        np.load(tmp_path / "earlier" / "film.npz") as film_before,
    ):
        np.testing.assert_array_equal(film["frames"][:-1], film_before["frames"])
        moments = film_before["num_batches"].tolist()
        assert film["num_batches"].tolist() == [*moments, moments[-1] * 3 // 2]


def test_a_run_stopped_in_its_pretraining_goes_on_to_the_same_end(
    make_recipe: Any, tmp_path: Path
) -> None:
    recipe = with_pretraining(make_recipe("nade", training={"epochs": 2}), epochs=2)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(recipe, straight)
    for stop_after in (1, 2, 3):
        assert not train(recipe, stopped, stop_after=stop_after)
        assert (stopped / "run.json").exists() == (stop_after > 2)
    assert train(recipe, stopped)
    assert_same_run(recipe, straight, stopped)
    assert train(recipe, stopped, stop_after=1)  # it has come to its end already
    assert not train(recipe, stopped, restart=True, stop_after=1)
    assert not read_run(stopped / "pretraining")["finished"]
    assert train(recipe, stopped)
    assert_same_run(recipe, straight, stopped)


def test_training_a_finished_run_again_changes_nothing(make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe("nade")
    train(recipe, tmp_path / "once")
    train(recipe, tmp_path / "twice")
    train(recipe, tmp_path / "twice")
    assert_same_run(recipe, tmp_path / "once", tmp_path / "twice")


def test_the_likelihood_rises(make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe("nade", training={"epochs": 5})
    train(recipe, tmp_path)
    about = read_run(tmp_path)
    assert about["last"]["train_nll"] < about["initial_nll"]


def test_the_figures_of_an_epoch_are_means_over_its_batches(
    make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe("nade", training={"epochs": 1, "batch_size": 90, "learning_rate": 1e-12})
    split = load_split(recipe.data)
    assert len(split.train) == 3 * 90
    train(recipe, tmp_path)
    model = new_model(recipe, split)
    images = torch.from_numpy(split.train.values)
    with torch.no_grad():
        expected = -model.log_prob(images).mean().item()
    last = read_run(tmp_path)["last"]
    assert last["train_nll"] == pytest.approx(expected, rel=1e-5)
    assert set(last) == {"epoch", "seconds", "train_nll"}


def test_the_film_begins_with_noise_and_ends_with_the_shipped_model(
    recipe: Recipe, tmp_path: Path
) -> None:
    train(recipe, tmp_path)
    num_batches = EPOCHS * (270 // 32)
    with np.load(tmp_path / "film.npz") as film:
        assert film["num_batches"].tolist() == [0, *sorted(film_moments(num_batches, 3))]
        assert film["num_batches"][-1] == num_batches
        assert film["frames"].shape == (len(film["num_batches"]), 6, 8, 8)
        assert film["frames"].dtype == np.uint8
        assert (film["frames"][0] != film["frames"][-1]).any()


def test_moments_of_the_film_are_even_on_a_logarithmic_scale() -> None:
    assert sorted(film_moments(10_000, 5)) == [1, 10, 100, 1000, 10_000]


def test_a_run_older_than_a_field_of_recipes_goes_on(make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe("nade")
    train(recipe, tmp_path, stop_after=1)
    path = tmp_path / "recipe.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    del fields["data"]["pool"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    train(recipe, tmp_path)
    assert json.loads(path.read_text(encoding="utf-8")) == recipe.model_dump(mode="json")


def test_another_recipe_in_the_same_folder_is_refused(make_recipe: Any, tmp_path: Path) -> None:
    train(make_recipe("nade"), tmp_path)
    other = make_recipe("nade", training={"epochs": 1})
    with pytest.raises(ValueError, match="run of another recipe: give --restart"):
        train(other, tmp_path)
    train(other, tmp_path, restart=True)
    assert len(metrics_of(tmp_path)) == 1


def test_a_run_without_a_checkpoint_says_what_to_do(make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe("nade")
    with pytest.raises(FileNotFoundError, match="run `python -m export train tiny-nade`"):
        load_model(recipe, tmp_path, load_split(recipe.data))


def test_each_epoch_sees_every_image_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(20, seed=3)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders.append([index for _, index in sampler])
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0] != orders[1]
    sampler.set_epoch(0)
    assert [index for _, index in sampler] == orders[0]


def test_a_run_tells_where_it_took_place(make_recipe: Any, tmp_path: Path) -> None:
    train(make_recipe("bernoulli", training={"epochs": 1}), tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["versions"]["torch"] == torch.__version__
    assert about["revision"] == revision()
    assert about["seconds"] >= 0


def test_the_average_of_a_short_training_is_not_the_untrained_model() -> None:
    """With the final decay from the start, 91 % of the first weights would be left after this."""
    average = Averaging(decay=0.999)._kwargs["avg_fn"]
    mean = torch.zeros(())
    for num_averaged in range(1, 91):
        mean = average(mean, torch.ones(()), torch.tensor(num_averaged))
    assert mean > 0.99
    assert float(average(torch.zeros(()), torch.ones(()), 10**6)) == pytest.approx(0.001)


def test_labels_reach_the_training_beside_their_images(make_recipe: Any) -> None:
    split = load_split(make_recipe("cgan").data)
    images, labels = ImageDataset(split.train).__getitems__([(0, 5), (1, 250), (0, 17)])
    np.testing.assert_array_equal(labels, split.train.labels[[5, 250, 17]])
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(images, split.train.values[[5, 250, 17]])


def test_the_film_of_a_conditional_model_shows_the_classes_in_turn(make_recipe: Any) -> None:
    recipe = make_recipe("cgan")
    inputs = generator_inputs(new_model(recipe, load_split(recipe.data)), 7)
    assert inputs["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert "label" not in generator_inputs(
        new_model(make_recipe("gan"), load_split(recipe.data)), 7
    )


def test_the_orders_of_eonade_survive_the_average_of_weights(
    make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(
        "eonade", model={"hidden": [6], "num_orders": 2}, training={"epochs": 2, "ema_decay": 0.9}
    )
    train(recipe, tmp_path)
    split = load_split(recipe.data)
    trained, untrained = load_model(recipe, tmp_path, split), new_model(recipe, split)
    assert trained.orders.equal(untrained.orders)
    assert sorted(trained.orders[0].tolist()) == list(range(64))
    assert not trained.W.equal(untrained.W)


FAULTS = """
import resource
import sys
import torch
from export.train import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
before = 0
for step in range(12):
    for size in (8, 40, 24):
        torch.zeros(size * 2**18)  # MiB
    if step == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_tensors_of_one_step_serve_the_next() -> None:
    faults = {}
    for mode in ("kept", "returned"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True
        )
        faults[mode] = int(done.stdout)
    assert faults["kept"] < 0.1 * faults["returned"]
