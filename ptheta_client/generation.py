"""Calls that make images: /sample, /complete and /interpolate."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from ptheta_client.answers import read_samples, read_walk
from ptheta_client.call import Call, LabelsInput, as_json, labels_field
from ptheta_client.images import encode_base64, picture_file
from ptheta_client.results import Samples, Walk

PictureFormat = Literal["png", "webp", "jpeg"]
AnimationFormat = Literal["webp", "gif", "apng"]
Method = Literal["slerp", "lerp", "spherical-lerp"]
Included = Literal["latents", "log_prob"]
OneImage = NDArray[np.generic] | PillowImage.Image | bytes
Anchor = int | tuple[int, int] | NDArray[np.generic] | PillowImage.Image | bytes
"""A point to walk through: a seed; (seed, index); a latent, float (D,); or a picture, as uint8
array, PIL image or file, for models with an encoder."""


def sample(
    model: str | None = None,
    *,
    n: int | None = None,
    seed: int | None = None,
    first_index: int | None = None,
    labels: LabelsInput | None = None,
    latents: NDArray[np.floating[Any]] | Sequence[Sequence[float]] | None = None,
    truncation: float | None = None,
    temperature: float | None = None,
    include: Sequence[Included] = (),
    timeout_s: float | None = None,
) -> Call[Samples]:
    """Draw images.

    Args:
        model: Name, or name@version; the server's default otherwise.
        n: How many; 1, or as many as there are labels or latents.
        seed: From 0 to 2⁶⁴ − 1. The same one gives the same images; without, one is drawn and told.
        first_index: Image i is a function of (seed, first_index + i) alone.
        labels: Classes, of a conditional model; drawn from the seed otherwise.
        latents: Codes (n, D) instead of a seed.
        truncation: In (0, 1]: pulls latents to the centre of their prior.
        temperature: In (0, 10]: divides logits.
        include: What else to tell of each image.
        timeout_s: Seconds for the whole call; the client's own otherwise.

    Raises:
        PthetaError: The call failed; see `ptheta_client.errors`.
    """
    fields = _drawing(model, n, seed, first_index, labels, temperature)
    fields |= {"truncation": truncation, "latents": _nested(latents)}
    fields |= {"include": list(include) or None, "format": "json"}
    return Call("POST", "/sample", read_samples, fields, "json", timeout_s=timeout_s)


def picture(
    model: str | None = None,
    *,
    n: int | None = None,
    seed: int | None = None,
    first_index: int | None = None,
    labels: LabelsInput | None = None,
    latents: NDArray[np.floating[Any]] | Sequence[Sequence[float]] | None = None,
    truncation: float | None = None,
    temperature: float | None = None,
    format: PictureFormat = "png",  # noqa: A002 - the name of the contract
    columns: int | None = None,
    scale: int | None = None,
    timeout_s: float | None = None,
) -> Call[bytes]:
    """Draw images into one picture file of a `format`; other arguments as of `sample`.

    `columns` images stand in a row, otherwise so many that the picture is nearly a square; `scale`
    enlarges every pixel so many times, up to 16.
    """
    fields = _drawing(model, n, seed, first_index, labels, temperature)
    fields |= {"truncation": truncation, "latents": _nested(latents)}
    fields |= {"format": format, "columns": columns, "scale": scale}
    return Call("POST", "/sample", lambda it: it.content, fields, "json", timeout_s=timeout_s)


def complete(
    image: OneImage,
    model: str | None = None,
    *,
    known_rows: int | None = None,
    mask: NDArray[np.generic] | Sequence[Sequence[int]] | None = None,
    n: int | None = None,
    seed: int | None = None,
    first_index: int | None = None,
    labels: LabelsInput | None = None,
    temperature: float | None = None,
    include: Sequence[Literal["log_prob"]] = (),
    timeout_s: float | None = None,
) -> Call[Samples]:
    """Draw the rest of a picture from its exact distribution given what is known.

    So many `known_rows` from the top of the `image` are known, or else what the `mask` (H, W) is
    not zero for, which must come first in raster order. What the image holds elsewhere does not
    matter. Other arguments as of `sample`.
    """
    fields = _drawing(model, n, seed, first_index, labels, temperature)
    bits = None if mask is None else (np.asarray(mask) != 0).astype(int).tolist()
    fields |= {"image": encode_base64(picture_file(image)), "known_rows": known_rows, "mask": bits}
    fields |= {"include": list(include) or None, "format": "json"}
    return Call("POST", "/complete", read_samples, fields, "json", timeout_s=timeout_s)


def interpolate(
    anchors: Sequence[Anchor],
    model: str | None = None,
    *,
    steps: int | None = None,
    method: Method | None = None,
    loop: bool | None = None,
    grid: tuple[int, int] | None = None,
    labels: LabelsInput | None = None,
    truncation: float | None = None,
    timeout_s: float | None = None,
) -> Call[Walk]:
    """Walk through latent space; the frames at the anchors are exactly the anchors' own images.

    Args:
        anchors: 2…64 points to walk through.
        model: Name, or name@version; the server's default otherwise.
        steps: Frames per segment, both ends included; 8 otherwise.
        method: How to walk; chosen by prior and anchors otherwise.
        loop: Walk back to the first anchor, without repeating it.
        grid: With four anchors, the square between them: (rows, columns).
        labels: The class of the whole path, of a conditional model.
        truncation: In (0, 1]: pulls latents to the centre of their prior.
        timeout_s: Seconds for the whole call; the client's own otherwise.
    """
    fields = _walking(anchors, model, steps, method, loop, grid, labels, truncation)
    fields["format"] = "json"
    return Call("POST", "/interpolate", read_walk, fields, "json", timeout_s=timeout_s)


def animation(
    anchors: Sequence[Anchor],
    model: str | None = None,
    *,
    steps: int | None = None,
    method: Method | None = None,
    loop: bool | None = None,
    labels: LabelsInput | None = None,
    truncation: float | None = None,
    format: AnimationFormat = "webp",  # noqa: A002 - the name of the contract
    fps: int | None = None,
    scale: int | None = None,
    timeout_s: float | None = None,
) -> Call[bytes]:
    """Walk through latent space as an animated picture file; other arguments as of `interpolate`.

    Of the possible `format`s GIF keeps 256 colours, the others every pixel. `fps` frames are shown
    per second, 12 otherwise; `scale` enlarges every pixel so many times, up to 16.
    """
    fields = _walking(anchors, model, steps, method, loop, None, labels, truncation)
    fields |= {"format": format, "fps": fps, "scale": scale}
    return Call("POST", "/interpolate", lambda it: it.content, fields, "json", timeout_s=timeout_s)


def _drawing(
    model: str | None,
    n: int | None,
    seed: int | None,
    first_index: int | None,
    labels: LabelsInput | None,
    temperature: float | None,
) -> dict[str, Any]:
    return {
        "model": model,
        "n": n,
        "seed": seed,
        "first_index": first_index,
        "labels": labels_field(labels),
        "temperature": temperature,
    }


def _walking(
    anchors: Sequence[Anchor],
    model: str | None,
    steps: int | None,
    method: Method | None,
    loop: bool | None,
    grid: tuple[int, int] | None,
    labels: LabelsInput | None,
    truncation: float | None,
) -> dict[str, Any]:
    return {
        "anchors": [_anchor(anchor) for anchor in anchors],
        "model": model,
        "steps": steps,
        "method": method,
        "loop": loop,
        "grid": grid,
        "labels": labels_field(labels),
        "truncation": truncation,
    }


def _anchor(anchor: Anchor) -> dict[str, Any]:
    match anchor:
        case (seed, index):
            return {"seed": as_json(seed), "index": index}
        case int() | np.integer():
            return {"seed": as_json(int(anchor))}
        case np.ndarray() if anchor.ndim == 1:
            return {"latent": anchor.tolist()}
        case _:
            return {"image": encode_base64(picture_file(anchor))}


def _nested(latents: Any) -> Any:
    return None if latents is None else np.asarray(latents).tolist()
