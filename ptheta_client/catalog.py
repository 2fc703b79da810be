"""Calls that ask what there is: /models and /readyz."""

from typing import Literal
from urllib.parse import quote

from ptheta_client.answers import read_model, read_models, read_readiness
from ptheta_client.call import Call
from ptheta_client.results import ModelInfo, Readiness

ModelFile = Literal["card", "preview", "film"]


def models(*, timeout_s: float | None = None) -> Call[tuple[ModelInfo, ...]]:
    """List the newest version of every model.

    Args:
        timeout_s: Seconds for the whole call; the client's own otherwise.

    Raises:
        PthetaError: The call failed; see `ptheta_client.errors`.
    """
    return Call("GET", "/models", read_models, takes_deadline=False, timeout_s=timeout_s)


def model(reference: str, *, timeout_s: float | None = None) -> Call[ModelInfo]:
    """Describe a model.

    Args:
        reference: Name for the newest version, or name@version.
        timeout_s: Seconds for the whole call; the client's own otherwise.
    """
    path = _path_of(reference)
    return Call("GET", path, read_model, takes_deadline=False, timeout_s=timeout_s)


def model_file(reference: str, file: ModelFile, *, timeout_s: float | None = None) -> Call[bytes]:
    """Fetch a model's card (Markdown), preview (PNG) or film of its training (WebP).

    Args:
        reference: Name for the newest version, or name@version.
        file: Which.
        timeout_s: Seconds for the whole call; the client's own otherwise.
    """
    path = f"{_path_of(reference)}/{file}"
    return Call("GET", path, lambda it: it.content, takes_deadline=False, timeout_s=timeout_s)


def ready(*, timeout_s: float | None = None) -> Call[Readiness]:
    """Tell whether the server is ready for traffic, and why not; asked once, never again."""
    return Call(
        "GET",
        "/readyz",
        read_readiness,
        takes_deadline=False,
        timeout_s=timeout_s,
        expected=frozenset({200, 503}),
        may_retry=False,
    )


def _path_of(reference: str) -> str:
    name, at, version = reference.partition("@")
    path = f"/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if at else path
