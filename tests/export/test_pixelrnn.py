"""PixelRNN: fast recurrences against plain ones, masks, fields, and sampling by full passes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.families.row_lstm import RowLstm
from export.model import build_model
from export.pixelrnn import PixelRnn, colour_mask
from service.manifest import Image

FAMILIES = ("row_lstm",)


def make_model(
    make_recipe: Any, family: str, shape: tuple[int, int, int], values: str = "binary", **model: Any
) -> Any:
    """Build a model whose head says something: it starts by giving 0."""
    torch.manual_seed(0)
    built: Any = build_model(make_recipe(family, model=model), Image(shape=shape, values=values), 0)
    torch.nn.init.normal_(built.head.scores.free)
    return built


def plain_row_lstm(layer: RowLstm, features: Tensor) -> Tensor:
    """Run a layer row by row in plain torch, for autograd: (2h, H, W, N) -> (2h, H, W, N)."""
    _, _, width, num_images = features.shape
    hidden = features.new_zeros(layer.num_hidden, width, num_images)
    cell = hidden.flatten(1)
    rows = []
    for row in features.unbind(1):
        out, hidden, cell = layer.row(row, hidden, cell)
        rows.append(out)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_fast_row_recurrence_is_the_plain_one(num_channels: int) -> None:
    torch.manual_seed(0)
    layer = RowLstm(3, num_channels).double()
    features = torch.randn(6, 4, 5, 2, dtype=torch.double, requires_grad=True)
    fast, plain = layer(features), plain_row_lstm(layer, features)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(fast)
    sources = [features, *layer.parameters()]
    of_fast = torch.autograd.grad(fast, sources, direction)
    of_plain = torch.autograd.grad(plain, sources, direction)
    for gradient, expected in zip(of_fast, of_plain, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_colour_masks_let_blue_see_green_and_red() -> None:
    before, own = colour_mask("A", 3, 3, 3), colour_mask("B", 6, 3, 3)
    assert before.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert own.tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert colour_mask("A", 2, 1, 1).sum() == 0
    assert colour_mask("B", 2, 4, 1).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("values", ["binary", "8-bit"])
def test_the_untrained_model_has_independent_pixels(
    make_recipe: Any, family: str, values: str
) -> None:
    torch.manual_seed(0)
    recipe = make_recipe(family, model={"num_layers": 1, "hidden": 4, "head": 4, "levels": 4})
    model: Any = build_model(recipe, Image(shape=(1, 4, 4), values=values), 0)
    rng = np.random.default_rng(0)
    num_levels = 2 if values == "binary" else 4
    pixels = rng.binomial(num_levels - 1, 0.3, (500, 1, 4, 4)) * (255 // (num_levels - 1))
    model.initialize(torch.from_numpy(pixels.astype(np.uint8)))
    images = torch.from_numpy(pixels.astype(np.float32) / 255)
    with torch.no_grad():
        nll = -model.log_prob(images).mean().item()
    shares = [(pixels == level).mean(axis=0) for level in np.unique(pixels)]
    if values == "8-bit":  # one distribution for all places
        shares = [np.full((1, 4, 4), share.mean()) for share in shares]
    entropy = -sum((share * np.log(share)).sum() for share in shares)
    assert nll == pytest.approx(entropy, abs=0.02)  # smoothing by one observation


def row_lstm_field(row: int, column: int, shape: tuple[int, int], num_layers: int) -> set[Any]:
    """List what a pixel sees: the 7×7 context, widened by each layer to the left and upwards."""
    height, width = shape
    seen = set()
    # The centre tap of every layer and the left one: up to num_layers pixels to the left in the
    # row; and from a row r' above, everything within 3 taps of each state that reaches here.
    for up in range(row + 1):
        # Each step up moves by at most one column; each layer by one to the left.
        for shift in range(-up - num_layers, up + 1):
            at = column + shift
            if not 0 <= at < width:
                continue
            for above in range(4):
                span = range(-3, 4) if above else range(-3, 0)
                seen |= {(row - up - above, at + offset) for offset in span}
    return {(r, c) for r, c in seen if 0 <= r < height and 0 <= c < width}


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("row", "column"), [(0, 12), (1, 9), (3, 12), (4, 2), (4, 20)])
def test_the_field_of_a_row_lstm_is_a_triangle(
    make_recipe: Any, num_layers: int, row: int, column: int
) -> None:
    shape = (5, 24)
    model = make_model(
        make_recipe, "row_lstm", (1, *shape), num_layers=num_layers, hidden=4, head=8
    ).double()
    seen = field(model, row, column)
    assert seen == row_lstm_field(row, column, shape, num_layers)
    if (row, column) == (3, 12):
        assert (2, 20) not in seen  # by design: a row above is seen only near the column


def field(model: PixelRnn, row: int, column: int) -> set[Any]:
    """List the pixels on which a score depends, by the gradient."""
    torch.manual_seed(1)
    values = torch.rand(1, *model.image.shape[1:], 4, dtype=torch.double, requires_grad=True)
    features = model.context(values)
    for layer in model.layers:
        features = layer(features)
    (gradient,) = torch.autograd.grad(model.head(features)[:, row, column].sum(), values)
    return {tuple(place) for place in gradient[0].abs().sum(dim=2).nonzero().tolist()}
