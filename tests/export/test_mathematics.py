"""What must hold for every exact density, checked by enumeration through ONNX Runtime."""

import math
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

NUM_SAMPLES = 200_000
# Fixed seeds: a test that passes once passes always, so the level only guards against bad luck.
LEVEL = 1e-4

Array = NDArray[Any]
Place = tuple[Any, ...]


class Space(NamedTuple):
    """All images of a shape whose values have so many levels, few enough to be listed.

    Dims are numbered in the order of the chain rule: pixels in raster order, and within a pixel
    its channels.
    """

    shape: tuple[int, int, int]
    levels: int

    @property
    def num_dims(self) -> int:
        return math.prod(self.shape)

    def place(self, dim: int) -> Place:
        """Return the index of a dim in an array of (N, C, H, W)."""
        channels, _, width = self.shape
        pixel, channel = divmod(dim, channels)
        return (slice(None), channel, *divmod(pixel, width))

    def flat(self, images: Array) -> Array:
        """Put values into the order of the dims, (N, C, H, W) -> (N, D)."""
        return images.transpose(0, 2, 3, 1).reshape(len(images), self.num_dims)

    def images(self, values: Array) -> NDArray[np.float32]:
        """Undo `flat`; levels become numbers in [0, 1]."""
        channels, height, width = self.shape
        grid = values.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(grid / np.float64(self.levels - 1), dtype=np.float32)

    def all_images(self) -> NDArray[np.float32]:
        return self.images(np.array(list(product(range(self.levels), repeat=self.num_dims))))

    def codes(self, images: Array) -> NDArray[np.int64]:
        """Number images as `all_images` orders them."""
        powers = self.levels ** np.arange(self.num_dims)[::-1]
        values = np.rint(self.flat(images) * (self.levels - 1)).astype(np.int64)
        numbers: NDArray[np.int64] = values @ powers
        return numbers


BINARY = Space((1, 3, 3), 2)
GREY, COLOUR = Space((1, 2, 3), 4), Space((3, 1, 2), 4)

# How many pixels before it a conditional sees; families that are not named here see all.
RECEPTIVE_FIELDS: dict[str, Callable[[dict[str, Any]], int]] = {
    "bernoulli": lambda model: 0,
    "markov": lambda model: model.get("order", 1),
}
# Hyperparameters of families whose defaults are large for nine pixels.
SMALL_MODELS: dict[str, dict[str, Any]] = {
    "diagonal_bilstm": {"num_layers": 1, "hidden": 6, "head": 24},
    "eonade": {"hidden": [24, 16]},
    "row_lstm": {"num_layers": 2, "hidden": 6, "head": 24},
}
MORE_MODELS: list[tuple[str, dict[str, Any], Space]] = [
    ("markov", {"order": 3}, BINARY),
    ("eonade", {"hidden": [24], "num_orders": 3, "training_orders": "mixture"}, BINARY),
]


def exact_models() -> list[tuple[str, dict[str, Any], Space]]:
    """List all families whose images can be listed: binary ones, and a few levels if they can."""
    modules = {name: import_module(f"export.families.{name}") for name in family_names()}
    models = []
    for name, module in modules.items():
        if module.Model.density == "exact":
            small = SMALL_MODELS.get(name, {})
            if "binary" in module.Model.values:
                models.append((name, small, BINARY))
            if "levels" in module.Config.model_fields:
                models += [(name, small | {"levels": s.levels}, s) for s in (GREY, COLOUR)]
    return models


class Case(NamedTuple):
    recipe: Recipe
    run: Path
    generate: Graph
    log_prob: Graph
    space: Space
    receptive_field: int

    @property
    def has_conditionals(self) -> bool:
        """Whether there is one order of the pixels; a mixture of orders has none."""
        return "conditional_log_prob" in self.log_prob.outputs


CASES = exact_models() + MORE_MODELS


def name_of(case: tuple[str, dict[str, Any], Space]) -> str:
    family, model, space = case
    fields = [f"{key}={value}" for key, value in model.items()]
    return "-".join([family, *fields, "x".join(map(str, space.shape))])


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_recipe: Any
) -> Case:
    """A model of few pixels, trained as any other on data full of dependence."""
    family, model, space = request.param
    folder = tmp_path_factory.mktemp(family)
    np.savez(folder / "data.npz", train_images=dependent_images(600, space))
    binarization = "threshold" if space == BINARY else "none"
    recipe = make_recipe(
        family,
        model=model,
        data={"source": str(folder / "data.npz"), "binarization": binarization},
        training={"epochs": 3, "learning_rate": 3e-2},
    )
    train(recipe, folder)
    bundle = convert(recipe, folder)
    generate, log_prob = (Graph(bundle / f"{role}.onnx", 4096) for role in ("generate", "log_prob"))
    field = RECEPTIVE_FIELDS[family](model) if family in RECEPTIVE_FIELDS else space.num_dims
    return Case(recipe, folder, generate, log_prob, space, field)


@pytest.fixture
def ordered(case: Case) -> Case:
    """A model whose conditionals follow the raster."""
    if not case.has_conditionals:
        pytest.skip("a mixture of orders has no conditionals along one of them")
    return case


def dependent_images(num_images: int, space: Space) -> NDArray[np.uint8]:
    """Draw images by a logistic chain with strong random weights, (N, H, W, C), 0 to 255."""
    rng = np.random.default_rng(1)
    num_dims, levels = space.num_dims, space.levels
    weights = rng.normal(0, 1.5, (num_dims, num_dims, levels))
    biases = rng.normal(0, 0.7, (num_dims, levels))
    values = np.zeros((num_images, num_dims), dtype=np.int64)
    for dim in range(num_dims):
        before = values[:, :dim] / (levels - 1) - 0.5
        scores = biases[dim] + before @ weights[dim, :dim]
        values[:, dim] = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    images = np.rint(255 * space.images(values)).astype(np.uint8)
    return images.transpose(0, 2, 3, 1)


def score(case: Case, images: NDArray[np.float32]) -> Array:
    """Return log_prob, (N,)."""
    return case.log_prob({"image": images})["log_prob"]


def conditionals_of(case: Case, images: NDArray[np.float32]) -> Array:
    """Return the conditionals, (N, D)."""
    return case.space.flat(case.log_prob({"image": images})["conditional_log_prob"])


def distribution(case: Case) -> Array:
    """Return the probability of each image, in double precision, scaled to a sum of 1."""
    probs = np.exp(score(case, case.space.all_images()).astype(np.float64))
    return probs / probs.sum()


def sampler_inputs(case: Case, num_images: int, seed: int = 0, temperature: float = 1.0) -> Tensors:
    rng = np.random.default_rng(seed)
    noise_shape = (num_images, *case.generate.inputs["noise"][1:])
    shape = (num_images, *case.space.shape)
    inputs = {
        "noise": rng.uniform(1e-7, 1 - 1e-7, noise_shape).astype(np.float32),
        "temperature": np.full(num_images, temperature, dtype=np.float32),
        "known": np.zeros(shape, dtype=np.float32),
        "known_mask": np.zeros(shape, dtype=np.float32),
    }
    return {name: inputs[name] for name in case.generate.inputs}


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
    log_prob = score(case, case.space.all_images())
    # Up to 4,096 exponentials, each of a single-precision sum of at most nine terms.
    assert np.exp(log_prob.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


def test_the_model_learnt_something(case: Case) -> None:
    """Near the uniform distribution the other tests would say little."""
    probs = distribution(case)
    uniform = case.space.num_dims * np.log(case.space.levels)
    assert -(probs * np.log(probs)).sum() < uniform - 0.05


def test_samples_follow_log_prob(case: Case) -> None:
    samples = case.generate(sampler_inputs(case, NUM_SAMPLES))["image"]
    probs = distribution(case)
    counts = np.bincount(case.space.codes(samples), minlength=len(probs))
    assert chi_square_p_value(counts, probs) > LEVEL


def test_log_prob_is_the_sum_of_the_conditionals(ordered: Case) -> None:
    images = ordered.space.all_images()
    log_prob, conditionals = score(ordered, images), conditionals_of(ordered, images)
    # At most nine single-precision terms.
    np.testing.assert_allclose(log_prob, conditionals.sum(axis=1), atol=1e-5)


def poison(space: Space, images: NDArray[np.float32], dim: int, of: int) -> None:
    """Spoil a value that the conditional of dim `of` must not see.

    Within a pixel a mask is a factor of 0, and 0 · NaN is NaN: there, another level must do.
    """
    place, channels = space.place(dim), space.shape[0]
    images[place] = 1 - images[place] if dim // channels == of // channels else np.nan


def test_what_spoils_a_value_reaches_no_earlier_conditional(ordered: Case) -> None:
    images = ordered.space.all_images()
    before = conditionals_of(ordered, images)
    for dim, of in product(range(ordered.space.num_dims), repeat=2):
        # One conditional of each pixel stands for those of its earlier colours too.
        if of >= dim or ((of + 1) % ordered.space.shape[0] and of + 1 < dim):
            continue
        poisoned = images.copy()
        poison(ordered.space, poisoned, dim, of)
        after = conditionals_of(ordered, poisoned)
        assert before[:, : of + 1].tobytes() == after[:, : of + 1].tobytes(), (dim, of)


def test_a_conditional_is_normalized_while_all_later_values_are_spoilt(ordered: Case) -> None:
    space = ordered.space
    for dim in range(space.num_dims):
        images = space.all_images()
        for later in range(dim + 1, space.num_dims):
            poison(space, images, later, dim)
        total = np.zeros(len(images))
        for level in range(space.levels):
            images[space.place(dim)] = level / (space.levels - 1)
            total += np.exp(conditionals_of(ordered, images)[:, dim].astype(np.float64))
        # A few single-precision exponentials.
        np.testing.assert_allclose(total, 1, atol=2e-6)


def test_the_receptive_field_is_the_theoretical_one(ordered: Case) -> None:
    space = ordered.space
    images = space.all_images()
    before = conditionals_of(ordered, images)
    for dim in range(space.num_dims):
        changed_images = images.copy()
        changed_images[space.place(dim)] = 1 - changed_images[space.place(dim)]
        changed = (before != conditionals_of(ordered, changed_images)).any(axis=0)
        expected = [dim < later <= dim + ordered.receptive_field for later in range(space.num_dims)]
        assert changed[:dim].tolist() == expected[:dim], dim
        assert changed[dim + 1 :].tolist() == expected[dim + 1 :], dim


def test_torch_and_onnx_agree(case: Case) -> None:
    model = load_model(case.recipe, case.run, load_split(case.recipe.data)).requires_grad_(False)
    inputs = sampler_inputs(case, 8)
    images = case.space.all_images()[::64][:8].copy()
    for role, module in model.graphs().items():
        rows = inputs if role == "generate" else {"image": images}
        path = case.run / "bundle" / f"{role}.onnx"
        check_graph(path, module, rows, exact=role == "generate")  # at 1, 2, 7 and 8 rows


@pytest.mark.parametrize("role", ["generate", "log_prob"])
def test_a_row_has_the_same_bits_in_every_batch_and_slot(case: Case, role: str) -> None:
    graph = getattr(case, role)
    num_rows = 33
    images = case.space.all_images()[::15][:num_rows]
    inputs = sampler_inputs(case, num_rows) if role == "generate" else {"image": images}
    together = graph(inputs)
    for batch in (1, 2, 3, 5, 7, 8, 16, 17, 31):
        for start in range(0, num_rows - batch + 1, 4):
            rows = {name: realigned(v[start : start + batch]) for name, v in inputs.items()}
            for name, values in graph(rows).items():
                assert values.tobytes() == together[name][start : start + batch].tobytes()


def test_a_low_temperature_gives_the_mode_of_each_conditional(ordered: Case) -> None:
    space = ordered.space
    greedy = np.zeros((1, *space.shape), dtype=np.float32)
    for dim in range(space.num_dims):
        candidates = np.repeat(greedy, space.levels, axis=0)
        candidates[space.place(dim)] = np.arange(space.levels) / (space.levels - 1)
        greedy = candidates[[conditionals_of(ordered, candidates)[:, dim].argmax()]]
    samples = ordered.generate(sampler_inputs(ordered, 100, temperature=1e-6))["image"]
    assert (samples == greedy).all()


def test_temperature_divides_the_logits(ordered: Case) -> None:
    space = ordered.space
    candidates = np.zeros((space.levels, *space.shape), dtype=np.float32)
    candidates[space.place(0)] = np.arange(space.levels) / (space.levels - 1)
    probs = np.exp(conditionals_of(ordered, candidates)[:, 0].astype(np.float64) / 2)
    samples = ordered.generate(sampler_inputs(ordered, NUM_SAMPLES, temperature=2.0))["image"]
    levels = np.rint(samples[space.place(0)] * (space.levels - 1)).astype(np.int64)
    counts = np.bincount(levels, minlength=space.levels)
    assert chi_square_p_value(counts, probs / probs.sum()) > LEVEL


def test_completions_of_a_known_prefix_follow_the_conditional(ordered: Case) -> None:
    space = ordered.space
    prefix = np.array([1, 0, 1, 1], dtype=np.float32)
    inputs = sampler_inputs(ordered, NUM_SAMPLES, seed=2)
    for dim, value in enumerate(prefix):
        inputs["known"][space.place(dim)] = value
        inputs["known_mask"][space.place(dim)] = 1
    samples = ordered.generate(inputs)["image"]
    assert (space.flat(samples)[:, : len(prefix)] == prefix).all()

    fitting = (space.flat(space.all_images())[:, : len(prefix)] == prefix).all(axis=1)
    probs = np.where(fitting, distribution(ordered), 0)
    counts = np.bincount(space.codes(samples), minlength=len(probs))
    assert chi_square_p_value(counts, probs / probs.sum()) > LEVEL


def test_known_values_stay_wherever_they_are(ordered: Case) -> None:
    levels = ordered.space.levels
    inputs = sampler_inputs(ordered, 500, seed=3)
    rng = np.random.default_rng(4)
    known = rng.integers(0, levels, inputs["known"].shape) / (levels - 1)
    inputs["known"] = known.astype(np.float32)
    inputs["known_mask"] = rng.integers(0, 2, inputs["known"].shape).astype(np.float32)
    samples = ordered.generate(inputs)["image"]
    clamped = inputs["known_mask"] == 1
    assert (samples[clamped] == inputs["known"][clamped]).all()
