"""PixelRNN: fast recurrences against plain ones, masks, fields, and sampling by full passes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.families.diagonal_bilstm import DiagonalBiLstm
from export.families.row_lstm import RowLstm
from export.model import build_model
from export.pixelrnn import PixelRnn, colour_mask, lstm_cell
from service.manifest import Image

FAMILIES = ("row_lstm", "diagonal_bilstm")


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


def plain_diagonal_bilstm(layer: DiagonalBiLstm, features: Tensor) -> Tensor:
    """Run a layer pixel by pixel, as section 3.2 of the paper says."""
    _, height, width, num_images = features.shape
    zeros = features.new_zeros(layer.num_hidden, num_images)
    maps = []
    for direction, weights in enumerate(layer.directions):
        to_state, beside, above, bias = weights.parts()
        hidden: dict[tuple[int, int], Tensor] = {}
        cell: dict[tuple[int, int], Tensor] = {}
        for row in range(height):
            for column in range(width) if direction == 0 else reversed(range(width)):
                before = (row, column - 1 if direction == 0 else column + 1)
                gates = bias + to_state @ features[:, row, column]
                gates = gates + beside @ hidden.get(before, zeros)
                gates = gates + above @ hidden.get((row - 1, column), zeros)
                place = (row, column)
                hidden[place], cell[place] = lstm_cell(gates, cell.get(before, zeros))
        flat = [hidden[row, column] for row in range(height) for column in range(width)]
        maps.append(torch.stack(flat, dim=1).unflatten(1, (height, width)))
    from_right = torch.cat([torch.zeros_like(maps[1][:, :1]), maps[1][:, :-1]], dim=1)
    update: Tensor = layer.out(maps[0] + from_right)
    return features + update


@pytest.mark.parametrize(
    ("make", "plain"), [(RowLstm, plain_row_lstm), (DiagonalBiLstm, plain_diagonal_bilstm)]
)
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("shape", [(4, 5), (5, 2), (1, 3), (3, 1)])
def test_the_fast_recurrence_is_the_plain_one(
    make: Any, plain: Any, num_channels: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = make(3, num_channels).double()
    features = torch.randn(6, *shape, 2, dtype=torch.double, requires_grad=True)
    fast, expected = layer(features), plain(layer, features)
    torch.testing.assert_close(fast, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(fast)
    sources = [features, *layer.parameters()]
    of_fast = torch.autograd.grad(fast, sources, direction)
    of_plain = torch.autograd.grad(expected, sources, direction)
    for gradient, reference in zip(of_fast, of_plain, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [RowLstm, DiagonalBiLstm])
def test_the_gradient_of_a_layer_is_that_of_finite_differences(make: Any) -> None:
    torch.manual_seed(0)
    layer = make(2, 1).double()
    features = torch.randn(4, 2, 3, 1, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (features,))


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


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("row", "column"), [(0, 5), (2, 0), (3, 9), (4, 11)])
def test_a_diagonal_bilstm_sees_the_pixels_before_it_and_nothing_else(
    make_recipe: Any, num_layers: int, row: int, column: int
) -> None:
    shape = (5, 12)
    model = make_model(
        make_recipe, "diagonal_bilstm", (1, *shape), num_layers=num_layers, hidden=4, head=8
    ).double()
    earlier = {(r, c) for r in range(5) for c in range(12) if (r, c) < (row, column)}
    # Mask A hides a pixel from its own features, and those of the last one in a row are where
    # the second direction begins: beyond the 7×7 context nothing tells the next row of it.
    hidden = {(row - 1, 11)} if column + 3 < 11 else set()
    assert field(model, row, column) == earlier - hidden


@pytest.mark.parametrize("family", FAMILIES)
def test_colours_see_those_before_them_in_their_pixel(make_recipe: Any, family: str) -> None:
    model = make_model(
        make_recipe, family, (3, 3, 4), "8-bit", num_layers=2, hidden=12, head=48, levels=4
    ).double()  # so many features that not all ReLUs of a colour are closed
    values = torch.rand(3, 3, 4, 2, dtype=torch.double, requires_grad=True)
    features = model.context(values)
    for layer in model.layers:
        features = layer(features)
    scores = model.head(features).unflatten(0, (3, 4))
    for channel in range(3):
        (gradient,) = torch.autograd.grad(scores[channel, :, 1, 1].sum(), values, retain_graph=True)
        seen = gradient.abs().sum(dim=3) > 0
        assert seen[:, 1, 1].tolist() == [other < channel for other in range(3)]
        assert seen[:, 0].all()
        assert seen[:, 1, 0].all()
        assert not seen[:, 1, 2:].any()
        assert not seen[:, 2].any()


def field(model: PixelRnn, row: int, column: int) -> set[Any]:
    """List the pixels on which a score depends, by the gradient."""
    torch.manual_seed(1)
    values = torch.rand(1, *model.image.shape[1:], 4, dtype=torch.double, requires_grad=True)
    features = model.context(values)
    for layer in model.layers:
        features = layer(features)
    (gradient,) = torch.autograd.grad(model.head(features)[:, row, column].sum(), values)
    return {tuple(place) for place in gradient[0].abs().sum(dim=2).nonzero().tolist()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("values", "channels", "levels"), [("binary", 1, 2), ("8-bit", 1, 20), ("8-bit", 3, 4)]
)
def test_sampling_with_a_cache_is_sampling_by_full_passes(
    make_recipe: Any, family: str, values: str, channels: int, levels: int
) -> None:
    """The textbook sampler: one pass of the training code over the image for every value."""
    shape = (channels, 4, 5)
    model = make_model(
        make_recipe, family, shape, values, num_layers=2, hidden=6, head=6, levels=levels
    ).requires_grad_(False)
    rng = np.random.default_rng(0)
    noise = rng.uniform(1e-7, 1 - 1e-7, (6, *shape)).astype(np.float32)
    temperature = np.geomspace(0.5, 2, 6).astype(np.float32)
    known = (rng.integers(0, levels, noise.shape) / (levels - 1)).astype(np.float32)
    known_mask = (rng.random(noise.shape) < 0.3).astype(np.float32)
    inputs = [torch.from_numpy(part) for part in (noise, temperature, known, known_mask)]
    sampled = model.graphs()["generate"](*inputs).numpy()

    images = np.zeros_like(noise)
    for row, column, channel in np.ndindex(4, 5, channels):
        place = (slice(None), channel, row, column)
        log_probs = []
        for level in range(levels):
            images[place] = level / (levels - 1)
            log_probs.append(conditional(model, images)[place])
        # Of the tempered distribution, the first level whose cumulative probability exceeds u;
        # a binary value is 1 where u < p(1), that is, where 1 - u is above p(0).
        tempered = np.stack(log_probs).astype(np.float64) / temperature
        probs = np.exp(tempered - tempered.max(axis=0))
        reach = (probs / probs.sum(axis=0)).cumsum(axis=0)
        uniform = 1 - noise[place] if values == "binary" else noise[place]
        drawn = (reach < uniform).sum(axis=0) / (levels - 1)
        images[place] = np.where(known_mask[place] == 1, known[place], drawn)
    np.testing.assert_allclose(sampled, images, atol=1e-6)


def conditional(model: PixelRnn, images: Any) -> Any:
    """Return log p of each value by the training code, (N, C, H, W)."""
    values = model.pixels.values(torch.from_numpy(images))
    features = model.context(values)
    for layer in model.layers:
        features = layer(features)
    return model.pixels.log_prob(model.head(features), values).permute(3, 0, 1, 2).numpy()


def test_features_that_do_not_fall_into_colour_groups_are_refused(make_recipe: Any) -> None:
    with pytest.raises(ValueError, match="multiples of the 3 channels, got 4 and 6"):
        make_model(make_recipe, "row_lstm", (3, 4, 4), "8-bit", hidden=4, head=6)


def test_the_number_of_parameters_leaves_out_what_masks_fix(make_recipe: Any) -> None:
    """One grey layer, h = 2: the first convolution has 24 free taps."""
    row = make_model(make_recipe, "row_lstm", (1, 5, 5), num_layers=1, hidden=2, head=3)
    context, head, bias = 4 * 24 + 4, 3 * 4 + 3 + 3, 25
    layer = 8 * (2 * 4) + 8 + 8 * (3 * 2) + 4 * 2
    assert row.num_parameters() == context + layer + head + bias
    diagonal = make_model(make_recipe, "diagonal_bilstm", (1, 5, 5), num_layers=1, hidden=2, head=3)
    layer = 2 * (8 * 4 + 8 + 8 * (2 * 2)) + 4 * 2
    assert diagonal.num_parameters() == context + layer + head + bias
    colour = make_model(
        make_recipe, "row_lstm", (3, 2, 2), "8-bit", num_layers=1, hidden=3, head=3, levels=2
    )
    groups = 6  # of the nine pairs of colours that mask B leaves
    context = 6 * (3 * 24) + 3 * 2 + 6  # 2 features per group; G sees R, B sees R and G
    layer = 12 * 6 + groups * 4 * 2 + 12 + 12 * 9 + groups * 2
    head = groups * 2 + 3 + groups * 2
    assert colour.num_parameters() == context + layer + head + 3 * 2
