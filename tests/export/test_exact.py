"""Exact generators: bounds read off the graph, sums in any order, borders of grey levels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from export.adversarial import Generate
from export.convert import write_graph
from export.exact import (
    LATENT_BOUND,
    LATENT_STEPS,
    LEVELS,
    TANH_STEPS,
    ExactGenerator,
    layers_of,
    reach,
    round_weights,
)
from export.families import dcgan
from service.manifest import Image, version_folders
from service.noise import draw

# Single precision holds every integer up to it.
MAX_UNITS = 2**24

STORE = Path(__file__).parents[2] / "model_store"

DoubleArray = NDArray[np.float64]


def latents(num_rows: int, latent_dim: int, seed: int = 5) -> NDArray[np.float32]:
    indices = np.arange(num_rows, dtype=np.uint64)
    return draw("normal", np.full_like(indices, seed), indices, (latent_dim,))


@pytest.fixture(scope="module")
def generator() -> dcgan.Generator:
    """Return a generator that is not trained, with contrast and uneven channels."""
    torch.manual_seed(0)
    config = dcgan.Config(latent_dim=16, generator_channels=(24, 12))
    made = dcgan.Generator(config, Image(shape=(3, 12, 8), values="8-bit"))
    for module in made.modules():
        if isinstance(module, nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.15)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.2, 3.0)
            nn.init.normal_(module.bias, 0.0, 0.5)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.1, 2.0)
    return made.eval().requires_grad_(False)


def exact_form(generator: dcgan.Generator) -> ExactGenerator:
    layers = layers_of(generator.project, generator.start, generator.stages)
    drawn = latents(512, generator.project.in_features, seed=1)
    return ExactGenerator(layers, torch.from_numpy(drawn)).eval()


@pytest.fixture(scope="module")
def exact(generator: dcgan.Generator) -> ExactGenerator:
    return exact_form(generator)


@pytest.fixture(scope="module", params=["made here", "dcgan-fashion", "dcgan-emoji"])
def graph(
    request: pytest.FixtureRequest, exact: ExactGenerator, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a graph that was made just now, and one that is shipped."""
    if request.param == "made here":
        path: Path = tmp_path_factory.mktemp("exact") / "generate.onnx"
        write_graph(Generate(exact), ("image",), {"noise": latents(8, 16)}, path)
        return path
    folders = [folder for name, _, folder in version_folders(STORE) if name == request.param]
    return folders[-1] / "generate.onnx"


def units_of(weights: DoubleArray) -> DoubleArray:
    """Return the largest power of two that each number is a multiple of; infinite for 0."""
    mantissas, exponents = np.frexp(weights)
    integers = np.abs(mantissas * 2**53).astype(np.int64)
    lowest_bits = integers & -integers
    return np.where(weights == 0, np.inf, np.ldexp(lowest_bits.astype(float), exponents - 53))


class Node:
    """A product in a graph: its weights, and the range of the integers that come in."""

    def __init__(self, node: onnx.NodeProto, content: onnx.ModelProto) -> None:
        made_by = {name: other for other in content.graph.node for name in other.output}
        values = {
            each.name: numpy_helper.to_array(each).astype(float)
            for each in content.graph.initializer
        }
        self.is_gemm = node.op_type == "Gemm"
        self.weight, self.bias = (values[name] for name in node.input[1:])
        source = made_by[node.input[0]]
        assert source.op_type == "Round"
        clip = made_by[source.input[0]]
        assert clip.op_type == "Clip"
        self.lowest, self.highest = (float(values[name]) for name in clip.input[1:])
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        self.stride = tuple(given.get("strides", (1, 1)))
        if self.is_gemm:
            assert (given["transB"], given["alpha"], given["beta"]) == (1, 1.0, 1.0)
        else:
            assert given["dilations"] == [1, 1]
            assert given["group"] == 1

    def terms(self) -> list[tuple[DoubleArray, float]]:
        """Return the weights that can meet in one output, (outputs, terms), with its bias."""
        if self.is_gemm:
            return [
                (row[None], float(bias)) for row, bias in zip(self.weight, self.bias, strict=True)
            ]
        rows, columns = self.stride
        return [
            (self.weight[:, channel, row::rows, column::columns].reshape(1, -1), float(bias))
            for channel, bias in enumerate(self.bias)
            for row in range(rows)
            for column in range(columns)
        ]


def products(path: Path) -> list[Node]:
    content = onnx.load(path)
    names = ("Gemm", "MatMul", "Conv", "ConvTranspose")
    return [Node(node, content) for node in content.graph.node if node.op_type in names]


def test_no_sum_in_the_graph_can_exceed_what_single_precision_holds(graph: Path) -> None:
    """The proof, by what stands in the file and nothing else."""
    found = products(graph)
    # One product and two transposed convolutions make 28×28 pixels, one more 32×32.
    num_convolutions = 3 if "dcgan-emoji" in graph.parts else 2
    assert [node.is_gemm for node in found] == [True] + num_convolutions * [False]
    for node in found:
        fullest = 0.0
        for weights, bias in node.terms():
            # Inputs are integers, so every product is a multiple of the weights' unit.
            unit = units_of(weights).min()
            assert bias % unit == 0
            ends = np.stack([weights * node.lowest, weights * node.highest])
            largest = max(ends.max(axis=0).clip(0).sum(), -ends.min(axis=0).clip(None, 0).sum())
            assert largest + abs(bias) <= MAX_UNITS * unit
            fullest = max(fullest, (largest + abs(bias)) / (MAX_UNITS * unit))
        assert fullest > 0.5  # no bit is given away


def test_what_is_between_the_products_is_exact_too(graph: Path) -> None:
    """Powers of two, cuts and roundings, until a last division and the tanh."""
    content = onnx.load(graph)
    kinds = [node.op_type for node in content.graph.node]
    assert kinds[:3] == ["Mul", "Clip", "Round"]
    values = {each.name: numpy_helper.to_array(each) for each in content.graph.initializer}
    assert values[content.graph.node[0].input[1]] == LATENT_STEPS
    last = max(i for i, kind in enumerate(kinds) if kind == "ConvTranspose")
    assert set(kinds[3:last]) == {"Gemm", "Reshape", "Clip", "Round", "ConvTranspose"}
    assert kinds[last + 1 :] == ["Round", "Div", "Tanh", "Add", "Div"]


def steps_of(path: Path, noise: NDArray[np.float32], **settings: Any) -> NDArray[np.float32]:
    """Run a graph up to the argument of the tanh."""
    content = onnx.load(path)
    name = [node.output[0] for node in content.graph.node if node.op_type == "Round"][-1]
    content.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    options = onnxruntime.SessionOptions()
    for setting, value in settings.items():
        setattr(options, setting, value)
    session = onnxruntime.InferenceSession(
        content.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (steps,) = session.run([name], {"noise": noise})
    result: NDArray[np.float32] = steps
    return result


def in_another_order(
    path: Path, noise: NDArray[np.float32], dtype: torch.dtype, rng: np.random.Generator
) -> NDArray[np.floating]:
    """Compute what a graph computes up to the argument of the tanh, its terms shuffled."""
    features = torch.from_numpy(noise) * LATENT_STEPS
    for node in products(path):
        features = features.clamp(node.lowest, node.highest).round().to(dtype)
        weight, bias = (torch.from_numpy(values).to(dtype) for values in (node.weight, node.bias))
        if node.is_gemm:
            order = rng.permutation(weight.shape[1])
            features = functional.linear(features[:, order], weight[:, order], bias)
            features = features.reshape(-1, *start_of(path))
        else:
            order = rng.permutation(weight.shape[0])
            features = functional.conv_transpose2d(
                features[:, order], weight[order], bias, node.stride, 1
            )
    result: NDArray[np.floating] = features.round().numpy()
    return result


def start_of(path: Path) -> tuple[int, ...]:
    """Return the shape of the first maps."""
    graph = onnx.load(path).graph
    (reshape,) = (node for node in graph.node if node.op_type == "Reshape")
    (shape,) = (each for each in graph.initializer if each.name == reshape.input[1])
    return tuple(numpy_helper.to_array(shape)[1:])


def test_the_order_of_sums_and_the_precision_change_no_bit(graph: Path) -> None:
    noise = latents(64, products(graph)[0].weight.shape[1])
    noise[0] *= 1000  # even where everything is cut
    expected = steps_of(graph, noise)
    rng = np.random.default_rng(0)
    for dtype in (torch.float32, torch.float32, torch.float64):
        shuffled = in_another_order(graph, noise, dtype, rng)
        np.testing.assert_array_equal(shuffled, expected)


def test_a_generator_that_is_not_rounded_does_depend_on_the_order(
    generator: dcgan.Generator,
) -> None:
    """So the test above can fail."""
    layers = [layer.float() for layer in _layers(generator)]
    order = torch.randperm(16)
    noise = torch.from_numpy(latents(64, 16))[:, :, None, None]
    plain = layers[0](noise)
    weight, bias = layers[0].weight[order], layers[0].bias
    shuffled = functional.conv_transpose2d(noise[:, order], weight, bias, layers[0].stride)
    assert not torch.equal(plain, shuffled)
    torch.testing.assert_close(plain, shuffled)


def _layers(generator: dcgan.Generator) -> list[nn.ConvTranspose2d]:
    return layers_of(generator.project, generator.start, generator.stages)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_and_optimizations_change_no_bit(graph: Path, level: str, num_threads: int) -> None:
    noise = latents(9, products(graph)[0].weight.shape[1])
    chosen = getattr(onnxruntime.GraphOptimizationLevel, level)
    steps = steps_of(
        graph, noise, graph_optimization_level=chosen, intra_op_num_threads=num_threads
    )
    np.testing.assert_array_equal(steps, steps_of(graph, noise, intra_op_num_threads=1))


def test_folding_changes_nothing(generator: dcgan.Generator) -> None:
    noise = torch.from_numpy(latents(20, 16))
    features = noise.double()[:, :, None, None]
    first, *others = _layers(generator)
    features = first(features)
    for layer in others:
        features = layer(functional.relu(features))
    # What remains is single precision against double.
    torch.testing.assert_close(features.tanh().float(), generator(noise), atol=1e-5, rtol=0)


def test_images_are_those_of_the_generator_but_for_a_few_levels(
    generator: dcgan.Generator, exact: ExactGenerator
) -> None:
    noise = torch.from_numpy(latents(500, 16))
    difference = 127.5 * (exact(noise) - generator(noise)).abs()
    # 16 latents and 24 channels with contrasts of 15 to 1: seen are 0.13 levels.
    assert difference.mean() < 0.3
    assert difference.max() > 0  # they are not the same numbers


def test_latents_beyond_the_bound_are_cut(exact: ExactGenerator) -> None:
    noise = torch.from_numpy(latents(20, 16))
    far = noise.sign() * LATENT_BOUND
    assert torch.equal(exact(1e6 * noise), exact(far))
    assert not torch.equal(exact(far), exact(far * 0.999))


def test_the_generator_that_is_trained_stays(generator: dcgan.Generator) -> None:
    before = {name: values.clone() for name, values in generator.state_dict().items()}
    exact_form(generator)
    for name, values in generator.state_dict().items():
        assert torch.equal(values, before[name])


def test_a_channel_that_is_always_black_does_no_harm(generator: dcgan.Generator) -> None:
    norm = generator.stages[0]
    assert isinstance(norm, nn.BatchNorm2d)
    before = norm.bias[3].item()
    norm.bias[3] = -1000.0
    noise = torch.from_numpy(latents(100, 16))
    difference = 127.5 * (exact_form(generator)(noise) - generator(noise)).abs()
    norm.bias[3] = before
    assert difference.mean() < 0.3


def test_a_stage_of_another_kind_is_refused(generator: dcgan.Generator) -> None:
    with pytest.raises(ValueError, match="no exact form of Sigmoid"):
        layers_of(generator.project, generator.start, [nn.Sigmoid()])


@pytest.mark.parametrize(("lowest", "highest"), [(0, LEVELS), (-2048, 2048)])
def test_the_reach_is_that_of_the_worst_inputs_and_no_less(lowest: int, highest: int) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(5, 3, 4, 2, 1).double().requires_grad_(False)
    round_weights(layer, lowest, highest)
    found = reach(layer, lowest, highest)
    # Of an output far from the edges, the gradient tells which taps it has.
    for channel in range(3):
        for row, column in ((4, 4), (4, 5), (5, 4), (5, 5)):
            probe = torch.zeros(1, 5, 5, 5, dtype=torch.float64, requires_grad=True)
            output = layer(probe)[0, channel, row, column]
            (taps,) = torch.autograd.grad(output, probe)
            bias = layer.bias[channel].abs()
            above = torch.maximum(taps * lowest, taps * highest).clamp_min(0).sum() + bias
            below = torch.minimum(taps * lowest, taps * highest).clamp_max(0).sum() - bias
            expected = torch.maximum(above, -below)
            # A padding of 1 shifts which taps an output has.
            assert found[channel, (row + 1) % 2, (column + 1) % 2] == expected


def test_no_step_of_the_tanh_lies_near_a_border_of_grey_levels() -> None:
    steps = np.arange(1, 4 * TANH_STEPS)  # from 3.2 on, a pixel is white
    arguments = (steps.astype(np.float32) / np.float32(TANH_STEPS)).astype(float)
    levels = 127.5 * (np.tanh(np.concatenate([arguments, -arguments])) + 1)
    assert np.abs(levels - np.floor(levels) - 0.5).min() > 0.0016


@pytest.mark.parametrize("tanh", [torch.tanh, lambda x: 1 - 2 / ((2 * x).exp() + 1)])
def test_other_tanhs_give_the_same_pixels(tanh: Callable[[Tensor], Tensor]) -> None:
    steps = torch.arange(-4 * TANH_STEPS, 4 * TANH_STEPS + 1)
    arguments = steps.float() / TANH_STEPS
    levels = (255 * ((tanh(arguments) + 1) / 2)).round()
    reference = (127.5 * (torch.tanh(arguments.double()) + 1)).round()
    assert torch.equal(levels.double(), reference)
