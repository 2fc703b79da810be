"""How unusual an image is among those that a model was trained for, as a calibrated p-value.

A likelihood alone does not tell: images that are simpler than the training data are often likelier
than the training data itself. So a score compares the bits that the model needs for an image with
the bits that a general compressor needs.
"""

import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.images import ImageArray, read_npz, to_pixels
from service.scoring import Binarize

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
Array = NDArray[np.float64]
# How the images of a model are prepared; a calibration holds for one way only.
Preparation = Binarize | Literal["none"]
PREPARATIONS: tuple[Preparation, ...] = ("none", "threshold", "stochastic")

CALIBRATION_FILE = "calibration.npz"

# Of the held-out images the first fifth tells what is usual, the others rank what comes.
_FITTED_SHARE = 5
_NATS_PER_BIT = float(np.log(2))


def code_bits(images: ImageArray) -> Array:
    """Return what a general lossless compressor needs for each image, in bits: its complexity.

    DEFLATE (RFC 1951) of the grey levels, row by row.

    Args:
        images: Shape (N, C, H, W), in [0, 1].

    Returns:
        Shape (N,).
    """
    sizes = []
    for pixels in to_pixels(images):
        compressor = zlib.compressobj(level=9, wbits=-zlib.MAX_WBITS)
        sizes.append(len(compressor.compress(pixels.tobytes()) + compressor.flush()))
    return 8 * np.array(sizes, dtype=np.float64)


@dataclass(frozen=True)
class AnomalyScore:
    """How far an image's S = −log₂ p − compressor bits is from the usual, in bits.

    Of ordinary images a model saves much: S is far below 0, and about the same for all of them. Of
    others it saves less, however few bits they need. An S far below the usual is as suspicious.

    Attributes:
        centre: Median of S of held-out images, in bits.
        ranked: Scores of held-out images that had no part in the centre, ascending, (n,).

    Source:
        Serrà et al., "Input complexity and out-of-distribution detection with likelihood-based
        generative models", 2020, arXiv:1909.11480, equation 2; two-sided here.
    """

    centre: float
    ranked: Array

    @classmethod
    def calibrate(cls, log_prob: Array, complexity: Array) -> "AnomalyScore":
        """Learn from held-out images what is usual.

        Args:
            log_prob: Of images that were never used in training, in nats, (N,).
            complexity: Their `code_bits`, (N,).

        Raises:
            ValueError: There are fewer than 20 images, or a figure is not finite.
        """
        excess = _excess_bits(log_prob, complexity)
        if len(excess) < 20 or not np.isfinite(excess).all():
            raise ValueError("a calibration needs 20 images or more, all with finite scores")
        num_fitted = len(excess) // _FITTED_SHARE
        centre = float(np.median(excess[:num_fitted]))
        return cls(centre, np.sort(np.abs(excess[num_fitted:] - centre)))

    def scores(self, log_prob: Array, complexity: Array) -> Array:
        """Return how unusual images are, in bits, (N,); ∞ where log p is −∞, NaN where it is NaN.

        Args:
            log_prob: In nats, (N,).
            complexity: Their `code_bits`, (N,).
        """
        return np.abs(_excess_bits(log_prob, complexity) - self.centre)

    def p_values(self, scores: Array) -> Array:
        """Return (1 + #{ranked ≥ score}) / (n + 1), the share of ordinary images as unusual, (N,).

        Of an image drawn like the held-out ones the p-value is at most α with probability at most
        α, whatever the scores mean. The smallest possible value is 1 / (n + 1).

        Source:
            Bates et al., "Testing for outliers with conformal p-values", 2023, arXiv:2104.08279,
            equation 3.
        """
        num_as_unusual = len(self.ranked) - np.searchsorted(self.ranked, scores, side="left")
        p_values: Array = (1 + num_as_unusual) / (len(self.ranked) + 1)
        return np.where(np.isnan(scores), np.nan, p_values)


def read_calibration(path: Path, golden: FloatArray) -> dict[Preparation, AnomalyScore]:
    """Read how unusual images of a model are told, by the way in which they are prepared.

    The file holds `<preparation>.log_prob` and `<preparation>.code_bits` of held-out images, and
    `golden.code_bits`, by which another compressor is noticed: its bits would be no measure.

    Args:
        path: The file.
        golden: The golden images of the bundle, (N, C, H, W).

    Returns:
        Nothing where the compressor is another one.

    Raises:
        ValueError: The file cannot be read, or is not what a calibration needs.
    """
    try:
        arrays: dict[str, Array] = read_npz(path)
        expected = arrays.pop("golden.code_bits")
        if not np.array_equal(code_bits(golden), expected):
            logger.warning(
                "%s was made with another build of zlib than this one (%s): no p-values",
                path,
                zlib.ZLIB_RUNTIME_VERSION,
            )
            return {}
        preparations = {name.partition(".")[0] for name in arrays}
        return {
            preparation: AnomalyScore.calibrate(
                arrays[f"{preparation}.log_prob"], arrays[f"{preparation}.code_bits"]
            )
            for preparation in PREPARATIONS
            if preparation in preparations
        }
    except Exception as error:  # NumPy and its archive share no better base
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _excess_bits(log_prob: Array, complexity: Array) -> Array:
    return -log_prob / _NATS_PER_BIT - complexity
