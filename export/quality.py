"""How good the images of a generator are, as a frozen classifier sees them."""

import math

import numpy as np
from numpy.typing import NDArray

from export.classifier import Classifier
from export.data import Images
from export.graph import FloatArray
from service.manifest import Metric

NUM_SAMPLES = 10_000
NUM_RESAMPLES = 20

_CHUNK = 1000

Matrix = NDArray[np.float64]
IntArray = NDArray[np.int64]


def quality_metrics(
    samples: FloatArray,
    asked: IntArray | None,
    classifier: Classifier,
    train: Images,
    test: Images,
    protocol: str,
) -> tuple[Metric, ...]:
    """Measure generated images beside real ones.

    Args:
        samples: Shape (N, C, H, W), in [0, 1].
        asked: The labels that they were asked to have; None of an unconditional model.
        classifier: Frozen, of the same data set.
        train: Training images; as many as test images are compared, for the floor.
        test: Test images, to which the Fréchet distances are measured.
        protocol: Name under which the figures are comparable.

    Returns:
        - `frechet_lenet_<hash>`, and `…_of_train`: the distance of training images to test images,
          a floor below which a distance says nothing.
        - `label_entropy` of the classes recognised in the samples, and `smallest_class_share` and
          `largest_class_share` among them: whether a kind of image is never drawn.
        - `asked_label_share` of a conditional model: how many samples are recognised as what was
          asked for; `…_of_test` is the same share of test images, the classifier's accuracy.
    """
    probs, features = classify(classifier, samples)
    test_probs, test_features = classify(classifier, test.values)
    _, train_features = classify(classifier, train[: len(test)].values)
    name = f"frechet_lenet_{classifier.report.sha256[:8]}"
    metrics = [
        frechet_metric(name, features, test_features, protocol),
        frechet_metric(f"{name}_of_train", train_features, test_features, protocol),
        *balance_metrics(probs.argmax(axis=1), probs.shape[1], protocol),
    ]
    if asked is not None:
        for suffix, scores, labels in (("", probs, asked), ("_of_test", test_probs, test.labels)):
            right = scores.argmax(axis=1) == labels
            metrics.append(share_metric(f"asked_label_share{suffix}", right, protocol))
    return tuple(metrics)


def classify(classifier: Classifier, images: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return probs (N, K) and features (N, F)."""
    chunks = [classifier(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
    probs, features = zip(*chunks, strict=True)
    return np.concatenate(probs), np.concatenate(features)


def frechet_distance(features: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """Return the squared Fréchet distance of two sets of features, each taken for a Gaussian.

    d² = |μ₁ - μ₂|² + Tr(Σ₁ + Σ₂ - 2·(Σ₁Σ₂)^½). Zero for equal sets; sets of N draws of one
    distribution have a distance that falls like 1/N, so that only equal N can be compared.

    Args:
        features: Shape (N, F), N at least 2.
        others: Shape (M, F).

    Source:
        Dowson, Landau, "The Fréchet Distance between Multivariate Normal Distributions", 1982;
        used on features of a network by Heusel et al., 2017, arXiv:1706.08500.
    """
    first, second = features.astype(np.float64), others.astype(np.float64)
    shift = first.mean(axis=0) - second.mean(axis=0)
    covariances = (np.cov(first, rowvar=False), np.cov(second, rowvar=False))
    one, other = (np.atleast_2d(covariance) for covariance in covariances)
    # Σ₁Σ₂ has the eigenvalues of the symmetric Σ₁^½·Σ₂·Σ₁^½, which are real and not negative.
    root = _square_root(one)
    eigenvalues = np.linalg.eigvalsh(root @ other @ root)
    overlap = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(shift @ shift + np.trace(one) + np.trace(other) - 2 * overlap)


def frechet_metric(
    name: str, features: FloatArray, test_features: FloatArray, protocol: str
) -> Metric:
    """Measure a Fréchet distance; its standard error is that of bootstrap resamples of both sets.

    The resamples tell the spread alone: their own mean is higher, since they repeat rows.
    """
    rng = np.random.default_rng(0)
    resampled = [
        frechet_distance(*(rows[rng.integers(len(rows), size=len(rows))] for rows in sets))
        for sets in [(features, test_features)] * NUM_RESAMPLES
    ]
    return Metric(
        name=name,
        value=frechet_distance(features, test_features),
        std_error=float(np.std(resampled, ddof=1)),
        unit="squared distance of features",
        protocol=f"{protocol}, {len(features):,} vs {len(test_features):,}",
        num_images=len(features),
    )


def balance_metrics(recognised: IntArray, num_classes: int, protocol: str) -> tuple[Metric, ...]:
    """Tell how evenly the classes are drawn.

    Args:
        recognised: Class of each sample, shape (N,).
        num_classes: K.
        protocol: Name under which the figures are comparable.

    Returns:
        The entropy of the classes, at most ln K; and the share of the rarest and the commonest.
    """
    num_images = len(recognised)
    shares = np.bincount(recognised, minlength=num_classes) / num_images
    present = shares[shares > 0]
    entropy = -float((present * np.log(present)).sum())
    # Delta method: the variance of -ln p over the samples.
    variance = float((present * np.log(present) ** 2).sum()) - entropy**2
    return (
        Metric(
            name="label_entropy",
            value=entropy,
            std_error=math.sqrt(max(variance, 0.0) / num_images),
            unit=f"nats, at most ln {num_classes} = {math.log(num_classes):.4f}",
            protocol=protocol,
            num_images=num_images,
        ),
        share_metric("smallest_class_share", recognised == shares.argmin(), protocol),
        share_metric("largest_class_share", recognised == shares.argmax(), protocol),
    )


def share_metric(name: str, chosen: NDArray[np.bool_], protocol: str) -> Metric:
    """Tell a share, with its binomial standard error."""
    share = float(chosen.mean())
    return Metric(
        name=name,
        value=share,
        std_error=math.sqrt(share * (1 - share) / len(chosen)),
        unit="share of images",
        protocol=protocol,
        num_images=len(chosen),
    )


def _square_root(covariance: Matrix) -> Matrix:
    eigenvalues, vectors = np.linalg.eigh(covariance)
    root: Matrix = (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T
    return root
