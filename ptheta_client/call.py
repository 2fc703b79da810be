"""A call: one request of the HTTP contract, and how its answer is read; knows no transport."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from ptheta_client.images import Upload

T = TypeVar("T")
LabelsInput = int | str | Sequence[int | str] | NDArray[np.integer[Any]]
"""Names or numbers of classes: one for all images, or one for each."""

_LARGEST_EXACT_INTEGER = 2**53
_MAX_TIMEOUT_MS = 86_400_000


@dataclass(frozen=True)
class Call(Generic[T]):
    """What to ask, and how to read the answer.

    Attributes:
        method: Of HTTP.
        path: Below the server's address.
        read: Reads an answer that is expected.
        fields: Of the request; those that are None are not sent.
        carrier: What carries the fields.
        npy: The body, where the query carries the fields.
        files: The images of a form.
        takes_deadline: Whether the server is told how long the call may take.
        timeout_s: Seconds for the whole call; None for the client's own.
        expected: Statuses that `read` can read.
        may_retry: Whether what may go well a moment later is tried again.
    """

    method: Literal["GET", "POST"]
    path: str
    read: Callable[[httpx.Response], T]
    fields: Mapping[str, Any] = field(default_factory=dict)
    carrier: Literal["query", "json", "form"] = "query"
    npy: bytes | None = None
    files: tuple[bytes, ...] = ()
    takes_deadline: bool = True
    timeout_s: float | None = None
    expected: frozenset[int] = frozenset({200})
    may_retry: bool = True

    def parts(self, left_s: float) -> dict[str, Any]:
        """Return what `httpx.Client.build_request` takes besides method and path.

        Args:
            left_s: Seconds that the server may still take.
        """
        given = {name: value for name, value in self.fields.items() if value is not None}
        if self.takes_deadline:
            given["timeout_ms"] = min(max(1, round(1000 * left_s)), _MAX_TIMEOUT_MS)
        if self.carrier == "json":
            return {"json": {name: as_json(value) for name, value in given.items()}}
        texts = {name: _as_text(name, value) for name, value in given.items()}
        if self.carrier == "form":
            images = [("images", (f"image-{i}", file)) for i, file in enumerate(self.files)]
            return {"data": texts, "files": images}
        if self.npy is None:
            return {"params": texts}
        headers = {"Content-Type": "application/x-npy"}
        return {"params": texts, "content": self.npy, "headers": headers}


def labels_field(labels: LabelsInput | None) -> Any:
    """Return labels as requests carry them."""
    if labels is None or isinstance(labels, int | str | np.integer):
        return labels
    return [label if isinstance(label, str) else int(label) for label in labels]


def upload_call(
    path: str,
    upload: Upload,
    read: Callable[[httpx.Response], T],
    fields: Mapping[str, Any],
    timeout_s: float | None,
) -> Call[T]:
    """Make a call that sends images."""
    carrier: Literal["query", "form"] = "form" if upload.npy is None else "query"
    return Call("POST", path, read, fields, carrier, upload.npy, upload.files, timeout_s=timeout_s)


def as_json(value: Any) -> Any:
    """Return a field's value as JSON carries it."""
    if isinstance(value, np.integer):
        value = int(value)
    # Proxies and gateways in other languages lose integers above 2⁵³; text they leave alone.
    if isinstance(value, int) and value > _LARGEST_EXACT_INTEGER:
        return str(value)
    return value


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        texts = [_as_text(name, item) for item in value]
        if any("," in text for text in texts):
            raise ValueError(f"{name}: a comma would be read as two; give numbers of classes")
        return ",".join(texts)
    return str(value)
