"""Noise as a pure function of (seed, index): the same row in any batch, on any machine."""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

UInt32Array = NDArray[np.uint32]
UInt64Array = NDArray[np.uint64]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Prior = Literal["normal", "uniform"]

_NUM_ROUNDS = 10
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)[:, None, None]
# What the key has grown by in each round, (10, 2, 1).
_KEY_STEPS = (
    np.arange(_NUM_ROUNDS, dtype=np.uint64)[:, None, None]
    * np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)[:, None]
)
_WORD = np.uint64(32)
_LOW_BITS = np.uint64(0xFFFFFFFF)

# The word of the counter that names the stream counts samples above its low byte.
_SAMPLE_SHIFT = np.uint64(8)
MAX_SAMPLES = 2**24


class Stream(IntEnum):
    """What a draw is for; streams of one (seed, index) are independent of each other."""

    NOISE = 0
    LABEL = 1
    BINARIZATION = 2
    IMPORTANCE = 3


def philox(counter: UInt64Array, key: UInt64Array) -> UInt32Array:
    """Turn counters into random bits by Philox4x32 with ten rounds.

    A counter-based generator has no state: row i is computed without rows 0 to i-1, so an image
    never depends on what else is drawn.

    Args:
        counter: 32-bit words (c0, c2) and (c1, c3) of each block, shape (2, 2, N, B).
        key: 32-bit words (k0, k1) of each row, shape (2, N).

    Returns:
        Random words, shape (N, 4·B).

    Source:
        Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011,
        section 3.3; the authors' own test vectors are in `tests/service/test_noise.py`.
    """
    round_keys = (key + _KEY_STEPS) & _LOW_BITS  # (10, 2, N)
    multiplied, carried = counter
    for round_key in round_keys[..., None]:
        product = multiplied * _MULTIPLIERS
        multiplied = (product >> _WORD)[::-1]
        multiplied ^= carried
        multiplied ^= round_key
        product &= _LOW_BITS
        carried = product[::-1]
    _, num_rows, num_blocks = multiplied.shape
    words = np.empty((num_rows, num_blocks, 2, 2), dtype=np.uint32)  # (c0, c1), (c2, c3)
    words[..., 0] = multiplied.transpose(1, 2, 0)
    words[..., 1] = carried.transpose(1, 2, 0)
    return words.reshape(num_rows, 4 * num_blocks)


def random_bits(
    seeds: UInt64Array,
    indices: UInt64Array,
    num_words: int,
    stream: Stream,
    samples: UInt64Array | None = None,
) -> UInt32Array:
    """Draw 32-bit words for many (seed, index) pairs at once.

    Args:
        seeds: Shape (N,).
        indices: Shape (N,).
        num_words: Words per row.
        stream: Which of the row's independent streams to read.
        samples: Which of the stream's independent samples, shape (N,), below 2²⁴; by default the
            first.

    Returns:
        Shape (N, num_words).
    """
    num_blocks = -(-num_words // 4)
    counter = np.empty((2, 2, len(seeds), num_blocks), dtype=np.uint64)
    counter[0, 0] = np.arange(num_blocks, dtype=np.uint64)
    counter[1, 0] = stream
    if samples is not None:
        counter[1, 0] |= (samples << _SAMPLE_SHIFT)[:, None]
    counter[0, 1] = (indices & _LOW_BITS)[:, None]
    counter[1, 1] = (indices >> _WORD)[:, None]
    key = np.empty((2, len(seeds)), dtype=np.uint64)
    key[0] = seeds & _LOW_BITS
    key[1] = seeds >> _WORD
    return philox(counter, key)[:, :num_words]


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
    words = random_bits(seeds, indices, math.prod(shape), stream)
    rows = uniform(words) if prior == "uniform" else normal(words)
    return rows.reshape(len(seeds), *shape)


def draw_importance(
    seeds: UInt64Array,
    indices: UInt64Array,
    first_samples: UInt64Array,
    num_samples: int,
    latent_dim: int,
) -> FloatArray:
    """Draw the noise of importance samples, standard normal.

    Sample k of an image is a function of (seed, index, k): it is the same however many there are
    and however they are split between runs.

    Args:
        seeds: Shape (N,).
        indices: Shape (N,), the image that the samples are of.
        first_samples: Shape (N,), number of each row's first sample.
        num_samples: K, samples per row.
        latent_dim: D.

    Returns:
        Shape (N, K, D).
    """
    samples = np.add.outer(first_samples, np.arange(num_samples, dtype=np.uint64))
    every_seed, every_index = (np.repeat(array, num_samples) for array in (seeds, indices))
    words = random_bits(every_seed, every_index, latent_dim, Stream.IMPORTANCE, samples.reshape(-1))
    return normal(words).reshape(len(seeds), num_samples, latent_dim)


def draw_labels(seeds: UInt64Array, indices: UInt64Array, num_classes: int) -> IntArray:
    """Draw one class for each (seed, index) pair, each as likely as the others.

    The classes share 2³² words, ⌊word · K / 2³²⌋, so that their probabilities differ from 1/K by
    less than 2⁻³². The noise of the same pair is another stream: it does not depend on the class.

    Args:
        seeds: Shape (N,).
        indices: Shape (N,).
        num_classes: K, at least 1.

    Returns:
        Shape (N,), from 0 to K - 1.
    """
    words = random_bits(seeds, indices, 1, Stream.LABEL)[:, 0]
    return (words.astype(np.uint64) * np.uint64(num_classes) >> _WORD).astype(np.int64)


def truncate(latents: FloatArray, truncation: float | FloatArray, prior: Prior) -> FloatArray:
    """Pull latents towards the centre of their prior, 0 or ½.

    Args:
        latents: Shape (N, D).
        truncation: t of centre + t·(latent - centre); a number, or one for each row, (N,).
        prior: What the latents are drawn from.
    """
    factors = np.asarray(truncation, dtype=np.float32).reshape(-1, 1)
    if prior == "normal":
        return latents * factors
    centre = np.float32(0.5)
    return centre + (latents - centre) * factors


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
    quantile = centred * _ratio(0.180625 - centred * centred, _CENTRE)
    tails = np.abs(centred) > 0.425
    side = centred[tails]
    # 32 bits keep sqrt(-log p) below 4.8; the routine's third branch begins at 5.
    radius = np.sqrt(-np.log(0.5 - np.abs(side)))
    quantile[tails] = np.copysign(_ratio(radius - 1.6, _TAIL), side)
    return quantile.astype(np.float32)


def _ratio(x: NDArray[np.float64], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    # Horner's rule for numerator and denominator at once.
    value = np.repeat(coefficients[:, -1:], x.size, axis=1)
    flat = x.reshape(-1)
    for column in coefficients.T[-2::-1]:
        value *= flat
        value += column[:, None]
    ratio: NDArray[np.float64] = value[0] / value[1]
    return ratio.reshape(x.shape)


# Coefficients of AS 241, lowest order first: numerator, denominator.
_CENTRE = np.array(
    (
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
)
_TAIL = np.array(
    (
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
)
