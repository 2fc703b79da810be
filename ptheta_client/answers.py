"""Answers of the server, read into results."""

import math
from typing import Any

import httpx
import numpy as np

from ptheta_client.images import decode_npy, decode_png
from ptheta_client.results import (
    Classification,
    Classifications,
    Document,
    Float32Array,
    Float64Array,
    Images,
    Latents,
    ModelInfo,
    Readiness,
    Samples,
    Score,
    Scores,
    Walk,
)


def read_samples(response: httpx.Response) -> Samples:
    """Read the JSON answer of /sample or /complete."""
    content = response.json()
    images = content["images"]
    seed = content.get("seed")
    return Samples(
        **_model_of(content),
        images=np.stack([decode_png(image["png"]) for image in images]),
        seed=None if seed is None else int(seed),
        indices=tuple(image["index"] for image in images),
        labels=_every(images, "label"),
        latents=_stack(images, "latent"),
        log_prob=_every_number(images, "log_prob"),
    )


def read_walk(response: httpx.Response) -> Walk:
    """Read the JSON answer of /interpolate."""
    content = response.json()
    frames = content["frames"]
    return Walk(
        **_model_of(content),
        images=np.stack([decode_png(frame["png"]) for frame in frames]),
        method=content["method"],
        t=_every(frames, "t"),
        latents=_stack(frames, "latent"),
        labels=_every(frames, "label"),
    )


def read_images(response: httpx.Response) -> Images:
    """Read an array of images."""
    return Images(**_model_in_header(response), images=decode_npy(response.content))


def read_latents(response: httpx.Response) -> Latents:
    """Read the array of /encode, (n, 2, D)."""
    posterior = decode_npy(response.content)
    return Latents(
        **_model_in_header(response), mean=posterior[:, 0].copy(), log_var=posterior[:, 1].copy()
    )


def read_scores(response: httpx.Response) -> Scores:
    """Read the JSON answer of /log_prob."""
    content = response.json()
    return Scores(
        **_model_of(content),
        density=content["density"],
        estimator=content["estimator"],
        num_dims=content["num_dims"],
        results=tuple(map(_score, content["results"])),
        num_importance_samples=content.get("num_importance_samples"),
        preprocess=content.get("preprocess") or {},
    )


def _score(result: Document) -> Score:
    status = result["status"]
    # JSON has no infinity.
    instead = {"neg_inf": -math.inf}.get(status, math.nan)
    log_prob, bits_per_dim = result["log_prob"], result["bits_per_dim"]
    per_dim = result.get("per_dim")
    return Score(
        index=result["index"],
        log_prob=instead if log_prob is None else log_prob,
        bits_per_dim=-instead if bits_per_dim is None else bits_per_dim,
        status=status,
        std_error=result.get("std_error"),
        p_value=result.get("p_value"),
        anomaly_score=result.get("anomaly_score"),
        per_dim=None if per_dim is None else np.array(per_dim, dtype=np.float64),
    )


def read_classifications(response: httpx.Response) -> Classifications:
    """Read the JSON answer of /classify."""
    content = response.json()
    return Classifications(
        **_model_of(content),
        results=tuple(
            Classification(
                result["index"],
                result["label"],
                {name: math.nan if p is None else p for name, p in result["probs"].items()},
            )
            for result in content["results"]
        ),
    )


def read_models(response: httpx.Response) -> tuple[ModelInfo, ...]:
    """Read the answer of /models."""
    return tuple(map(_model_info, response.json()["models"]))


def read_model(response: httpx.Response) -> ModelInfo:
    """Read the description of one model."""
    return _model_info(response.json())


def _model_info(document: Document) -> ModelInfo:
    channels, height, width = document["image"]["shape"]
    noise = document["noise"]
    return ModelInfo(
        name=document["name"],
        version=document["version"],
        family=document["family"],
        description=document["description"],
        density=document["density"],
        operations=tuple(document["operations"]),
        versions=tuple(document["versions"]),
        image_shape=(channels, height, width),
        values=document["image"]["values"],
        labels=tuple(document["labels"]),
        latent_dim=noise["shape"][0] if noise["latent"] else None,
        limits=document["limits"],
        document=document,
    )


def read_readiness(response: httpx.Response) -> Readiness:
    """Read the answer of /readyz."""
    content = response.json()
    return Readiness(
        is_ready=response.status_code == httpx.codes.OK,
        reason=content.get("reason"),
        models=tuple(content["models"]),
        broken=content.get("broken") or {},
    )


def _model_of(content: Document) -> dict[str, Any]:
    return {"model": content["model"], "version": content["version"]}


def _model_in_header(response: httpx.Response) -> dict[str, Any]:
    name, _, version = response.headers["x-model"].rpartition("@")
    return {"model": name, "version": int(version)}


def _every(items: list[Document], name: str) -> tuple[Any, ...] | None:
    return tuple(item[name] for item in items) if name in items[0] else None


def _every_number(items: list[Document], name: str) -> Float64Array | None:
    values = _every(items, name)
    return None if values is None else np.array(values, dtype=np.float64)


def _stack(items: list[Document], name: str) -> Float32Array | None:
    rows = _every(items, name)
    return None if rows is None else np.array(rows, dtype=np.float32)
