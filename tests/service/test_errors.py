"""The closed list of errors: every class is complete, documented, and rendered in one shape."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service import errors
from service.app import create_app
from service.errors import ProblemError
from service.settings import Settings

MADE: list[ProblemError] = [
    errors.InvalidRequestError("n: too large", [("/n", "too large")]),
    errors.MalformedRequestError("no JSON"),
    errors.UnauthenticatedError("no key"),
    errors.ForbiddenError("not this"),
    errors.QuotaExceededError("later", retry_after_s=3),
    errors.UnknownModelError("x", ["a@1"]),
    errors.NotFoundError("nothing"),
    errors.MethodNotAllowedError("/sample", "PUT", ["GET", "POST"]),
    errors.NotAcceptableError("text/html", ["image/png"]),
    errors.SlowRequestError(2.5),
    errors.PayloadTooLargeError(1000),
    errors.UnsupportedMediaTypeError("text/html", ["application/json"]),
    errors.UnsupportedOperationError("x cannot", ["a"]),
    errors.LogProbUndefinedError("x@1", ["a"]),
    errors.NoLatentSpaceError("x@1", []),
    errors.InferenceFailedError(),
    errors.OverloadedError("full", retry_after_s=2.2),
    errors.DrainingError(),
    errors.ModelLoadingError(),
    errors.DeadlineExceededError(0.25),
]


def concrete(root: type[ProblemError] = ProblemError) -> Iterator[type[ProblemError]]:
    for kind in root.__subclasses__():
        yield from concrete(kind)
        if hasattr(kind, "slug"):
            yield kind


async def rendered(error: ProblemError) -> httpx.Response:
    app = create_app(Settings())

    @app.get("/fails")
    async def fail() -> None:
        raise error

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/fails", headers={"X-Request-ID": "the-id"})


def test_every_class_is_tried_below() -> None:
    assert {type(error) for error in MADE} == set(concrete())


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"(\w+Error) +(\d+)(?:  ([a-z-]+))?", errors.__doc__ or "")
    told = {name: (int(status), slug) for name, status, slug in drawn}
    real = {kind.__name__: (kind.status, kind.slug) for kind in concrete()}
    assert told == real | {"RetryableError": (503, "")}


@pytest.mark.anyio
@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
async def test_every_class_is_rendered_in_one_shape(error: ProblemError) -> None:
    response = await rendered(error)
    content: dict[str, Any] = response.json()
    assert response.status_code == error.status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "the-id"
    shared = {name: content.pop(name) for name in list(content) if name not in error.extensions}
    assert shared == {
        "type": error.slug,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "error": error.detail,
        "request_id": "the-id",
    }
    assert content == json.loads(json.dumps(error.extensions))


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_every_detail_is_text_without_internals(error: ProblemError) -> None:
    assert error.detail
    assert error.title[0].isupper()
    assert "Traceback" not in error.detail
    assert "object at 0x" not in error.detail


@pytest.mark.anyio
@pytest.mark.parametrize(("wait_s", "header"), [(0.0, "1"), (0.2, "1"), (2.0, "2"), (2.2, "3")])
async def test_retry_after_is_whole_seconds_and_never_too_early(wait_s: float, header: str) -> None:
    response = await rendered(errors.OverloadedError("full", retry_after_s=wait_s))
    assert response.headers["retry-after"] == header


@pytest.mark.anyio
async def test_a_bug_is_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings())

    @app.get("/fails")
    async def fail() -> None:
        raise RuntimeError("secret")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/fails", headers={"X-Request-ID": "the-id"})
    assert (response.status_code, response.json()["type"]) == (500, "inference-failed")
    assert response.headers["x-request-id"] == response.json()["request_id"] == "the-id"
    assert "secret" not in response.text
    logged = next(record for record in caplog.records if record.exc_info)
    assert "the-id" in logged.getMessage()
