"""Anchors: the points that a walk through latent space goes through."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from service.batcher import Outcome
from service.errors import InvalidRequestError, NoLatentSpaceError
from service.images import ImageArray
from service.model import Model
from service.routes.fields import RequestModel, Seed
from service.routes.sample import Coordinate
from service.routes.uploads import decode_one
from service.service import Service

FloatArray = NDArray[np.float32]


class Anchor(RequestModel):
    """A point to walk through: exactly one of `seed`, `latent` and `image`."""

    # What `check_anchors` refuses, in the words of a schema.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": [name],
                    "properties": {
                        other: {"not": {"type": "null"}} if other == name else {"type": "null"}
                        for other in ("seed", "latent", "image")
                    },
                }
                for name in ("seed", "latent", "image")
            ]
        }
    )

    seed: Seed | None = Field(default=None, description="The image that `/sample` draws from it.")
    index: int = Field(default=0, ge=0, lt=2**63, description="Which of the seed's images.")
    latent: list[Coordinate] | None = Field(
        default=None, min_length=1, max_length=65_536, description="A code, (latent_dim,)."
    )
    image: str | None = Field(default=None, description="A picture in base64.")
    resize: bool = Field(default=False, description="Scale a picture of another size.")
    convert: bool = Field(default=False, description="Turn colour to grey or grey to colour.")


def check_anchors(service: Service, model: Model, anchors: Sequence[Anchor]) -> None:
    """Refuse anchors that are no point of the model's latent space.

    Raises:
        InvalidRequestError: An anchor is none or several things, or of the wrong length.
        NoLatentSpaceError: One is an image, and the model has no encoder.
    """
    (latent_dim,) = model.manifest.noise.shape
    for position, anchor in enumerate(anchors):
        given = [anchor.seed is not None, anchor.latent is not None, anchor.image is not None]
        if sum(given) != 1:
            raise _invalid(position, "", "give exactly one of seed, latent and image")
        if anchor.latent is not None and len(anchor.latent) != latent_dim:
            text = f"must have {latent_dim} numbers, has {len(anchor.latent)}"
            raise _invalid(position, "/latent", f"latent {text}")
        if anchor.image is not None and "encode" not in model.graphs:
            raise NoLatentSpaceError(
                f"{model.reference} has no encoder, so it",
                service.catalog.alternatives(model, "encode"),
            )


async def latents_of(
    service: Service,
    model: Model,
    anchors: Sequence[Anchor],
    label: int | None,
    timeout_s: float,
) -> tuple[FloatArray, list[Outcome[Any]]]:
    """Find the latents of anchors that `check_anchors` has let through.

    Args:
        service: Decodes pictures in its workers.
        model: A model with latents.
        anchors: K of them. An image becomes its posterior's mean.
        label: The class that images are encoded in, of a class-conditional model.
        timeout_s: Deadline of encoding.

    Returns:
        Shape (K, D), and what encoding took, if anything.

    Raises:
        InvalidRequestError: An image is not one of the model's.
    """
    latents = np.empty((len(anchors), *model.manifest.noise.shape), dtype=np.float32)
    pictures: dict[int, Anchor] = {}
    for position, anchor in enumerate(anchors):
        if anchor.seed is not None:
            latents[position] = model.noise_of(anchor.seed, anchor.index)
        elif anchor.latent is not None:
            latents[position] = anchor.latent
        elif anchor.image is not None:
            pictures[position] = anchor
    if not pictures:
        return latents, []
    images = await service.workers.run(lambda: _decode(model, pictures))
    labels = None if label is None else np.full(len(images), label, dtype=np.int64)
    outcome = await model.encode(
        images, lambda outputs: outputs["mean"], labels=labels, timeout_s=timeout_s
    )
    latents[list(pictures)] = outcome.value
    return latents, [outcome]


def _decode(model: Model, pictures: dict[int, Anchor]) -> ImageArray:
    decoded = []
    for position, anchor in pictures.items():
        assert anchor.image is not None
        try:
            decoded.append(
                decode_one(
                    anchor.image,
                    model.manifest.image,
                    resize=anchor.resize,
                    convert=anchor.convert,
                )
            )
        except ValueError as error:
            raise _invalid(position, "/image", str(error)) from error
    return np.concatenate(decoded)


def _invalid(position: int, pointer: str, text: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"anchor {position}: {text}", [(f"/anchors/{position}{pointer}", text)]
    )
