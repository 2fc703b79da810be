"""What tests read of answers."""

import base64
import io
import re
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

SHARED_MEMBERS = {"type", "title", "status", "detail", "error", "request_id"}


def told(response: httpx.Response) -> str:
    """Return what a failed test should show of an answer."""
    return f"{response.status_code} {response.content[:500]!r}"


def problem(response: httpx.Response, slug: str, status: int) -> dict[str, Any]:
    """Check that an answer is a whole problem of one kind, and return it."""
    assert response.status_code == status, told(response)
    assert response.headers["content-type"] == "application/problem+json"
    content: dict[str, Any] = response.json()
    assert content["type"] == slug, content
    assert content.keys() >= SHARED_MEMBERS
    assert content["status"] == status
    assert content["title"]
    assert content["detail"] == content["error"]
    assert content["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == (status in {429, 503})
    return content


def invalid(response: httpx.Response, pointer: str) -> dict[str, Any]:
    """Check that an answer blames exactly one field, and return the problem."""
    content = problem(response, "invalid-request", 422)
    pointers = [field["pointer"] for field in content.get("errors", [])]
    assert pointers == [pointer], content
    return content


def answer(response: httpx.Response) -> dict[str, Any]:
    """Check that a request succeeded with JSON, and return it."""
    assert response.status_code == 200, told(response)
    assert response.headers["content-type"] == "application/json"
    content: dict[str, Any] = response.json()
    return content


def picture(response: httpx.Response, media_type: str = "image/png") -> NDArray[np.uint8]:
    """Check that an answer is a picture, and return its pixels."""
    assert response.status_code == 200, told(response)
    assert response.headers["content-type"] == media_type
    return pixels_of(response.content)


def pixels_of(content: bytes) -> NDArray[np.uint8]:
    """Decode a picture."""
    return np.asarray(PillowImage.open(io.BytesIO(content)))


def pixels_of_base64(text: str) -> NDArray[np.uint8]:
    """Decode a picture in standard base64, strictly."""
    return pixels_of(base64.b64decode(text, validate=True))


def array(response: httpx.Response) -> NDArray[Any]:
    """Check that an answer is an array, and return it."""
    assert response.status_code == 200, told(response)
    assert response.headers["content-type"] == "application/x-npy"
    loaded: NDArray[Any] = np.load(io.BytesIO(response.content), allow_pickle=False)
    return loaded


def batch_rows(response: httpx.Response) -> int:
    """Return the rows of the largest batch that a request was in."""
    match = re.search(r'batch;desc="(\d+) rows"', response.headers["server-timing"])
    assert match is not None
    return int(match[1])


def npy(pixels: NDArray[Any]) -> bytes:
    """Encode an array."""
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def png_base64(pixels: NDArray[np.uint8]) -> str:
    """Encode a picture in base64."""
    return base64.b64encode(png(pixels)).decode()
