"""Bounds against densities that are known: linear-Gaussian, and a latent that can be integrated."""

import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.bounds import both_bounds, log_weights, predicted_classes
from export.convert import check_graph, convert, export_graph, golden_inputs, realigned
from export.data import Images, load_split
from export.evaluate import evaluate, evaluate_over_http, read_metrics
from export.families.vae import Config, Model
from export.graph import Graph
from export.likelihoods import Likelihood
from export.publish import publish
from export.recipe import Recipe, TrainingConfig
from export.train import initial_nll, load_model, new_model, read_run, train
from service.manifest import Image, Values, read_manifest
from service.scoring import log_mean_exp
from service.service import Service
from service.settings import Settings

FloatArray = NDArray[np.float64]

SIDE, LATENT_DIM, STD = 4, 3, 0.6
DIMS = SIDE * SIDE


def make_model(size: int = 28, values: Values = "binary", **config: Any) -> Model:
    torch.manual_seed(0)
    image = Image(shape=(1, size, size), values=values)
    training = TrainingConfig(epochs=1, batch_size=1)
    num_classes = 10 if config.get("conditional") else 0
    return Model(Config(**config), image, num_classes, training)


class Gaussian(Likelihood):
    """x = output + noise of a fixed standard deviation."""

    num_outputs = 1

    def initial_outputs(self, mean: Tensor) -> Tensor:
        return mean[None]

    def log_prob(self, values: Tensor, outputs: Tensor) -> Tensor:
        square = ((values - outputs[:, :, 0]) / STD).square()
        return -square / 2 - math.log(STD * math.sqrt(2 * math.pi))

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0]


class LinearDecoder(nn.Module):
    """W z + b, as a picture."""

    def __init__(self, weight: FloatArray, bias: FloatArray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        return (latent @ self.weight.T + self.bias).reshape(-1, 1, SIDE, SIDE)


class LinearEncoder(nn.Module):
    """A Gaussian whose mean is linear in the image."""

    def __init__(self, weight: FloatArray, bias: FloatArray, log_var: FloatArray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
        self.log_var = nn.Parameter(torch.tensor(log_var, dtype=torch.float32))

    def forward(self, image: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean = (image.flatten(1) - self.bias) @ self.weight.T
        return mean, self.log_var + 0 * mean


class Linear(NamedTuple):
    """A linear-Gaussian autoencoder as a graph, and what is known of it in closed form."""

    graph: Graph
    images: Images
    log_prob: FloatArray
    elbo: FloatArray


def linear_case(path: Path, *, exact: bool) -> Linear:
    """Export x = Wz + b + STD·ε with a posterior that is exact, or too narrow and off its place."""
    rng = np.random.default_rng(0)
    # Orthogonal columns: the exact posterior has independent dims, as the encoder's has.
    weight = np.linalg.qr(rng.normal(size=(DIMS, LATENT_DIM)))[0] * [0.5, 1.0, 2.0]
    bias = rng.uniform(0.3, 0.7, DIMS)
    precision = np.eye(LATENT_DIM) + weight.T @ weight / STD**2
    gain = np.linalg.solve(precision, weight.T / STD**2)
    variance = 1 / np.diag(precision)
    q_gain, q_variance = (gain, variance) if exact else (0.7 * gain, 0.6 * variance)

    model = make_model(SIDE, "8-bit", latent_dim=LATENT_DIM, decoder_channels=())
    model.likelihood = Gaussian()
    model.decoder = LinearDecoder(weight, bias)  # type: ignore[assignment]
    model.encoder = LinearEncoder(q_gain, bias, np.log(q_variance))  # type: ignore[assignment]
    model.requires_grad_(False)
    images = Images(
        rng.integers(0, 256, (40, 1, SIDE, SIDE), dtype=np.uint8), np.zeros(40, dtype=np.int64)
    )
    module = model.graphs()["log_prob"]
    export_graph(module, "log_prob", golden_inputs(model, module, images), path)

    centred = images[:].values.reshape(40, DIMS).astype(np.float64) - bias
    covariance = weight @ weight.T + STD**2 * np.eye(DIMS)
    square = (centred * np.linalg.solve(covariance, centred.T).T).sum(axis=1)
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    log_prob = -(square + log_det) / 2
    # KL between Gaussians with independent dims.
    shift = centred @ (q_gain - gain).T
    ratio = q_variance / variance
    divergence = ((shift**2 / variance + ratio - 1 - np.log(ratio)).sum(axis=1)) / 2
    return Linear(Graph(path), images, log_prob, log_prob - divergence)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Linear:
    return linear_case(tmp_path_factory.mktemp("linear") / "log_prob.onnx", exact=False)


def drawn_weights(linear: Linear, num_samples: int = 20_000) -> FloatArray:
    return np.concatenate(list(log_weights(linear.graph, linear.images, num_samples)))


def mean_bounds(weights: FloatArray, num_samples: int) -> tuple[FloatArray, FloatArray]:
    """Average the bound of K samples over independent groups of them; mean and its error, (N,)."""
    groups = weights.reshape(len(weights), -1, num_samples)
    bounds = np.stack([log_mean_exp(group) for group in groups])
    return bounds.mean(axis=1), bounds.std(axis=1, ddof=1) / math.sqrt(bounds.shape[1])


class TestLinearGaussian:
    def test_bounds_are_ordered_and_below_the_exact_density(self, linear: Linear) -> None:
        weights = drawn_weights(linear)
        bounds = [mean_bounds(weights, number)[0].mean() for number in (1, 5, 50, 1000)]
        assert all(loose < tight for loose, tight in pairwise(bounds))
        assert bounds[-1] < linear.log_prob.mean()
        assert linear.log_prob.mean() - bounds[0] > 0.1  # or the order would say little

    def test_the_bound_of_one_sample_is_the_elbo_on_average(self, linear: Linear) -> None:
        mean, error = mean_bounds(drawn_weights(linear), 1)
        # 40 images, five standard errors, and single precision.
        assert (np.abs(mean - linear.elbo) < 5 * error + 1e-4).all()

    def test_the_mean_weight_is_the_density(self, linear: Linear) -> None:
        """E[w] = p(x) exactly, whatever the posterior is."""
        weights = drawn_weights(linear)
        ratios = np.exp(weights - linear.log_prob[:, None])
        error = ratios.std(axis=1, ddof=1) / math.sqrt(ratios.shape[1])
        assert (np.abs(ratios.mean(axis=1) - 1) < 5 * error + 1e-3).all()

    def test_with_the_exact_posterior_every_weight_is_the_density(self, tmp_path: Path) -> None:
        exact = linear_case(tmp_path / "log_prob.onnx", exact=True)
        weights = drawn_weights(exact, 100)
        # No variance at all but for single precision.
        np.testing.assert_allclose(weights, np.tile(exact.log_prob[:, None], 100), atol=2e-3)
        elbo, iwae = both_bounds(exact.graph, exact.images, 100)
        np.testing.assert_allclose(elbo, exact.log_prob, atol=2e-3)
        np.testing.assert_allclose(iwae, exact.log_prob, atol=2e-3)

    def test_the_graph_and_its_measurement_agree(self, linear: Linear) -> None:
        """log_prob of the graph is log_mean_exp of its log_weight."""
        noise = np.random.default_rng(1).normal(size=(40, 33, LATENT_DIM)).astype(np.float32)
        outputs = linear.graph({"image": linear.images[:].values, "noise": noise})
        expected = log_mean_exp(outputs["log_weight"].astype(np.float64))
        np.testing.assert_allclose(outputs["log_prob"], expected, atol=1e-4)


@pytest.fixture(scope="module", params=[1, 2])
def small(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_recipe: Any
) -> Path:
    """A Bernoulli autoencoder of 3×3 pixels with one or two latents, trained as any other."""
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(2)
    factors = rng.random((600, 2, 1, 1)) < 0.5
    probs = np.where(factors[:, 0] & (np.arange(9).reshape(3, 3) < 5), 0.9, 0.2)
    probs = np.where(factors[:, 1] & (np.arange(9).reshape(3, 3) % 3 == 2), 0.95, probs)
    pixels = 255 * (rng.random((600, 3, 3)) < probs)
    np.savez(folder / "data.npz", train_images=pixels.astype(np.uint8))
    config = {"latent_dim": request.param, "hidden": 32}
    recipe = make_recipe(
        "vae",
        model=config | {"encoder_channels": [], "decoder_channels": []},
        data={"source": str(folder / "data.npz"), "binarization": "threshold"},
        training={"epochs": 12, "learning_rate": 1e-2},
    )
    train(recipe, folder)
    return convert(recipe, folder)


def all_images() -> Images:
    bits = np.array(list(product([0, 255], repeat=9)), dtype=np.uint8)
    return Images(bits.reshape(-1, 1, 3, 3), np.zeros(512, dtype=np.int64))


def integrated_log_prob(bundle: Path) -> FloatArray:
    """Integrate p(x|z) N(z; 0, I) over a grid of latents, by the generate graph alone, (512,)."""
    generate = Graph(bundle / "generate.onnx", 4096)
    latent_dim = generate.inputs["noise"][1]
    axis = np.linspace(-6, 6, 241)
    grid = np.stack(np.meshgrid(*[axis] * latent_dim), axis=-1).reshape(-1, latent_dim)
    density = np.exp(-(grid**2).sum(axis=1) / 2)
    density /= density.sum()
    on = generate({"noise": grid.astype(np.float32)})["image"].reshape(-1, 9).astype(np.float64)
    on = on.clip(1e-7, 1 - 1e-7)  # single precision rounds far latents to certainty
    bits = all_images()[:].values.reshape(-1, 9)
    log_likelihood = np.log(on) @ bits.T + np.log1p(-on) @ (1 - bits.T)  # (grid, 512)
    result: FloatArray = np.log(density @ np.exp(log_likelihood))
    return result


class TestSmallBernoulli:
    def test_many_samples_reach_the_integral_over_the_latent(self, small: Path) -> None:
        graph = Graph(small / "log_prob.onnx")
        elbo, iwae = both_bounds(graph, all_images(), 2000)
        exact = integrated_log_prob(small)
        # The spread of 2,000 weights; a rare image is far from what the encoder has seen.
        np.testing.assert_allclose(iwae, exact, atol=0.25)
        assert np.abs(iwae - exact).mean() < 0.03
        assert (elbo < exact + 0.05).all()

    def test_the_probabilities_of_all_images_sum_to_one(self, small: Path) -> None:
        assert np.exp(integrated_log_prob(small)).sum() == pytest.approx(1, abs=1e-6)
        _, iwae = both_bounds(Graph(small / "log_prob.onnx"), all_images(), 2000)
        assert np.exp(iwae).sum() == pytest.approx(1, abs=0.02)

    def test_it_learnt_what_depends_on_what(self, small: Path) -> None:
        probs = np.exp(integrated_log_prob(small))
        bits = all_images()[:].values.reshape(-1, 9)
        mean = probs @ bits
        covariance = (bits - mean).T @ ((bits - mean) * probs[:, None])
        assert covariance[0, 1] > 0.05


class TestGradient:
    def test_the_drawn_term_is_the_gradient_of_the_bound_on_average(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each term, times how likely it is drawn, adds up to it; for the encoder, doubly."""
        number = 4
        sizes = {"encoder_channels": (2,), "decoder_channels": (2,), "latent_dim": 3, "hidden": 8}
        model = make_model(8, num_importance_samples=number, **sizes)
        monkeypatch.setattr(model, "log", lambda *args, **more: None)
        images = (torch.rand(1, 1, 8, 8) < 0.4).float()
        noise = torch.randn(1, number, 3)
        monkeypatch.setattr(model, "_draw_noise", lambda *shape: noise)
        weights = model.log_weights(images, noise)
        shares = torch.softmax(weights.detach(), dim=1)
        torch.autograd.backward(-torch.logsumexp(weights, dim=1).sum())
        model.encoder.zero_grad()
        posterior = model.encoder(images)
        doubly = [
            shares[:, k]
            * model.doubly_reparameterized(
                images, noise[:, k : k + 1], shares[:, k : k + 1], None, *posterior
            )
            for k in range(number)
        ]
        parameters = list(model.encoder.parameters())
        of_encoder = torch.autograd.grad(-torch.stack(doubly).sum(), parameters)
        of_decoder = [parameter.grad for parameter in model.decoder.parameters()]
        expected = [*of_encoder, *of_decoder]

        parameters += model.decoder.parameters()
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for term, share in enumerate(shares[0]):
            model.zero_grad()
            monkeypatch.setattr(
                torch, "multinomial", lambda probs, n, term=term: torch.tensor([[term]])
            )
            model.training_step((images, torch.zeros(1, dtype=torch.int64)), 0).backward()
            for part, parameter in zip(total, parameters, strict=True):
                assert parameter.grad is not None
                part.add_(share * parameter.grad)
        for part, gradient in zip(total, expected, strict=True):
            torch.testing.assert_close(part, gradient, atol=1e-5, rtol=1e-4)

    def test_the_gradient_of_the_encoder_is_that_of_the_bound_with_less_noise(self) -> None:
        """On average over the noise."""
        number, rows = 3, 2000
        sizes = {"encoder_channels": (2,), "decoder_channels": (2,), "latent_dim": 3, "hidden": 8}
        model = make_model(8, num_importance_samples=number, **sizes)
        with torch.no_grad():  # a latent tells something, and the posterior is not the prior
            model.decoder.project.weight.mul_(4)
            model.encoder.posterior.weight.mul_(4)
        images = (torch.rand(1, 1, 8, 8) < 0.4).float().expand(rows, -1, -1, -1)
        plain, doubly = [], []
        for _ in range(20):
            noise = torch.randn(rows, number, 3)
            posterior = model.encoder(images)
            weights = model.log_weights(images, noise)
            shares = torch.softmax(weights.detach(), dim=1)
            terms = [
                shares[:, k : k + 1]
                * model.doubly_reparameterized(
                    images, noise[:, k : k + 1], shares[:, k : k + 1], None, *posterior
                )
                for k in range(number)
            ]
            for found, bound in (
                (plain, torch.logsumexp(weights, dim=1)),
                (doubly, torch.cat(terms, dim=1).sum(dim=1)),
            ):
                parameters = list(model.encoder.parameters())
                gradients = torch.autograd.grad(bound.mean(), parameters, retain_graph=True)
                found.append(torch.cat([gradient.flatten() for gradient in gradients]))
        difference = torch.stack(doubly) - torch.stack(plain)
        error = difference.std(dim=0) / math.sqrt(20)
        assert torch.stack(plain).mean(dim=0).abs().max() > 0.1
        assert (difference.mean(dim=0).abs() < 6 * error + 1e-5).all()
        assert torch.stack(doubly).std(dim=0).sum() < 0.9 * torch.stack(plain).std(dim=0).sum()

    def test_the_elbo_in_closed_form_is_the_mean_of_log_weights(self) -> None:
        sizes = {"encoder_channels": (2,), "decoder_channels": (2,), "latent_dim": 3, "hidden": 8}
        model = make_model(8, **sizes).requires_grad_(False)
        images = (torch.rand(3, 1, 8, 8) < 0.4).float()
        noise = torch.randn(3, 20_000, 3)
        weights = model.log_weights(images, noise)
        posterior = [part.repeat_interleave(20_000, dim=0) for part in model.encoder(images)]
        many = images.repeat_interleave(20_000, dim=0)
        bounds = model.elbo(many, noise.reshape(-1, 1, 3), None, *posterior).reshape(3, -1)
        error = (weights - bounds).std(dim=1) / math.sqrt(20_000)
        assert ((weights.mean(dim=1) - bounds.mean(dim=1)).abs() < 5 * error + 1e-4).all()
        assert (bounds.std(dim=1) < weights.std(dim=1)).all()

    def test_early_epochs_raise_the_elbo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model(8, num_importance_samples=7, elbo_epochs=2)
        monkeypatch.setattr(model, "_trainer", object())
        for epoch, number in ((0, 1), (1, 1), (2, 7)):
            monkeypatch.setattr(type(model), "current_epoch", epoch)
            assert model._num_samples() == number


def test_step_0_is_the_independent_model(make_recipe: Any) -> None:
    recipe = make_recipe("vae")
    split = load_split(recipe.data)
    nll = initial_nll(new_model(recipe, split), split)
    mean = split.train.values.mean(axis=0).clip(1e-4, 1 - 1e-4)
    test = split.test.values
    independent = -(test * np.log(mean) + (1 - test) * np.log(1 - mean)).sum(axis=(1, 2, 3)).mean()
    # The untrained decoder adds a little that depends on the latent.
    assert nll == pytest.approx(independent, rel=0.1)


@pytest.mark.parametrize(
    ("values", "conditional"), [("binary", False), ("binary", True), ("8-bit", True)]
)
def test_rows_have_the_same_bits_in_every_batch(
    tmp_path: Path, values: Values, conditional: bool
) -> None:
    """At 28×28, with any number of samples: which instructions a kernel takes depends on sizes."""
    sizes = {"encoder_channels": (16, 32), "decoder_channels": (32, 8)}
    model = make_model(28, values, conditional=conditional, **sizes).requires_grad_(False)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2 if values == "binary" else 256, (8, 1, 28, 28)) * (
        255 if values == "binary" else 1
    )
    images = Images(pixels.astype(np.uint8), np.arange(8))
    for role, module in model.graphs().items():
        inputs = golden_inputs(model, module, images)
        path = tmp_path / f"{role}.onnx"
        export_graph(module, role, inputs, path)
        graph = Graph(path)
        for number in (1, 5, 33, 50) if role == "log_prob" else (0,):
            if number:
                noise = rng.normal(size=(8, number, 32))
                inputs["noise"] = noise.astype(np.float32)
            together = check_graph(path, module, inputs)  # against torch, at 1, 2, 7 and 8 rows
            for start, stop in ((0, 1), (5, 6), (7, 8), (1, 3), (2, 5), (3, 8), (0, 7)):
                rows = {name: realigned(array[start:stop]) for name, array in inputs.items()}
                for name, array in graph(rows).items():
                    assert array.tobytes() == together[name][start:stop].tobytes(), (role, name)


def test_samples_have_the_same_bits_however_they_are_split(tmp_path: Path) -> None:
    model = make_model(28).requires_grad_(False)
    module = model.graphs()["log_prob"]
    images = Images(np.full((8, 1, 28, 28), 255, np.uint8), np.zeros(8, np.int64))
    inputs = golden_inputs(model, module, images)
    export_graph(module, "log_prob", inputs, tmp_path / "log_prob.onnx")
    graph = Graph(tmp_path / "log_prob.onnx")
    noise = np.random.default_rng(0).normal(size=(8, 50, 32)).astype(np.float32)
    whole = graph({"image": inputs["image"], "noise": noise})["log_weight"]
    for first, last in ((0, 1), (0, 25), (17, 50)):
        part = {"image": inputs["image"], "noise": noise[:, first:last].copy()}
        np.testing.assert_array_equal(graph(part)["log_weight"], whole[:, first:last])


@pytest.mark.parametrize("size", [27, 30])
def test_sizes_that_it_cannot_make_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 4; the images are {size}×{size}"):
        make_model(size)


def test_a_conditional_model_needs_classes() -> None:
    image = Image(shape=(1, 28, 28), values="8-bit")
    training = TrainingConfig(epochs=1, batch_size=1)
    with pytest.raises(ValueError, match="needs data with classes"):
        Model(Config(conditional=True), image, 0, training)


@pytest.mark.parametrize(("conditional", "more"), [(False, 0), (True, 2 * 10 * 256)])
def test_the_number_of_parameters(conditional: bool, more: int) -> None:
    sizes = {"encoder_channels": (16, 32), "decoder_channels": (32, 8)}
    encoder = (16 * 16 + 16) + (16 * 32 * 16 + 32) + (1568 * 256 + 256) + (256 * 64 + 64)
    decoder = (32 * 256 + 256) + (256 * 1568 + 1568) + (32 * 32 * 9 + 32) + (8 * 4 * 9 + 4) + 784
    model = make_model(28, conditional=conditional, **sizes)
    assert model.num_parameters() == encoder + decoder + more


CONDITIONAL = [False, True]


@pytest.fixture(scope="module", params=CONDITIONAL, ids=["plain", "conditional"])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_recipe: Any
) -> tuple[Recipe, Path]:
    """A trained, converted and evaluated run: binary, or 8-bit with three classes of stripes."""
    folder = tmp_path_factory.mktemp("finished")
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 300)
    stripes = np.arange(8)[None, :] // 2 % 3 == labels[:, None]
    pixels = np.clip(200 * stripes[:, None, :] + rng.integers(0, 56, (300, 8, 8)), 0, 255)
    arrays = {"train_images": pixels.astype(np.uint8), "train_labels": labels}
    np.savez(folder / "data.npz", classes=np.array(["a", "b", "c"]), **arrays)
    binarization = "none" if request.param else "fixed"
    recipe = make_recipe(
        "vae",
        data={"source": str(folder / "data.npz"), "binarization": binarization},
        model={
            "latent_dim": 3,
            "hidden": 16,
            "encoder_channels": [4],
            "decoder_channels": [4],
            "conditional": request.param,
            "num_importance_samples": 3,
            "elbo_epochs": 1,
        },
        training={"epochs": 4, "ema_decay": 0.9},
    )
    train(recipe, folder / "run")
    convert(recipe, folder / "run")
    evaluate(recipe, folder / "run")
    return recipe, folder / "run"


def test_elbo_and_iwae_are_told_with_their_samples(finished: tuple[Recipe, Path]) -> None:
    recipe, run = finished
    iwae, elbo, bits, *more = read_metrics(run / "bundle")
    assert (iwae.name, iwae.protocol) == ("nll_iwae", f"{recipe.protocol}, K = 1,000")
    assert (elbo.name, elbo.protocol) == ("nll_elbo", f"{recipe.protocol}, K = 1")
    assert (bits.name, bits.protocol) == ("bits_per_dim", iwae.protocol)
    assert iwae.value < elbo.value
    assert bits.value == pytest.approx(iwae.value / (64 * math.log(2)))
    assert [metric.num_images for metric in (iwae, elbo, bits)] == [30] * 3
    assert [metric.name for metric in more] == ["bayes_accuracy"] * recipe.model["conditional"]
    if more:
        assert more[0].value > 0.9  # stripes are easy to tell apart
        assert more[0].protocol.endswith("K = 10")


def test_bayes_rule_takes_the_class_under_which_an_image_is_likeliest(
    finished: tuple[Recipe, Path],
) -> None:
    recipe, run = finished
    if not recipe.model["conditional"]:
        pytest.skip("no classes")
    test = load_split(recipe.data).test
    graph = Graph(run / "bundle" / "log_prob.onnx")
    predicted = predicted_classes(graph, test, 3, num_samples=20)
    scores = [
        np.concatenate([log_mean_exp(w) for w in log_weights(graph, test, 20, labels)])
        for labels in (np.full(len(test), number) for number in range(3))
    ]
    np.testing.assert_array_equal(predicted, np.argmax(scores, axis=0))


def test_training_raises_the_bound(finished: tuple[Recipe, Path]) -> None:
    _, run = finished
    before = read_run(run)["initial_nll"]
    assert read_metrics(run / "bundle")[0].value < before - 1


def test_a_bundle_is_served(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, run = finished
    publish(recipe, run, tmp_path)
    service = Service(Settings(model_store=tmp_path, num_threads=1))
    service.catalog.load()
    service.workers.close()
    assert service.catalog.broken == {}
    (model,) = service.catalog.models()
    assert model.is_bound
    scoring = ("log_prob", "classify") if recipe.model["conditional"] else ("log_prob",)
    assert model.manifest.operations == (
        "sample",
        "interpolate",
        *scoring,
        "encode",
        "reconstruct",
    )
    assert model.manifest.labels == (("a", "b", "c") if recipe.model["conditional"] else ())


def test_the_service_is_asked_for_the_elbo(
    finished: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = finished
    test = load_split(recipe.data).test
    elbo, _ = both_bounds(Graph(run / "bundle" / "log_prob.onnx"), test, num_samples=1)
    asked: list[str] = []

    def answer(address: str, pixels: Any) -> Any:
        asked.append(address)
        return elbo

    monkeypatch.setattr("export.evaluate._ask_log_prob", answer)
    measured = evaluate_over_http("http://127.0.0.1:1", "tiny", recipe)
    assert (measured.name, measured.protocol) == ("nll_elbo", f"{recipe.protocol}, K = 1")
    assert measured.value == pytest.approx(-elbo.mean())
    labels = parse_qs(urlsplit(asked[0]).query).get("labels")
    sent = ",".join(map(str, test.labels.tolist()))
    assert labels == ([sent] if recipe.model["conditional"] else None)


def test_the_card_explains_what_is_shown_and_its_python_runs(
    finished: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = finished
    folder = publish(recipe, run, tmp_path)
    card = (folder / "README.md").read_text(encoding="utf-8")
    for needed in (
        "the mean of p(image given latent)",
        "K = 1,000",
        "negative bound",
        "1509.00519",
    ):
        assert needed in card
    blocks = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["images"].shape == (16, 1, 8, 8)
    assert names["log_prob"].shape == (16,)
    assert read_manifest(folder).density == "bound"


def test_the_image_shown_is_the_mean_of_the_decoder(finished: tuple[Recipe, Path]) -> None:
    recipe, run = finished
    model: Any = load_model(recipe, run, load_split(recipe.data)).requires_grad_(False)
    noise = torch.randn(5, 3)
    labels = torch.arange(5) % 3 if recipe.model["conditional"] else None
    outputs = model.decoder(noise, labels).reshape(5, model.likelihood.num_outputs, 1, 8, 8)
    inputs = (noise,) if labels is None else (noise, labels)
    shown = model.graphs()["generate"](*inputs)
    torch.testing.assert_close(shown, model.likelihood.mean(outputs))
    assert 0 <= shown.min() <= shown.max() <= 1
