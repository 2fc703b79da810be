"""Calls that send images: /log_prob, /classify, /encode and /reconstruct."""

from typing import Any, Literal

from ptheta_client.answers import (
    read_classifications,
    read_images,
    read_latents,
    read_scores,
)
from ptheta_client.call import Call, LabelsInput, labels_field, upload_call
from ptheta_client.images import ImageInput, upload_of
from ptheta_client.results import Classifications, Images, Latents, Scores

Binarize = Literal["threshold", "stochastic"]


def log_prob(
    images: ImageInput,
    model: str | None = None,
    *,
    labels: LabelsInput | None = None,
    binarize: Binarize | None = None,
    num_importance_samples: int | None = None,
    seed: int | None = None,
    per_dim: bool | None = None,
    resize: bool | None = None,
    convert: bool | None = None,
    timeout_s: float | None = None,
) -> Call[Scores]:
    """Tell how likely images are, in nats.

    Args:
        images: What to score. Arrays are sent as .npy, others as picture files.
        model: Name, or name@version; the server's default otherwise.
        labels: Score p(x given label), of a conditional model.
        binarize: How a binary model sees grey levels; `threshold` otherwise.
        num_importance_samples: K of the importance-weighted bound; 1, the ELBO, otherwise.
        seed: Of all that is random; 0 otherwise.
        per_dim: Tell the surprise of every pixel.
        resize: Scale pictures of another size, instead of refusing them; not arrays.
        convert: Turn colour into grey or grey into colour; not arrays.
        timeout_s: Seconds for the whole call; the client's own otherwise.

    Raises:
        PthetaError: The call failed; see `ptheta_client.errors`.
        ValueError: `images` are no images.
    """
    fields = _options(model, labels, binarize, seed, resize, convert)
    fields |= {"num_importance_samples": num_importance_samples, "per_dim": per_dim}
    fields["format"] = "json"
    return upload_call("/log_prob", upload_of(images), read_scores, fields, timeout_s)


def classify(
    images: ImageInput,
    model: str | None = None,
    *,
    binarize: Binarize | None = None,
    num_importance_samples: int | None = None,
    seed: int | None = None,
    resize: bool | None = None,
    convert: bool | None = None,
    timeout_s: float | None = None,
) -> Call[Classifications]:
    """Tell p(label given image), by Bayes' rule; arguments as of `log_prob`."""
    fields = _options(model, None, binarize, seed, resize, convert)
    fields["num_importance_samples"] = num_importance_samples
    return upload_call("/classify", upload_of(images), read_classifications, fields, timeout_s)


def encode(
    images: ImageInput,
    model: str | None = None,
    *,
    labels: LabelsInput | None = None,
    binarize: Binarize | None = None,
    seed: int | None = None,
    resize: bool | None = None,
    convert: bool | None = None,
    timeout_s: float | None = None,
) -> Call[Latents]:
    """Find the latents of images; arguments as of `log_prob`."""
    fields = _options(model, labels, binarize, seed, resize, convert) | {"format": "npy"}
    return upload_call("/encode", upload_of(images), read_latents, fields, timeout_s)


def reconstruct(
    images: ImageInput,
    model: str | None = None,
    *,
    labels: LabelsInput | None = None,
    binarize: Binarize | None = None,
    seed: int | None = None,
    resize: bool | None = None,
    convert: bool | None = None,
    timeout_s: float | None = None,
) -> Call[Images]:
    """Encode images and decode them again; arguments as of `log_prob`."""
    fields = _options(model, labels, binarize, seed, resize, convert) | {"format": "npy"}
    return upload_call("/reconstruct", upload_of(images), read_images, fields, timeout_s)


def _options(
    model: str | None,
    labels: LabelsInput | None,
    binarize: Binarize | None,
    seed: int | None,
    resize: bool | None,
    convert: bool | None,
) -> dict[str, Any]:
    return {
        "model": model,
        "labels": labels_field(labels),
        "binarize": binarize,
        "seed": seed,
        "resize": resize,
        "convert": convert,
    }
