import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from export.convert import check_graph, export_graph, golden_inputs, realigned
from export.data import Images
from export.families.joint import num_table_parameters
from export.families.pixel_lstm import past_distances, past_windows
from export.graph import Graph
from export.model import GenerativeModel, build_model
from service.manifest import Image

# Sums of products are cut at other places for more than 16, 32 and 64 columns.
NUM_ROWS = 70
SLOTS = ((0, 1), (5, 6), (69, 70), (1, 3), (2, 5), (3, 8), (0, 7), (9, 25), (40, 65), (1, 65))


def make_model(
    make_recipe: Any,
    family: str,
    size: int = 28,
    values: str = "binary",
    num_classes: int = 0,
    **model: Any,
) -> GenerativeModel:
    torch.manual_seed(0)
    image = Image(shape=(1, size, size), values=values)
    return build_model(make_recipe(family, model=model), image, num_classes)


def binary_images(num_images: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(num_images, 1, size, size, generator=generator) < 0.3).float()


@pytest.mark.parametrize(
    ("family", "model", "expected"),
    [
        ("bernoulli", {}, 784),
        ("markov", {"order": 3}, 1 + 2 + 4 + 781 * 8),
        ("markov", {"order": 1}, 2 * 784 - 1),
        ("markov", {"order": 5}, sum(2 ** min(i, 5) for i in range(784))),
        ("fvsbn", {}, 784 * 783 // 2 + 784),  # the strictly lower triangle and the biases
        ("nade", {"hidden": 500}, 785_284),  # 2DH + D + H
        ("eonade", {"hidden": [400]}, 3 * 784 * 400 + 784 + 400),  # W, U, V, b, c
        ("eonade", {"hidden": [400, 300]}, 784 * (2 * 400 + 300) + 784 + 400 + 401 * 300),
    ],
)
def test_the_number_of_parameters(
    make_recipe: Any, family: str, model: dict[str, Any], expected: int
) -> None:
    assert make_model(make_recipe, family, **model).num_parameters() == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_joint_table_has_a_parameter_per_image_but_one(make_recipe: Any, size: int) -> None:
    assert make_model(make_recipe, "joint", size).num_parameters() == 2 ** (size * size) - 1


def test_a_joint_table_of_one_rgb_pixel_has_16777215_parameters() -> None:
    assert num_table_parameters(3, num_levels=256) == 256**3 - 1 == 16_777_215


def test_a_joint_table_is_a_markov_chain_that_forgets_nothing(make_recipe: Any) -> None:
    chain = make_model(make_recipe, "markov", 3, order=8)
    assert chain.num_parameters() == make_model(make_recipe, "joint", 3).num_parameters()


def test_a_joint_table_of_a_large_image_is_refused(make_recipe: Any) -> None:
    with pytest.raises(ValueError, match=r"joint needs 2\^25 - 1 parameters .* set data.crop"):
        make_model(make_recipe, "joint", 5)


def test_a_joint_table_without_smoothing_gives_the_counted_frequencies(make_recipe: Any) -> None:
    model: Any = make_model(make_recipe, "joint", 2, smoothing=0)
    rows = torch.tensor([[0, 1, 1, 0]] * 5 + [[0, 1, 0, 0]] * 2 + [[1, 1, 1, 1]]).float()
    images = rows.reshape(-1, 1, 2, 2)
    model.training_step((images, torch.zeros(8)), 0)
    module = model.graphs()["log_prob"]
    log_prob, conditionals = module(images)
    # Single precision.
    assert log_prob.exp().tolist() == pytest.approx([5 / 8] * 5 + [2 / 8] * 2 + [1 / 8], rel=1e-6)
    assert conditionals[0].exp().flatten().tolist() == pytest.approx([7 / 8, 1, 5 / 7, 1], rel=1e-6)
    unseen = torch.tensor([1.0, 0, 0, 0]).reshape(1, 1, 2, 2)
    assert model.log_prob(unseen).item() == -math.inf


def test_a_joint_table_keeps_known_pixels_that_it_holds_for_impossible(make_recipe: Any) -> None:
    model: Any = make_model(make_recipe, "joint", 2, smoothing=0)
    images = torch.tensor([0.0, 1, 1, 0]).reshape(1, 1, 2, 2)
    model.training_step((images, torch.zeros(1)), 0)
    noise, known = torch.full((1, 1, 2, 2), 0.3), 1 - images
    one = torch.ones(1)
    assert model.graphs()["generate"](noise, one, known, torch.ones_like(known)).equal(known)
    assert model.graphs()["generate"](noise, one, known, torch.zeros_like(known)).equal(images)


COLOURED = [
    ("bernoulli", {}, "raster"),
    ("fvsbn", {}, None),
    ("nade", {"hidden": 4}, None),
    ("pixel_lstm", {"hidden": 4, "radius": 1}, None),
    ("row_lstm", {"num_layers": 1, "hidden": 6, "head": 6}, "raster"),
    ("diagonal_bilstm", {"num_layers": 1, "hidden": 6, "head": 6}, "raster"),
]


@pytest.mark.parametrize(
    ("family", "config", "expected"), COLOURED, ids=[case[0] for case in COLOURED]
)
def test_rows_of_colour_come_first_only_where_pixels_do(
    make_recipe: Any, family: str, config: dict[str, Any], expected: str | None
) -> None:
    image = Image(shape=(3, 2, 2), values="binary")
    model = build_model(make_recipe(family, model=config), image, num_classes=0).eval()
    assert model.ordering == expected

    pixels = torch.zeros(2, 3, 2, 2)
    pixels[1, :, 1] = 1  # the lower row alone differs
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        _, conditionals = model.graphs()["log_prob"](pixels)
    is_first = torch.equal(conditionals[0, :, 0], conditionals[1, :, 0])
    assert is_first == (expected == "raster")


def test_dcgan_counts_its_generator_alone(make_recipe: Any) -> None:
    model = make_model(
        make_recipe, "dcgan", values="8-bit", latent_dim=8, generator_channels=[6, 4]
    )
    linear, norms = 8 * 6 * 7 * 7, 2 * 6 + 2 * 4
    convolutions = 6 * 4 * 16 + (4 * 1 * 16 + 1)
    assert model.num_parameters() == linear + norms + convolutions


def test_an_unknown_family_is_refused(make_recipe: Any) -> None:
    with pytest.raises(ValueError, match=r"no family 'unheard'; there are: .*nade"):
        make_model(make_recipe, "unheard")


@pytest.mark.parametrize(
    "family", ["bernoulli", "eonade", "fvsbn", "joint", "markov", "nade", "pixel_lstm"]
)
def test_binary_families_refuse_grey_images(make_recipe: Any, family: str) -> None:
    """On greys their formula is a cross-entropy and no log-likelihood."""
    with pytest.raises(ValueError, match=r"set data.binarization"):
        make_model(make_recipe, family, values="8-bit")


def test_rnade_counts_its_mixtures(make_recipe: Any) -> None:
    model = make_model(make_recipe, "rnade", 14, "continuous", hidden=96, components=16)
    per_pixel = 96 + 1 + 48 * 96 + 48  # W, ρ, V, b
    assert model.num_parameters() == 196 * per_pixel + 96


def test_rnade_refuses_pixels_that_are_not_dequantized(make_recipe: Any) -> None:
    """Their density can be driven to infinity."""
    with pytest.raises(ValueError, match=r"rnade models continuous images, these are 8-bit"):
        make_model(make_recipe, "rnade", 4, "8-bit")


def test_the_pixel_lstm_counts_its_lstm_and_its_readout(make_recipe: Any) -> None:
    model = make_model(make_recipe, "pixel_lstm", 28, hidden=64, radius=3)
    window = 3 + 3 * 7  # pixels to the left, three rows above
    lstm = 4 * 64 * (window + 28 + 28 + 64) + 2 * 4 * 64
    assert model.num_parameters() == lstm + window + 64 + 784


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_no_window_reaches_the_present(radius: int) -> None:
    for width in (1, 3, 28):
        steps = past_distances(width, radius)
        assert min(steps, default=1) >= 1
        assert len(set(steps)) == len(steps)


def test_a_window_holds_the_pixels_at_its_distances() -> None:
    columns = torch.arange(1.0, 7.0)[:, None]
    windows = past_windows(columns, [1, 4])
    assert windows[:, 0].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 1], [5, 2]]
    assert past_windows(columns, []).shape == (6, 1, 0)


def test_the_step_of_the_pixel_lstm_is_that_of_torch(make_recipe: Any) -> None:
    """Training runs torch's own LSTM, the graphs a step written out."""
    model = with_random_weights(make_model(make_recipe, "pixel_lstm", 5, hidden=6, radius=2))
    images = binary_images(7, 5)
    log_prob, _ = model.graphs()["log_prob"](images)
    # Sums of 25 single-precision terms.
    torch.testing.assert_close(log_prob, model.log_prob(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [27, 30])
def test_dcgan_refuses_sizes_it_cannot_make(make_recipe: Any, size: int) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 4; the images are {size}×{size}"):
        make_model(make_recipe, "dcgan", size, "8-bit", generator_channels=[4, 4])


def test_markov_logits_are_counted_frequencies(make_recipe: Any) -> None:
    model: Any = make_model(make_recipe, "markov", size=2, order=1, smoothing=0.5)
    rows = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1]])
    model.training_step((rows.reshape(-1, 1, 2, 2).float(), torch.zeros(4)), 0)
    probs = torch.sigmoid(model.logits())  # (4, 2): pixel, value of the pixel before it
    assert probs[0, 0].item() == pytest.approx((3 + 0.5) / (4 + 1))
    assert probs[1, 1].item() == pytest.approx((2 + 0.5) / (3 + 1))  # two of three follow a 1
    assert probs[1, 0].item() == pytest.approx((1 + 0.5) / (1 + 1))
    assert probs[2, 0].item() == pytest.approx((0 + 0.5) / (1 + 1))
    assert probs[3, 1].item() == pytest.approx((1 + 0.5) / (2 + 1))


def plain_nade(images: Tensor, W: Tensor, V: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The paper's formula, one pixel after the other, for autograd."""
    values = images.flatten(1)
    log_prob = torch.zeros(len(values), dtype=values.dtype)
    for d in range(values.shape[1]):
        hidden = torch.sigmoid(c + values[:, :d] @ W[:d])
        logits = hidden @ V[d] + b[d]
        log_prob = log_prob + functional.logsigmoid(torch.where(values[:, d] > 0, logits, -logits))
    return log_prob


def test_the_one_sweep_of_nade_has_the_gradient_of_the_formula(make_recipe: Any) -> None:
    model: Any = make_model(make_recipe, "nade", size=5, hidden=7, init_std=0.7)
    images = binary_images(11, 5)
    parameters = (model.W, model.V, model.b, model.c)
    torch.nn.init.normal_(model.b)
    torch.nn.init.normal_(model.c)
    log_prob = model.log_prob(images)
    log_prob.mean().backward()

    exact = [parameter.detach().double().requires_grad_() for parameter in parameters]
    expected = plain_nade(images.double(), *exact)
    torch.autograd.backward(expected.mean())
    # Single against double precision, 25 pixels.
    torch.testing.assert_close(log_prob.double(), expected, atol=1e-5, rtol=1e-6)
    for parameter, reference in zip(parameters, exact, strict=True):
        torch.testing.assert_close(parameter.grad.double(), reference.grad, atol=1e-6, rtol=1e-5)


def test_the_one_sweep_of_nade_refuses_unequal_weights(make_recipe: Any) -> None:
    model = make_model(make_recipe, "nade", size=3, hidden=4)
    log_prob = model.log_prob(binary_images(2, 3))
    with pytest.raises(ValueError, match="equal weights"):
        torch.autograd.backward((log_prob * torch.tensor([1.0, 2.0])).sum())


def test_nade_starts_near_the_independent_model(make_recipe: Any) -> None:
    model = make_model(make_recipe, "nade", size=8, hidden=50, init_std=1e-3)
    brightness = torch.linspace(0.1, 0.9, 64).reshape(1, 1, 8, 8)
    generator = torch.Generator().manual_seed(1)
    images = (torch.rand(2000, 1, 8, 8, generator=generator) < brightness).float()
    model.initialize((255 * images).to(torch.uint8))
    mean = images.mean(dim=0)
    independent = -(images * mean.log() + (1 - images) * (1 - mean).log()).flatten(1).sum(dim=1)
    with torch.no_grad():
        nll = -model.log_prob(images)
    # Weights of 1e-3 move a logit by about 1e-4, 64 pixels add up.
    assert nll.mean().item() == pytest.approx(independent.mean().item(), abs=0.05)
    assert nll.mean().item() < 0.95 * 64 * math.log(2)


def plain_eonade(model: Any, images: Tensor) -> Tensor:
    """The paper's formula: log of the mean over orders of Π_d p(x_{o_d} | x_{o_<d})."""
    values = images.flatten(1)
    per_order = []
    for order in model.orders:
        mask, log_prob = torch.zeros_like(values), torch.zeros(len(values))
        for pixel in order:
            logits = model.logits(values, mask)[:, pixel]
            signs = 2 * values[:, pixel] - 1
            log_prob = log_prob + functional.logsigmoid(signs * logits)
            mask[:, pixel] = 1
        per_order.append(log_prob)
    return torch.stack(per_order).logsumexp(dim=0) - math.log(len(model.orders))


def with_random_weights(model: GenerativeModel) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model.requires_grad_(False)


@pytest.mark.parametrize("hidden", [[6], [6, 5]])
def test_eonade_mixes_probabilities_of_orders(make_recipe: Any, hidden: list[int]) -> None:
    model = with_random_weights(
        make_model(make_recipe, "eonade", size=4, hidden=hidden, num_orders=3)
    )
    images = binary_images(9, 4)
    # Sums of 16 single-precision terms.
    torch.testing.assert_close(
        model.log_prob(images), plain_eonade(model, images), atol=1e-4, rtol=0
    )


def test_the_estimate_that_eonade_learns_from_is_unbiased(make_recipe: Any) -> None:
    """Its mean over places and orders is the mean over all 4! orders of -log p(x | o)."""
    model = with_random_weights(make_model(make_recipe, "eonade", size=2, hidden=[5]))
    image = binary_images(1, 2, seed=3)
    estimates = model.estimated_nll(image.expand(20_000, -1, -1, -1))
    surprises = []
    for order in permutations(range(4)):
        model.orders = torch.tensor([order])
        surprises.append(-plain_eonade(model, image).item())
    standard_error = estimates.std().item() / math.sqrt(len(estimates))
    assert abs(estimates.mean().item() - sum(surprises) / 24) < 4 * standard_error


def test_eonade_can_be_trained_on_the_orders_of_its_mixture_alone(make_recipe: Any) -> None:
    model: Any = make_model(
        make_recipe, "eonade", size=3, hidden=[5], num_orders=2, training_orders="mixture"
    )
    places = model.random_places(100)
    drawn = {tuple(order) for order in places.argsort(dim=1).tolist()}
    assert drawn == {tuple(order) for order in model.orders.tolist()}


def test_one_layer_of_eonade_learns_from_the_exact_log_prob_of_an_order(make_recipe: Any) -> None:
    options = {"hidden": [7], "num_orders": 1, "training_orders": "mixture"}
    model: Any = make_model(make_recipe, "eonade", size=4, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    images = binary_images(9, 4)
    nll = model.nll_of_one_order(images)
    nll.mean().backward()

    exact: Any = make_model(make_recipe, "eonade", size=4, **options)
    exact.load_state_dict(model.state_dict())
    expected = -plain_eonade(exact.double(), images.double())
    expected.mean().backward()
    # Single against double precision, 16 pixels.
    torch.testing.assert_close(nll.double(), expected, atol=1e-5, rtol=1e-6)
    for (name, parameter), reference in zip(
        model.named_parameters(), exact.parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad.double(), reference.grad, atol=1e-5, rtol=1e-5, msg=name
        )


def test_eonade_starts_as_the_independent_model(make_recipe: Any) -> None:
    model: Any = make_model(make_recipe, "eonade", size=4, hidden=[5])
    images = binary_images(500, 4)
    model.initialize((255 * images).to(torch.uint8))
    mean = images.mean(dim=0)
    independent = (images * mean.log() + (1 - images) * (1 - mean).log()).flatten(1).sum(dim=1)
    torch.testing.assert_close(model.log_prob(images), independent, atol=1e-4, rtol=0)


def test_a_pixel_of_the_nade_sampler_costs_three_kernels(make_recipe: Any, tmp_path: Path) -> None:
    """Other wordings of the same step are up to four times slower."""
    model = make_model(make_recipe, "nade", size=4, hidden=6).requires_grad_(False)
    module = model.graphs()["generate"]
    path, optimized = tmp_path / "generate.onnx", tmp_path / "optimized.onnx"
    export_graph(module, "generate", inputs_for(model, module, 4), path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3  # says that the file suits this machine alone
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (scan,) = (node for node in onnx.load(optimized).graph.node if node.op_type == "Scan")
    (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
    # 8 of the 16 pixels are drawn in one step of the scan.
    assert [node.op_type for node in body.node] == 8 * ["Sigmoid", "FusedGemm", "Gemm"]


def inputs_for(model: GenerativeModel, module: torch.nn.Module, size: int) -> Any:
    pixels = (255 * binary_images(8, size)).to(torch.uint8).numpy()
    return golden_inputs(model, module, Images(pixels, np.zeros(8, dtype=np.int64)))


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("bernoulli", "binary"),
        ("cgan", "8-bit"),
        ("dcgan", "8-bit"),
        ("diagonal_bilstm", "binary"),
        ("eonade", "binary"),
        ("fvsbn", "binary"),
        ("gan", "8-bit"),
        ("markov", "binary"),
        ("nade", "binary"),
        ("pixel_lstm", "binary"),
        ("rnade", "continuous"),
        ("row_lstm", "binary"),
        ("row_lstm", "8-bit"),
    ],
)
def test_rows_of_shipped_size_have_the_same_bits_in_every_batch(
    make_recipe: Any, tmp_path: Path, family: str, values: str
) -> None:
    """At 28×28: which instructions a kernel takes depends on sizes."""
    sizes: dict[str, dict[str, Any]] = {
        "nade": {"hidden": 500},
        "eonade": {"hidden": [400, 400]},
        "dcgan": {"latent_dim": 64, "generator_channels": [192, 96]},
        "cgan": {"latent_dim": 64, "generator_channels": [96, 48]},
        "gan": {"latent_dim": 64, "generator_hidden": [512, 512]},
        # Of the shipped width; each further layer is the same again, and seconds more.
        "diagonal_bilstm": {"num_layers": 1, "hidden": 32, "head": 32},
        "row_lstm": {"num_layers": 1, "hidden": 24, "head": 64},
    }
    model = make_model(make_recipe, family, 28, values, 10, **sizes.get(family, {}))
    for parameter in model.requires_grad_(False).parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))  # some heads begin by giving 0
    for role, module in model.graphs().items():
        inputs = inputs_for(model, module, 28)
        path = tmp_path / f"{role}.onnx"
        export_graph(module, role, inputs, path)
        # Near the border of two of 256 levels, rounding decides.
        spare_share = 1.0 if (family, values) == ("row_lstm", "8-bit") else 0.0
        check_graph(path, module, inputs, spare_share=spare_share)
        assert_same_bits_in_every_batch(path, inputs)


@pytest.mark.parametrize(
    ("family", "values", "sizes"),
    [
        ("diagonal_bilstm", "binary", {"num_layers": 2, "hidden": 70, "head": 140}),
        ("pixel_lstm", "binary", {"hidden": 140}),
        ("rnade", "continuous", {"hidden": 140}),
        ("row_lstm", "binary", {"num_layers": 2, "hidden": 70, "head": 140}),
    ],
)
def test_long_sums_have_the_same_bits_in_every_batch(
    make_recipe: Any, tmp_path: Path, family: str, values: str, sizes: dict[str, Any]
) -> None:
    """So wide that ONNX Runtime would cut the sums at places that depend on the batch."""
    model = make_model(make_recipe, family, 6, values, **sizes)
    for parameter in model.requires_grad_(False).parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    for role, module in model.graphs().items():
        inputs = inputs_for(model, module, 6)
        path = tmp_path / f"{role}.onnx"
        export_graph(module, role, inputs, path)
        assert_same_bits_in_every_batch(path, inputs)


def assert_same_bits_in_every_batch(path: Path, inputs: Any) -> None:
    graph = Graph(path, NUM_ROWS)
    many = {name: np.resize(a, (NUM_ROWS, *a.shape[1:])) for name, a in inputs.items()}
    together = graph(many)
    for start, stop in SLOTS:
        rows = {name: realigned(array[start:stop]) for name, array in many.items()}
        for name, array in graph(rows).items():
            assert array.tobytes() == together[name][start:stop].tobytes(), (path.stem, name)
