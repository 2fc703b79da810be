"""Bundles in Node, through ONNX Runtime's own package: the pixels of the service."""

from collections.abc import Callable

import numpy as np
import pytest

from ptheta_client import Client
from tests.embedding.conftest import UInt8Array

Draw = Callable[..., UInt8Array]


@pytest.mark.parametrize("model", ["dcgan-fashion", "nade-mnist"])
def test_a_seed_gives_the_pixels_of_the_service(
    draw_in_node: Draw, service: Client, model: str
) -> None:
    request = {"seed": str(2**64 - 2), "firstIndex": 3, "n": 64}
    expected = service.sample(model, seed=2**64 - 2, first_index=3, n=64)
    assert (draw_in_node(model, **request) == expected.images).all()


def test_temperature_is_that_of_the_service(draw_in_node: Draw, service: Client) -> None:
    expected = service.sample("nade-mnist", seed=7, n=16, temperature=0.7)
    drawn = draw_in_node("nade-mnist", seed=7, n=16, temperature=0.7)
    assert (drawn == expected.images).all()


def test_a_digit_is_completed_as_by_the_service(draw_in_node: Draw, service: Client) -> None:
    digit = service.sample("nade-mnist", seed=3).images[0]
    expected = service.complete(digit, "nade-mnist", known_rows=14, n=16, seed=5)
    known = [int(level) for level in digit.ravel()]
    drawn = draw_in_node("nade-mnist", seed=5, n=16, known=known, knownRows=14)
    assert (drawn == expected.images).all()
    assert (drawn[:, :14] == digit[:14]).all()
    assert len(np.unique(drawn, axis=0)) > 1
