"""The GAN families: parameters, conditions, penalties and what they see of augmented images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.adversarial import AdversarialModel, r1_penalty
from export.augment import augment
from export.families import cgan
from export.model import build_model
from service.manifest import Image

Make = Callable[..., Any]

NUM_CLASSES = 5


@pytest.fixture
def make(make_recipe: Any) -> Make:
    def make(family: str, num_classes: int = 0, size: int = 8, **model: Any) -> AdversarialModel:
        torch.manual_seed(0)
        image = Image(shape=(1, size, size), values="8-bit")
        made = build_model(make_recipe(family, model=model), image, num_classes)
        assert isinstance(made, AdversarialModel)
        return made

    return make


def latents(model: AdversarialModel, num_rows: int) -> Tensor:
    torch.manual_seed(1)
    return model.draw_latents(num_rows)


def randomize(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)


def test_gan_counts_its_generator_alone(make: Make) -> None:
    model = make("gan", latent_dim=5, generator_hidden=[7, 6], discriminator_hidden=[9])
    assert model.num_parameters() == 5 * 7 + 7 * 6 + 2 * (7 + 6) + (6 * 64 + 64)


def test_cgan_has_a_scale_and_a_shift_per_class_and_channel(make: Make) -> None:
    model = make("cgan", NUM_CLASSES, latent_dim=8, generator_channels=[6, 4])
    linear, norms = 8 * 6 * 2 * 2, 2 * NUM_CLASSES * (6 + 4)
    convolutions = 6 * 4 * 16 + (4 * 1 * 16 + 1)
    assert model.num_parameters() == linear + norms + convolutions


def test_cgan_needs_classes(make: Make) -> None:
    with pytest.raises(ValueError, match="cgan needs images with classes"):
        make("cgan")


def test_only_the_conditional_one_asks_for_a_class(make: Make) -> None:
    assert [make(family, NUM_CLASSES).is_conditional for family in ("gan", "dcgan", "cgan")] == [
        *(False, False, True),
    ]


def test_the_latent_of_the_first_gan_is_uniform_and_centred_in_the_network(make: Make) -> None:
    model = make("gan", latent_dim=4)
    assert model.noise.prior == "uniform"
    drawn = latents(model, 20_000)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    seen: list[Tensor] = []
    model.generator.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.generator(drawn)
    # Five standard errors of the mean and of the variance of 80,000 uniform draws.
    assert seen[0].mean().abs() < 5 / np.sqrt(80_000)
    assert (seen[0].var() - 1).abs() < 5 * np.sqrt(0.8 / 80_000)


@pytest.mark.parametrize("family", ["gan", "dcgan", "cgan"])
def test_images_lie_in_the_range_of_pixels(make: Make, family: str) -> None:
    model = make(family, NUM_CLASSES)
    randomize(model.generator)
    generate = model.eval().graphs()["generate"]
    more = [torch.arange(50) % NUM_CLASSES] * model.is_conditional
    images = generate(10 * latents(model, 50), *more)
    assert images.shape == (50, 1, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.1


def test_the_label_changes_the_image(make: Make) -> None:
    model = make("cgan", NUM_CLASSES, latent_dim=4, generator_channels=[6, 4])
    generate = model.eval().graphs()["generate"]
    latent = torch.randn(1, 4).expand(NUM_CLASSES, 4)
    images = generate(latent, torch.arange(NUM_CLASSES))
    differences = (images[:, None] - images[None]).abs().amax(dim=(2, 3, 4))
    assert (differences + torch.eye(NUM_CLASSES) > 1e-4).all()


def test_a_row_of_a_conditional_normalization_takes_the_numbers_of_its_class() -> None:
    normalize = cgan.ConditionalBatchNorm2d(3, NUM_CLASSES).eval()
    randomize(normalize)
    normalize.normalize.running_mean = torch.tensor([1.0, 2.0, 3.0])
    normalize.normalize.running_var = torch.tensor([4.0, 9.0, 16.0])
    maps, label = torch.randn(2, 3, 4, 4), torch.tensor([3, 1])
    result = normalize(maps, label)
    for row, number in enumerate(label):
        for channel in range(3):
            centred = (maps[row, channel] - (channel + 1)) / (channel + 2)
            expected = normalize.scale.weight[number, channel] * centred
            expected = expected + normalize.shift.weight[number, channel]
            # Batch normalization adds 1e-5 to the variance.
            torch.testing.assert_close(result[row, channel], expected, atol=1e-4, rtol=1e-4)


def test_the_projection_is_linear_in_the_features_with_one_vector_per_class(make: Make) -> None:
    """D(x, y) - D(x, y') = (v_y - v_y')·φ(x), equation 4 of the paper."""
    discriminator: Any = make("cgan", NUM_CLASSES).discriminator.eval()
    images = torch.rand(6, 1, 8, 8) * 2 - 1
    features = discriminator.stages(images).flatten(1)
    scores = torch.stack(
        [discriminator(images, torch.full((6,), number)) for number in range(NUM_CLASSES)]
    )
    vectors = discriminator.projection.weight
    expected = (vectors - vectors[0]) @ features.T
    torch.testing.assert_close(scores - scores[0], expected, atol=1e-6, rtol=1e-5)
    assert expected[1:].abs().min() > 1e-6


def test_r1_of_a_linear_discriminator_is_half_the_square_of_its_weights() -> None:
    weights = torch.randn(64, requires_grad=True)
    images = torch.randn(7, 1, 8, 8, requires_grad=True)
    penalty = r1_penalty(images, images.flatten(1) @ weights)
    torch.testing.assert_close(penalty, 0.5 * weights.square().sum())
    (gradient,) = torch.autograd.grad(penalty, weights)  # it can be differentiated once more
    torch.testing.assert_close(gradient, weights)


class TestAugment:
    IMAGES = torch.rand(40, 3, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def test_without_augmentations_images_stay(self) -> None:
        assert augment(self.IMAGES, ()) is self.IMAGES

    def test_brightness_moves_all_pixels_of_an_image_alike(self) -> None:
        torch.manual_seed(0)
        change = augment(self.IMAGES, ["brightness"]) - self.IMAGES
        shifts = change[:, 0, 0, 0]
        torch.testing.assert_close(change, shifts[:, None, None, None].expand_as(change))
        assert shifts.abs().max() <= 0.5
        assert shifts.std() > 0.1

    def test_translation_moves_an_image_by_up_to_an_eighth(self) -> None:
        torch.manual_seed(0)
        moved = augment(self.IMAGES, ["translation"])
        padded = nn.functional.pad(self.IMAGES, (2, 2, 2, 2), mode="replicate")
        found = set()
        for row in range(len(moved)):
            places = [
                (y - 2, x - 2)
                for y in range(5)
                for x in range(5)
                if torch.equal(moved[row], padded[row, :, y : y + 16, x : x + 12])
            ]
            assert len(places) == 1
            found.add(places[0])
        assert {y for y, _ in found} == {-2, -1, 0, 1, 2}
        assert {x for _, x in found} == {-2, -1, 0, 1, 2}

    def test_cutout_makes_one_rectangle_grey(self) -> None:
        torch.manual_seed(0)
        cut = augment(self.IMAGES, ["cutout"])
        is_grey = (cut == 0).all(dim=1)
        rows, columns = is_grey.any(dim=2), is_grey.any(dim=1)
        assert torch.equal(is_grey, rows[:, :, None] & columns[:, None])
        assert rows.sum(dim=1).max() == 8
        assert columns.sum(dim=1).max() == 6
        assert torch.equal(
            cut[~is_grey[:, None].expand_as(cut)], self.IMAGES[~is_grey[:, None].expand_as(cut)]
        )

    def test_gradients_pass_to_the_pixels_that_are_seen(self) -> None:
        torch.manual_seed(0)
        images = self.IMAGES.clone().requires_grad_()
        augment(images, ["brightness", "translation", "cutout"]).sum().backward()
        assert images.grad is not None
        # Each pixel that is seen counts once for each place where it is seen.
        assert set(images.grad[:, :, 4:12, 3:9].unique().tolist()) <= {0.0, 1.0}
        assert (images.grad != 0).float().mean() > 0.5
