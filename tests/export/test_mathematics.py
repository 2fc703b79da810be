"""What must hold for every exact density, checked by enumeration through ONNX Runtime."""

from collections.abc import Callable
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2  # type: ignore[import-untyped]

from export.convert import check_graph, convert, realigned
from export.data import load_split
from export.graph import Graph, Tensors
from export.model import family_names
from export.recipe import Recipe
from export.train import load_model, train

SIZE = 3
DIMS = SIZE * SIZE
NUM_SAMPLES = 200_000
# Fixed seeds: a test that passes once passes always, so the level only guards against bad luck.
LEVEL = 1e-4

# How many pixels before it a conditional sees; families that are not named here see all.
RECEPTIVE_FIELDS: dict[str, Callable[[dict[str, Any]], int]] = {
    "bernoulli": lambda model: 0,
    "markov": lambda model: model.get("order", 1),
}
# Hyperparameters of families whose defaults are large for nine pixels.
SMALL_MODELS: dict[str, dict[str, Any]] = {
    "diagonal_bilstm": {"num_layers": 1, "hidden": 6, "head": 12},
    "row_lstm": {"num_layers": 2, "hidden": 6, "head": 12},
}
MORE_MODELS: list[tuple[str, dict[str, Any]]] = [("markov", {"order": 3})]


def exact_families() -> list[str]:
    modules = {name: import_module(f"export.families.{name}") for name in family_names()}
    return [name for name, module in modules.items() if module.Model.density == "exact"]


class Case(NamedTuple):
    recipe: Recipe
    run: Path
    generate: Graph
    log_prob: Graph
    receptive_field: int


def receptive_field(family: str, model: dict[str, Any]) -> int:
    return RECEPTIVE_FIELDS[family](model) if family in RECEPTIVE_FIELDS else DIMS


CASES: list[tuple[str, dict[str, Any]]] = [
    (family, SMALL_MODELS.get(family, {})) for family in exact_families()
] + MORE_MODELS


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_recipe: Any
) -> Case:
    """A model of 3×3 binary pixels, trained as any other on data full of dependence."""
    family, model = request.param
    folder = tmp_path_factory.mktemp(family)
    np.savez(folder / "data.npz", train_images=dependent_images(600))
    recipe = make_recipe(
        family,
        model=model,
        data={"source": str(folder / "data.npz"), "binarization": "threshold"},
        training={"epochs": 3, "learning_rate": 3e-2},
    )
    train(recipe, folder)
    bundle = convert(recipe, folder)
    generate, log_prob = (Graph(bundle / f"{role}.onnx", 4096) for role in ("generate", "log_prob"))
    return Case(recipe, folder, generate, log_prob, receptive_field(family, model))


def dependent_images(num_images: int) -> NDArray[np.uint8]:
    """Draw images by a logistic chain with strong random weights, (N, 3, 3), 0 and 255."""
    rng = np.random.default_rng(1)
    weights, biases = rng.normal(0, 1.5, (DIMS, DIMS)), rng.normal(0, 0.7, DIMS)
    values = np.zeros((num_images, DIMS))
    for dim in range(DIMS):
        logits = biases[dim] + (values[:, :dim] - 0.5) @ weights[dim, :dim]
        values[:, dim] = rng.random(num_images) < 1 / (1 + np.exp(-logits))
    return (255 * values).astype(np.uint8).reshape(-1, SIZE, SIZE)


def all_images() -> NDArray[np.float32]:
    bits = np.array(list(product([0, 1], repeat=DIMS)), dtype=np.float32)
    return bits.reshape(-1, 1, SIZE, SIZE)


def codes(images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number images as `all_images` orders them."""
    powers = 2 ** np.arange(DIMS)[::-1]
    numbers: NDArray[np.int64] = images.reshape(len(images), DIMS).astype(np.int64) @ powers
    return numbers


def score(case: Case, images: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return log_prob (N,) and conditionals (N, D)."""
    outputs = case.log_prob({"image": images})
    return outputs["log_prob"], outputs["conditional_log_prob"].reshape(len(images), DIMS)


def sampler_inputs(num_images: int, seed: int = 0, temperature: float = 1.0) -> Tensors:
    rng = np.random.default_rng(seed)
    shape = (num_images, 1, SIZE, SIZE)
    return {
        "noise": rng.uniform(1e-7, 1 - 1e-7, shape).astype(np.float32),
        "temperature": np.full(num_images, temperature, dtype=np.float32),
        "known": np.zeros(shape, dtype=np.float32),
        "known_mask": np.zeros(shape, dtype=np.float32),
    }


def chi_square_p_value(counts: NDArray[Any], probs: NDArray[Any]) -> float:
    """Compare counts with probabilities; cells expected fewer than ten times become one."""
    expected = probs * counts.sum()
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    return float(chi2.sf(statistic, kept.sum() - 1))


def test_the_probabilities_of_all_images_sum_to_one(case: Case) -> None:
    log_prob, _ = score(case, all_images())
    # 512 exponentials, each of a single-precision sum of nine terms.
    assert np.exp(log_prob.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


def test_the_model_learnt_something(case: Case) -> None:
    """Near the uniform distribution the other tests would say little."""
    log_prob, _ = score(case, all_images())
    probs = np.exp(log_prob.astype(np.float64))
    assert -(probs * log_prob).sum() < DIMS * np.log(2) - 0.05


def test_samples_follow_log_prob(case: Case) -> None:
    samples = case.generate(sampler_inputs(NUM_SAMPLES))["image"]
    counts = np.bincount(codes(samples), minlength=2**DIMS)
    log_prob, _ = score(case, all_images())
    probs = np.exp(log_prob.astype(np.float64))
    assert chi_square_p_value(counts, probs / probs.sum()) > LEVEL


def test_log_prob_is_the_sum_of_the_conditionals(case: Case) -> None:
    log_prob, conditionals = score(case, all_images())
    # Nine single-precision terms.
    np.testing.assert_allclose(log_prob, conditionals.sum(axis=1), atol=1e-5)


@pytest.mark.parametrize("dim", range(DIMS))
def test_nan_in_a_pixel_reaches_no_earlier_conditional(case: Case, dim: int) -> None:
    images = all_images()
    poisoned = images.copy()
    poisoned.reshape(-1, DIMS)[:, dim] = np.nan
    before, after = score(case, images)[1], score(case, poisoned)[1]
    assert before[:, :dim].tobytes() == after[:, :dim].tobytes()


@pytest.mark.parametrize("dim", range(DIMS))
def test_a_conditional_is_normalized_while_all_later_pixels_are_nan(case: Case, dim: int) -> None:
    images = all_images()
    images.reshape(-1, DIMS)[:, dim + 1 :] = np.nan
    total = np.zeros(len(images))
    for value in (0, 1):
        images.reshape(-1, DIMS)[:, dim] = value
        total += np.exp(score(case, images)[1][:, dim].astype(np.float64))
    # Two single-precision exponentials.
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("dim", range(DIMS))
def test_the_receptive_field_is_the_theoretical_one(case: Case, dim: int) -> None:
    images = all_images()
    flipped = images.copy()
    flipped.reshape(-1, DIMS)[:, dim] = 1 - flipped.reshape(-1, DIMS)[:, dim]
    changed = (score(case, images)[1] != score(case, flipped)[1]).any(axis=0)
    expected = [dim < later <= dim + case.receptive_field for later in range(DIMS)]
    assert changed[:dim].tolist() == expected[:dim]
    assert changed[dim + 1 :].tolist() == expected[dim + 1 :]


def test_torch_and_onnx_agree(case: Case) -> None:
    model = load_model(case.recipe, case.run, load_split(case.recipe.data)).requires_grad_(False)
    inputs = sampler_inputs(8)
    images = all_images()[::64].copy()
    for role, module in model.graphs().items():
        rows = inputs if role == "generate" else {"image": images}
        path = case.run / "bundle" / f"{role}.onnx"
        check_graph(path, module, rows, exact=role == "generate")  # at 1, 2, 7 and 8 rows


@pytest.mark.parametrize("role", ["generate", "log_prob"])
def test_a_row_has_the_same_bits_in_every_batch_and_slot(case: Case, role: str) -> None:
    graph = getattr(case, role)
    num_rows = 33
    inputs = sampler_inputs(num_rows) if role == "generate" else {"image": all_images()[::15][:33]}
    together = graph(inputs)
    for batch in (1, 2, 3, 5, 7, 8, 16, 17, 31):
        for start in range(0, num_rows - batch + 1, 4):
            rows = {name: realigned(v[start : start + batch]) for name, v in inputs.items()}
            for name, values in graph(rows).items():
                assert values.tobytes() == together[name][start : start + batch].tobytes()


def test_a_low_temperature_gives_the_mode_of_each_conditional(case: Case) -> None:
    greedy = np.zeros((1, 1, SIZE, SIZE), dtype=np.float32)
    for dim in range(DIMS):
        both = np.repeat(greedy, 2, axis=0)
        both.reshape(2, DIMS)[1, dim] = 1
        greedy = both[[score(case, both)[1][:, dim].argmax()]]
    samples = case.generate(sampler_inputs(100, temperature=1e-6))["image"]
    assert (samples == greedy).all()


def test_temperature_divides_the_logit(case: Case) -> None:
    two = np.zeros((2, 1, SIZE, SIZE), dtype=np.float32)
    two.reshape(2, DIMS)[1, 0] = 1
    conditionals = score(case, two)[1][:, 0]
    prob = 1 / (1 + np.exp(-(conditionals[1] - conditionals[0]) / 2))
    samples = case.generate(sampler_inputs(NUM_SAMPLES, temperature=2.0))["image"]
    ones = samples.reshape(-1, DIMS)[:, 0].sum()
    counts = np.array([NUM_SAMPLES - ones, ones])
    assert chi_square_p_value(counts, np.array([1 - prob, prob])) > LEVEL


def test_completions_of_a_known_prefix_follow_the_conditional(case: Case) -> None:
    num_known = 4
    prefix = np.array([1, 0, 1, 1], dtype=np.float32)
    inputs = sampler_inputs(NUM_SAMPLES, seed=2)
    inputs["known"].reshape(-1, DIMS)[:, :num_known] = prefix
    inputs["known_mask"].reshape(-1, DIMS)[:, :num_known] = 1
    samples = case.generate(inputs)["image"]
    assert (samples.reshape(-1, DIMS)[:, :num_known] == prefix).all()

    images = all_images()
    fitting = (images.reshape(-1, DIMS)[:, :num_known] == prefix).all(axis=1)
    log_prob, _ = score(case, images)
    probs = np.where(fitting, np.exp(log_prob.astype(np.float64)), 0)
    counts = np.bincount(codes(samples), minlength=2**DIMS)
    assert chi_square_p_value(counts, probs / probs.sum()) > LEVEL


def test_known_pixels_stay_wherever_they_are(case: Case) -> None:
    inputs = sampler_inputs(500, seed=3)
    rng = np.random.default_rng(4)
    inputs["known"] = rng.integers(0, 2, inputs["known"].shape).astype(np.float32)
    inputs["known_mask"] = rng.integers(0, 2, inputs["known"].shape).astype(np.float32)
    samples = case.generate(inputs)["image"]
    known = inputs["known_mask"] == 1
    assert (samples[known] == inputs["known"][known]).all()
