import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from export.convert import check_graph, export_graph, golden_inputs, realigned
from export.data import Images
from export.graph import Graph
from export.model import GenerativeModel, build_model
from service.manifest import Image


def make_model(
    make_recipe: Any, family: str, size: int = 28, values: str = "binary", **model: Any
) -> GenerativeModel:
    torch.manual_seed(0)
    image = Image(shape=(1, size, size), values=values)
    return build_model(make_recipe(family, model=model), image, 0)


def binary_images(num_images: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(num_images, 1, size, size, generator=generator) < 0.3).float()


@pytest.mark.parametrize(
    ("family", "model", "expected"),
    [
        ("bernoulli", {}, 784),
        ("markov", {"order": 1}, 2 * 784 - 1),
        ("markov", {"order": 5}, sum(2 ** min(i, 5) for i in range(784))),
        ("nade", {"hidden": 500}, 785_284),  # 2DH + D + H
    ],
)
def test_the_number_of_parameters(
    make_recipe: Any, family: str, model: dict[str, Any], expected: int
) -> None:
    assert make_model(make_recipe, family, **model).num_parameters() == expected


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


@pytest.mark.parametrize("family", ["bernoulli", "markov", "nade"])
def test_binary_families_refuse_grey_images(make_recipe: Any, family: str) -> None:
    """On greys their formula is a cross-entropy and no log-likelihood."""
    with pytest.raises(ValueError, match=r"set data.binarization"):
        make_model(make_recipe, family, values="8-bit")


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


def test_a_pixel_of_the_nade_sampler_costs_two_gemms_and_three_cheap_operators(
    make_recipe: Any, tmp_path: Path
) -> None:
    """Other wordings of the same step are two to four times slower."""
    model = make_model(make_recipe, "nade", size=4, hidden=6).requires_grad_(False)
    module = model.graphs()["generate"]
    path = tmp_path / "generate.onnx"
    export_graph(module, "generate", inputs_for(model, module, 4), path)
    (scan,) = (node for node in onnx.load(path).graph.node if node.op_type == "Scan")
    (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
    operators = sorted(node.op_type for node in body.node)
    assert operators == ["Cast", "Gemm", "Gemm", "Less", "Sigmoid"]


def inputs_for(model: GenerativeModel, module: torch.nn.Module, size: int) -> Any:
    pixels = (255 * binary_images(8, size)).to(torch.uint8).numpy()
    return golden_inputs(model, module, Images(pixels, np.zeros(8, dtype=np.int64)))


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("bernoulli", "binary"),
        ("dcgan", "8-bit"),
        ("diagonal_bilstm", "binary"),
        ("markov", "binary"),
        ("nade", "binary"),
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
        "dcgan": {"latent_dim": 64, "generator_channels": [192, 96]},
        # Of the shipped width; each further layer is the same again, and seconds more.
        "diagonal_bilstm": {"num_layers": 1, "hidden": 16, "head": 32},
        "row_lstm": {"num_layers": 1, "hidden": 16, "head": 64},
    }
    model = make_model(make_recipe, family, 28, values, **sizes.get(family, {}))
    for parameter in model.requires_grad_(False).parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))  # some heads begin by giving 0
    for role, module in model.graphs().items():
        inputs = inputs_for(model, module, 28)
        path = tmp_path / f"{role}.onnx"
        export_graph(module, role, inputs, path)
        together = check_graph(path, module, inputs, spare_share=1.0)  # batches are the matter
        graph = Graph(path)
        for start, stop in ((0, 1), (5, 6), (7, 8), (1, 3), (2, 5), (3, 8), (0, 7)):
            rows = {name: realigned(array[start:stop]) for name, array in inputs.items()}
            for name, array in graph(rows).items():
                assert array.tobytes() == together[name][start:stop].tobytes(), (role, name)
