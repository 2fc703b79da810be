"""The noise in JavaScript has the bits of the service's own."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from service.images import to_pixels
from service.noise import draw, draw_labels, normal
from tests.embedding.conftest import Node

SCRIPT = """
import * as noise from "./ptheta-noise.mjs";
import { toPixels } from "./ptheta.mjs";
import { readFileSync } from "node:fs";
const answer = ({ name, args }) => {
  const made = { ...noise, toPixels, normals }[name](...args);
  const array = made.pixels ?? made;
  return ArrayBuffer.isView(array)
    ? Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64")
    : array;
};
function normals(first, step, count) {
  return Float32Array.from({ length: count }, (_, i) => noise.normal((first + i * step) >>> 0));
}
console.log(JSON.stringify(JSON.parse(readFileSync(0)).map(answer)));
"""

SEEDS = [0, 7, 2**32 - 1, 2**32, 2**53 + 1, 2**64 - 1]
INDICES = [0, 1, 2**32 + 5, 2**63 - 1]


def ask(node: Node, *questions: tuple[str, list[Any]]) -> list[Any]:
    asked = [{"name": name, "args": args} for name, args in questions]
    answers: list[Any] = json.loads(
        node("--input-type=module", "--eval", SCRIPT, data=json.dumps(asked))
    )
    return answers


def test_philox_gives_the_vectors_of_its_authors(node: Node) -> None:
    # As in tests/service/test_noise.py.
    zeros, pi = ask(
        node,
        ("philox", [[0, 0, 0, 0], [0, 0]]),
        (
            "philox",
            [[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]],
        ),
    )
    assert zeros == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert pi == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_every_row_has_the_bits_of_the_service(node: Node, prior: Any) -> None:
    pairs = [(seed, index) for seed in SEEDS for index in INDICES]
    questions = [("draw", [prior, str(seed), str(index), 785]) for seed, index in pairs]
    for (seed, index), answer in zip(pairs, ask(node, *questions), strict=True):
        expected = draw(prior, np.array([seed], np.uint64), np.array([index], np.uint64), (785,))
        assert base64.b64decode(answer) == expected.tobytes(), (seed, index)


def test_labels_are_those_of_the_service(node: Node) -> None:
    for num_classes in (1, 10, 1000):
        questions = [("drawLabel", [7, index, num_classes]) for index in range(50)]
        indices = np.arange(50, dtype=np.uint64)
        expected = draw_labels(np.full(50, 7, np.uint64), indices, num_classes)
        assert ask(node, *questions) == expected.tolist()


def test_normals_agree_over_the_whole_range_of_words(node: Node) -> None:
    # All 2³² of them were compared once (docs/embedding.md); here a comb, and both tails.
    count, step = 2**18, 2**14 + 1
    for first, stride in ((0, step), (0, 1), (2**32 - count, 1)):
        words = (first + np.arange(count, dtype=np.uint64) * np.uint64(stride)).astype(np.uint32)
        (answer,) = ask(node, ("normals", [first, stride, count]))
        assert base64.b64decode(answer) == normal(words).tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_levels_are_rounded_as_by_the_service(node: Node, channels: int) -> None:
    shape = (2, channels, 5, 7)
    # Halves, which go to the even neighbour, their neighbours in single precision, and outsiders.
    halves = (np.arange(64, dtype=np.float32) + np.float32(0.5)) / np.float32(255)
    values = [halves, np.nextafter(halves, np.float32(1)), np.float32([-0.1, 1.1, 0.5])]
    images = np.resize(np.concatenate(values), shape)
    (answer,) = ask(node, ("toPixels", [images.ravel().tolist(), list(shape)]))
    assert base64.b64decode(answer) == np.ascontiguousarray(to_pixels(images)).tobytes()


@pytest.mark.parametrize("seed", ["-1", "18446744073709551616"])
def test_a_seed_that_the_service_refuses_is_refused(node: Node, seed: str) -> None:
    with pytest.raises(AssertionError, match="RangeError"):
        ask(node, ("draw", ["uniform", seed, 0, 1]))


def test_a_number_that_has_lost_digits_is_refused(node: Node) -> None:
    with pytest.raises(AssertionError, match="no exact integer"):
        ask(node, ("draw", ["uniform", 2**53 + 1, 0, 1]))
