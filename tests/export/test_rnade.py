"""The density of RNADE, checked through ONNX Runtime: it integrates to 1, and samples follow it."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi2  # type: ignore[import-untyped]

from export.convert import check_graph, convert, realigned
from export.data import load_split
from export.graph import Graph, Tensors
from export.model import build_model
from export.recipe import Recipe
from export.train import load_model, train
from service.manifest import Image

NUM_SAMPLES = 100_000
LEVEL = 1e-4  # fixed seeds, see test_mathematics.py


class Case(NamedTuple):
    recipe: Recipe
    run: Path
    generate: Graph
    log_prob: Graph


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, make_recipe: Any) -> Case:
    """A trained model of two pixels, whose density can be looked at as a whole."""
    rng = np.random.default_rng(0)
    first = rng.choice([70, 170], 2000) + rng.normal(0, 12, 2000)
    second = 0.5 * first + rng.choice([20, 90], 2000) + rng.normal(0, 8, 2000)
    pixels = np.stack([first, second], axis=1).clip(1, 254).astype(np.uint8)
    folder = tmp_path_factory.mktemp("pair")
    np.savez(folder / "data.npz", train_images=pixels.reshape(-1, 1, 2))
    return trained(folder, make_recipe, epochs=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory, make_recipe: Any) -> Case:
    """A barely trained model of 3×3 pixels."""
    folder = tmp_path_factory.mktemp("nine")
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (200, 3, 3)) // 2 + rng.integers(0, 128, (200, 1, 1))
    np.savez(folder / "data.npz", train_images=pixels.astype(np.uint8))
    return trained(folder, make_recipe, epochs=1, learning_rate=1e-2)


def trained(folder: Path, make_recipe: Any, **training: Any) -> Case:
    recipe = make_recipe(
        "rnade",
        model={"hidden": 12},
        data={"source": str(folder / "data.npz"), "dequantize": True},
        training=training,
    )
    train(recipe, folder)
    bundle = convert(recipe, folder)
    generate, log_prob = (Graph(bundle / f"{role}.onnx", 4096) for role in ("generate", "log_prob"))
    return Case(recipe, folder, generate, log_prob)


def sampler_inputs(case: Case, num_images: int, temperature: float = 1.0) -> Tensors:
    rng = np.random.default_rng(0)
    shape = (num_images, *case.generate.inputs["known"][1:])
    noise = rng.standard_normal((num_images, *case.generate.inputs["noise"][1:]))
    return {
        "noise": noise.astype(np.float32),
        "temperature": np.full(num_images, temperature, dtype=np.float32),
        "known": np.zeros(shape, dtype=np.float32),
        "known_mask": np.zeros(shape, dtype=np.float32),
    }


def grid_of(edges: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
    """Return images at the midpoints of a square grid, (n², 1, 1, 2), and a cell's size."""
    levels = (edges[1:] + edges[:-1]) / 2
    images = np.stack(np.meshgrid(levels, levels, indexing="ij"), axis=-1).reshape(-1, 1, 1, 2)
    return (images / 255).astype(np.float32), (edges[1] - edges[0]) ** 2


def density(case: Case, images: NDArray[np.float32]) -> NDArray[np.float64]:
    outputs: NDArray[np.float64] = np.exp(
        case.log_prob({"image": images})["log_prob"].astype(np.float64)
    )
    return outputs


def test_the_density_over_grey_levels_integrates_to_one(pair: Case) -> None:
    images, cell = grid_of(np.linspace(-200, 455, 1201))
    # The midpoint rule on Gaussians no narrower than several cells; their tails end in the grid.
    assert (density(pair, images) * cell).sum() == pytest.approx(1, abs=1e-3)


def test_it_learnt_the_dependence(pair: Case) -> None:
    """Better than two independent pixels, each with its own histogram."""
    test = load_split(pair.recipe.data).test
    nll = -pair.log_prob({"image": test.values})["log_prob"].mean()
    assert nll < 8.8  # 4.6 to 4.9 nats each for the marginals alone


def test_samples_follow_the_density(pair: Case) -> None:
    samples = 255 * pair.generate(sampler_inputs(pair, NUM_SAMPLES))["image"].reshape(-1, 2)
    edges = np.linspace(0, 255, 18)
    counts, *_ = np.histogram2d(samples[:, 0], samples[:, 1], [edges, edges])
    fine = np.linspace(0, 255, 17 * 40 + 1)
    images, cell = grid_of(fine)
    probs = (density(pair, images) * cell).reshape(17, 40, 17, 40).sum(axis=(1, 3))
    # The outermost cells also hold what was cut off.
    inner = (slice(1, -1), slice(1, -1))
    observed, expected = counts[inner].ravel(), NUM_SAMPLES * probs[inner].ravel()
    rare = expected < 10
    observed = np.append(observed[~rare], NUM_SAMPLES - observed[~rare].sum())
    expected = np.append(expected[~rare], NUM_SAMPLES - expected[~rare].sum())
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, len(expected) - 1) > LEVEL


def test_a_known_pixel_stays_and_the_next_one_follows_its_conditional(pair: Case) -> None:
    inputs = sampler_inputs(pair, NUM_SAMPLES)
    inputs["known"][..., 0] = np.float32(160 / 255)
    inputs["known_mask"][..., 0] = 1
    samples = pair.generate(inputs)["image"].reshape(-1, 2)
    assert (samples[:, 0] == np.float32(160 / 255)).all()
    levels = np.linspace(-100, 355, 9101)
    images = np.stack([np.full_like(levels, 160), levels], axis=1) / 255
    line = density(pair, images.reshape(-1, 1, 1, 2).astype(np.float32))
    weights = line / line.sum()
    mean = (weights * levels).sum()
    spread = math.sqrt((weights * (levels - mean) ** 2).sum())
    # Nothing of note is cut off at 0 and 255 here.
    assert 255 * samples[:, 1].mean() == pytest.approx(
        mean, abs=4 * spread / math.sqrt(NUM_SAMPLES)
    )


def test_a_low_temperature_gives_one_image(pair: Case) -> None:
    images = pair.generate(sampler_inputs(pair, 50, temperature=1e-6))["image"]
    # σ is multiplied by 1/1000.
    assert np.ptp(images, axis=0).max() < 1e-3


@pytest.mark.parametrize("dim", range(9))
def test_nan_in_a_pixel_reaches_no_earlier_conditional(nine: Case, dim: int) -> None:
    images = np.random.default_rng(2).random((20, 1, 3, 3)).astype(np.float32)
    poisoned = images.copy()
    poisoned.reshape(-1, 9)[:, dim] = np.nan
    before, after = (
        nine.log_prob({"image": rows})["conditional_log_prob"].reshape(-1, 9)
        for rows in (images, poisoned)
    )
    assert before[:, :dim].tobytes() == after[:, :dim].tobytes()
    assert np.isnan(after[:, dim:]).all()


def test_log_prob_is_the_sum_of_the_conditionals(nine: Case) -> None:
    images = np.random.default_rng(2).random((20, 1, 3, 3)).astype(np.float32)
    outputs = nine.log_prob({"image": images})
    total = outputs["conditional_log_prob"].sum(axis=(1, 2, 3))
    np.testing.assert_allclose(outputs["log_prob"], total, rtol=1e-5)  # single precision


def test_training_and_graphs_score_alike(nine: Case) -> None:
    """Training has a formula of its own: all pixels at once, by a cumulative sum."""
    model = load_model(nine.recipe, nine.run, load_split(nine.recipe.data)).requires_grad_(False)
    images = np.random.default_rng(2).random((8, 1, 3, 3)).astype(np.float32)
    expected = model.log_prob(torch.from_numpy(images)).numpy()
    module = model.graphs()["log_prob"]
    path = nine.run / "bundle" / "log_prob.onnx"
    outputs = check_graph(path, module, {"image": images})
    np.testing.assert_allclose(outputs["log_prob"], expected, rtol=1e-5)  # single precision


@pytest.mark.parametrize("role", ["generate", "log_prob"])
def test_a_row_has_the_same_bits_in_every_batch_and_slot(nine: Case, role: str) -> None:
    graph = getattr(nine, role)
    images = np.random.default_rng(3).random((33, 1, 3, 3)).astype(np.float32)
    inputs = sampler_inputs(nine, 33) if role == "generate" else {"image": images}
    together = graph(inputs)
    for batch in (1, 2, 3, 5, 7, 8, 16, 17, 31):
        for start in range(0, 33 - batch + 1, 4):
            rows = {name: realigned(v[start : start + batch]) for name, v in inputs.items()}
            for name, values in graph(rows).items():
                assert values.tobytes() == together[name][start : start + batch].tobytes()


def test_no_component_is_narrower_than_a_fifth_of_a_grey_level(make_recipe: Any) -> None:
    model: Any = build_model(make_recipe("rnade"), Image(shape=(1, 2, 2), values="continuous"), 0)
    with torch.no_grad():
        model.b.fill_(-50.0)  # as narrow as can be
        model.b[:, :16] = 0
        model.b[:, 16:32] = 0
        model.V.zero_()
        # y = ½, where an untrained model has its means, is the middle of level 127.5.
        best = model.log_prob(torch.full((1, 1, 2, 2), 127.5 / 255))
    peak = -math.log(0.2 * math.sqrt(2 * math.pi))  # of one pixel, per grey level
    assert best.item() == pytest.approx(4 * peak, abs=1e-3)


def test_a_pixel_that_falls_far_outside_leads_the_others_nowhere(make_recipe: Any) -> None:
    """What no training image has shown may have any conditional, one that explodes too."""
    image = Image(shape=(1, 6, 6), values="continuous")
    model: Any = build_model(make_recipe("rnade"), image, 0).requires_grad_(False)
    model.W.fill_(0.1)
    model.V.fill_(0.1)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn((8, 2, 1, 6, 6), generator=rng)
    nothing = torch.zeros(8, 1, 6, 6)
    images = model.graphs()["generate"](noise, torch.ones(8), nothing, nothing)
    assert ((images >= 0) & (images <= 1)).all()
