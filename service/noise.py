"""Noise as a pure function of (seed, index): the same row in any batch, on any machine."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

UInt32Array = NDArray[np.uint32]
UInt64Array = NDArray[np.uint64]
FloatArray = NDArray[np.float32]
Prior = Literal["normal", "uniform"]

_MULTIPLIER_0, _MULTIPLIER_2 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEP_0, _KEY_STEP_1 = 0x9E3779B9, 0xBB67AE85
_NUM_ROUNDS = 10
_WORD = np.uint64(32)
_LOW_BITS = np.uint64(0xFFFFFFFF)


class Stream(IntEnum):
    """What a draw is for; streams of one (seed, index) are independent of each other."""

    NOISE = 0
    LABEL = 1
    BINARIZATION = 2


def philox(counter: Sequence[UInt64Array], key: Sequence[UInt64Array]) -> UInt32Array:
    """Turn counters into random bits by Philox4x32 with ten rounds.

    A counter-based generator has no state: row i is computed without rows 0 to i-1, so an image
    never depends on what else is drawn.

    Args:
        counter: Four 32-bit words, each an array of one shape (…).
        key: Two 32-bit words, each broadcastable to that shape.

    Returns:
        Random words, shape (…, 4).

    Source:
        Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011,
        section 3.3; the authors' own test vectors are in `tests/service/test_noise.py`.
    """
    word_0, word_1, word_2, word_3 = counter
    key_0, key_1 = key
    for _ in range(_NUM_ROUNDS):
        product_0, product_2 = word_0 * _MULTIPLIER_0, word_2 * _MULTIPLIER_2
        word_0 = product_2 >> _WORD
        word_0 ^= word_1
        word_0 ^= key_0
        word_2 = product_0 >> _WORD
        word_2 ^= word_3
        word_2 ^= key_1
        product_2 &= _LOW_BITS
        product_0 &= _LOW_BITS
        word_1, word_3 = product_2, product_0
        key_0, key_1 = (key_0 + _KEY_STEP_0) & _LOW_BITS, (key_1 + _KEY_STEP_1) & _LOW_BITS
    return np.stack([word_0, word_1, word_2, word_3], axis=-1).astype(np.uint32)


def random_bits(
    seeds: UInt64Array, indices: UInt64Array, num_words: int, stream: Stream
) -> UInt32Array:
    """Draw 32-bit words for many (seed, index) pairs at once.

    Args:
        seeds: Shape (N,).
        indices: Shape (N,).
        num_words: Words per row.
        stream: Which of the row's independent streams to read.

    Returns:
        Shape (N, num_words).
    """
    shape = len(seeds), -(-num_words // 4)  # (N, blocks of four words)
    block = np.broadcast_to(np.arange(shape[1], dtype=np.uint64), shape)
    low, high = _halves(indices)
    counter = (block, np.full_like(low, stream), np.broadcast_to(low, shape), high)
    words = philox(counter, _halves(seeds))
    return words.reshape(len(seeds), -1)[:, :num_words]


def draw(
    prior: Prior,
    seeds: UInt64Array,
    indices: UInt64Array,
    shape: Sequence[int],
    stream: Stream = Stream.NOISE,
) -> FloatArray:
    """Draw one row of noise for each (seed, index) pair.

    Args:
        prior: `uniform` on the open interval (0, 1), or standard `normal`.
        seeds: Shape (N,).
        indices: Shape (N,).
        shape: Shape of one row.
        stream: Which of the row's independent streams to read.

    Returns:
        Shape (N, *shape).

    Example:
        >>> one = np.array([7], dtype=np.uint64)
        >>> draw("uniform", one, one * 0, (3,)).astype(float).round(4).tolist()
        [[0.9546, 0.7502, 0.1142]]
    """
    words = random_bits(seeds, indices, int(np.prod(shape)), stream)
    rows = uniform(words) if prior == "uniform" else normal(words)
    return rows.reshape(len(seeds), *shape)


def uniform(words: UInt32Array) -> FloatArray:
    """Map words to the open interval (0, 1), exactly representable: (⌊w / 2⁹⌋ + ½) / 2²³."""
    return ((words >> np.uint32(9)) + np.float32(0.5)).astype(np.float32) * np.float32(2.0**-23)


def normal(words: UInt32Array) -> FloatArray:
    """Map words to standard normal draws by the inverse of the cumulative distribution.

    The inverse needs only the four operations in the centre and one logarithm in the tails, all
    in double precision before one rounding to single: no library's generator, and no sine or
    cosine whose last bit differs between machines.

    Returns:
        Same shape as `words`; within ±6.4.

    Source:
        Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied
        Statistics 37, 1988, routine PPND16.
    """
    centred = (words.astype(np.float64) + 0.5) * 2.0**-32 - 0.5
    quantile = centred * _ratio(0.180625 - centred * centred, *_CENTRE)
    tails = np.abs(centred) > 0.425
    side = centred[tails]
    # 32 bits keep sqrt(-log p) below 4.8; the routine's third branch begins at 5.
    radius = np.sqrt(-np.log(0.5 - np.abs(side)))
    quantile[tails] = np.copysign(_ratio(radius - 1.6, *_TAIL), side)
    return quantile.astype(np.float32)


def _halves(words: UInt64Array) -> tuple[UInt64Array, UInt64Array]:
    column = words[:, None]
    return column & _LOW_BITS, column >> _WORD


Coefficients = tuple[float, ...]


def _ratio(
    x: NDArray[np.float64], numerator: Coefficients, denominator: Coefficients
) -> NDArray[np.float64]:
    return _horner(x, numerator) / _horner(x, denominator)


def _horner(x: NDArray[np.float64], coefficients: Coefficients) -> NDArray[np.float64]:
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value *= x
        value += coefficient
    return value


# Coefficients of AS 241, lowest order first: numerator, denominator.
_CENTRE: tuple[Coefficients, Coefficients] = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_TAIL: tuple[Coefficients, Coefficients] = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
