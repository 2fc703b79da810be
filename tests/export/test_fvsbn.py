"""The prior by which the weights of near pixels learn from each other; the model stays the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from export.families.fvsbn import offsets
from export.model import build_model
from service.manifest import Image

HEIGHT, WIDTH = 3, 4
D = HEIGHT * WIDTH


def make(make_recipe: Any, channels: int = 1, **config: Any) -> Any:
    image = Image(shape=(channels, HEIGHT, WIDTH), values="binary")
    return build_model(make_recipe("fvsbn", model=config), image, num_classes=0)


def fill(kernels: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for kernel in kernels:
            kernel.copy_(torch.randn(kernel.shape, generator=generator))


def seen_from(d: int, k: int) -> tuple[int, int]:
    return d // WIDTH - k // WIDTH, k % WIDTH - d % WIDTH


def test_offsets_tell_where_an_earlier_pixel_lies() -> None:
    place, prices = offsets(HEIGHT, WIDTH)
    numbers: dict[tuple[int, int], int] = {}
    for d in range(D):
        for k in range(d):
            number = numbers.setdefault(seen_from(d, k), int(place[d, k]))
            assert number == place[d, k]
            rows, columns = seen_from(d, k)
            assert prices[number].item() == pytest.approx(1 + (rows**2 + columns**2) ** 0.5)
    assert len(set(numbers.values())) == len(numbers)


def test_one_kernel_gives_all_pixels_the_same_weights(make_recipe: Any) -> None:
    model = make(make_recipe, grids=[1], grid_decays=[0])
    fill(model.kernels)
    weights = model.weights()
    assert weights.equal(weights.tril(-1))
    found: dict[tuple[int, int], Tensor] = {}
    for d in range(D):
        for k in range(d):
            assert weights[d, k] == found.setdefault(seen_from(d, k), weights[d, k]) != 0


def test_kernels_are_interpolated_between_the_corners_of_the_image(make_recipe: Any) -> None:
    model = make(make_recipe, grids=[2], grid_decays=[0])
    fill(model.kernels)
    weights, (kernel,) = model.weights(), model.kernels
    place, _ = offsets(HEIGHT, WIDTH)
    last = D - 1  # the lower right corner
    for k in range(last):
        assert weights[last, k] == kernel[place[last, k], 1, 1]
    d, k = 1 * WIDTH + 3, 2  # halfway down the right side
    assert weights[d, k].item() == pytest.approx(kernel[place[d, k], :, 1].mean().item())


def test_parts_add_up_and_the_likelihood_is_that_of_the_sum(make_recipe: Any) -> None:
    parts = make(make_recipe, grids=[1, 3], grid_decays=[0, 1e-3], decay=1e-3)
    fill([*parts.kernels, parts.W])
    whole = make(make_recipe)
    with torch.no_grad():
        whole.W.copy_(parts.weights())
    images = (torch.rand(5, 1, HEIGHT, WIDTH) < 0.5).float()
    assert parts.log_prob(images).equal(whole.log_prob(images))
    assert parts.num_parameters() == whole.num_parameters() == D * (D - 1) // 2 + D
    for role, module in parts.graphs().items():
        if role == "log_prob":
            assert module(images)[0].equal(whole.graphs()["log_prob"](images)[0])


def test_the_price_of_a_weight_grows_with_its_distance(make_recipe: Any) -> None:
    model = make(make_recipe, decay=0.5, distance_power=2)
    with torch.no_grad():
        model.W[WIDTH, 0] = 3  # the pixel above
        model.W[0, 5] = 7  # not before: no weight at all
    assert model.penalty().item() == pytest.approx(0.5 * (1 + 1) ** 2 * 3**2)
    with torch.no_grad():
        model.W[WIDTH, 0] = 0
        model.W[2 * WIDTH, 0] = 3  # the one above that
    assert model.penalty().item() == pytest.approx(0.5 * (1 + 2) ** 2 * 3**2)


def test_every_kernel_has_its_price(make_recipe: Any) -> None:
    model = make(make_recipe, grids=[1, 2], grid_decays=[0, 0.25])
    place, _ = offsets(HEIGHT, WIDTH)
    with torch.no_grad():
        model.kernels[0][place[1, 0]] = 5
        model.kernels[1][place[1, 0], 0, 1] = 2
    assert model.penalty().item() == pytest.approx(0.25 * 2**2)


def test_training_pays_the_price(make_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(make_recipe, decay=1)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    images = (torch.rand(5, 1, HEIGHT, WIDTH) < 0.5).float()
    with torch.no_grad():
        model.W[1, 0] = 2
    nll = -model.log_prob(images).mean()
    loss = model.training_step((images, torch.zeros(5)), 0)
    assert (loss - nll).item() == pytest.approx(2**2, rel=1e-5)


def test_without_a_prior_there_is_nothing_to_pay(make_recipe: Any) -> None:
    model = make(make_recipe)
    with torch.no_grad():
        model.W.fill_(1)
    assert model.penalty() == 0


def test_a_grid_without_a_price_is_refused(make_recipe: Any) -> None:
    with pytest.raises(ValueError, match="2 grids need as many grid_decays, got 1"):
        make(make_recipe, grids=[1, 2], grid_decays=[0])


@pytest.mark.parametrize("prior", [{"decay": 1}, {"grids": [1], "grid_decays": [0]}])
def test_a_prior_for_colour_is_refused(make_recipe: Any, prior: Any) -> None:
    with pytest.raises(ValueError, match="grey images, these have 3 channels"):
        make(make_recipe, channels=3, **prior)
