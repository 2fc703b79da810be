"""Everything that a call can raise, one class per slug of the HTTP contract.

    PthetaError
    ├── UnreachableError               no connection, or it was lost before an answer
    ├── TimedOutError                  no answer within the call's time
    ├── UnexpectedAnswerError          whatever answered is no ptheta: a proxy, another server
    └── ProblemError                   the server's own words; also slugs that are newer than this
        ├── InvalidRequestError            invalid-request
        ├── UnauthenticatedError           unauthenticated
        ├── ForbiddenError                 forbidden
        ├── UnknownModelError              unknown-model
        ├── NotFoundError                  not-found
        ├── MethodNotAllowedError          method-not-allowed
        ├── NotAcceptableError             not-acceptable
        ├── SlowRequestError               slow-request
        ├── PayloadTooLargeError           payload-too-large
        ├── UnsupportedMediaTypeError      unsupported-media-type
        ├── UnsupportedOperationError      unsupported-operation
        │   ├── LogProbUndefinedError      log-prob-undefined
        │   └── NoLatentSpaceError         no-latent-space
        ├── QuotaExceededError             quota-exceeded
        ├── InferenceFailedError           inference-failed
        ├── RetryableError                 what calls try again by themselves, for a while
        │   ├── OverloadedError            overloaded
        │   ├── DrainingError              draining
        │   └── ModelLoadingError          model-loading
        └── DeadlineExceededError          deadline-exceeded

What a caller gets wrong before anything is sent is a `ValueError`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import httpx

_MAX_SHOWN = 200


class PthetaError(Exception):
    """A call failed.

    Attributes:
        detail: What is wrong and what to do.
        request_id: What the server's log calls the request; None where it never answered.
        retry_after_s: Seconds after which the server asked to be tried again.
    """

    def __init__(
        self, detail: str, *, request_id: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class UnreachableError(PthetaError):
    """There is no connection, or it was lost before an answer."""


class TimedOutError(PthetaError):
    """There was no answer within the call's time."""


class UnexpectedAnswerError(PthetaError):
    """What came is no answer of ptheta: a proxy's page, or another server.

    Attributes:
        status: Its HTTP status.
    """

    def __init__(self, detail: str, status: int, **known: Any) -> None:
        super().__init__(detail, **known)
        self.status = status


class ProblemError(PthetaError):
    """The server refused, as problem+json (RFC 9457).

    Attributes:
        slug: Kind of the problem, a word of the HTTP contract.
        status: Its HTTP status.
        title: The kind in words.
        alternatives: Names of models that can do what this one cannot.
        errors: (pointer, detail) of each field that breaks its rule.
        problem: The whole JSON object.
    """

    own_slug: ClassVar[str | None] = None

    def __init__(
        self,
        problem: Mapping[str, Any],
        status: int,
        *,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        detail = str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")
        super().__init__(
            detail,
            request_id=problem.get("request_id") or request_id,
            retry_after_s=retry_after_s,
        )
        self.slug = str(problem["type"])
        self.status = status
        self.title = str(problem.get("title", ""))
        self.alternatives: tuple[str, ...] = tuple(problem.get("alternatives") or ())
        self.errors: tuple[tuple[str, str], ...] = tuple(
            (str(field.get("pointer", "")), str(field.get("detail", "")))
            for field in problem.get("errors") or ()
        )
        self.problem = problem


class InvalidRequestError(ProblemError):
    """A field breaks its rule; `errors` says which."""

    own_slug = "invalid-request"


class UnauthenticatedError(ProblemError):
    """The server wants an API key, or does not know this one."""

    own_slug = "unauthenticated"


class ForbiddenError(ProblemError):
    """The API key does not allow this."""

    own_slug = "forbidden"


class UnknownModelError(ProblemError):
    """No such model or version; `detail` lists those that there are."""

    own_slug = "unknown-model"


class NotFoundError(ProblemError):
    """No such route or file."""

    own_slug = "not-found"


class MethodNotAllowedError(ProblemError):
    """The route exists, with other methods."""

    own_slug = "method-not-allowed"


class NotAcceptableError(ProblemError):
    """The server cannot make such a format."""

    own_slug = "not-acceptable"


class SlowRequestError(ProblemError):
    """The body came too slowly."""

    own_slug = "slow-request"


class PayloadTooLargeError(ProblemError):
    """The body is over its limit: send fewer images per call."""

    own_slug = "payload-too-large"


class UnsupportedMediaTypeError(ProblemError):
    """The server does not read such bodies."""

    own_slug = "unsupported-media-type"


class UnsupportedOperationError(ProblemError):
    """The model cannot do this; `alternatives` can."""

    own_slug = "unsupported-operation"


class LogProbUndefinedError(UnsupportedOperationError):
    """An implicit model has no likelihood; `alternatives` have one."""

    own_slug = "log-prob-undefined"


class NoLatentSpaceError(UnsupportedOperationError):
    """The noise of the model is no smooth code of its images; that of `alternatives` is."""

    own_slug = "no-latent-space"


class QuotaExceededError(ProblemError):
    """The API key has used up what it may."""

    own_slug = "quota-exceeded"


class InferenceFailedError(ProblemError):
    """The server's fault; its log has the cause under `request_id`."""

    own_slug = "inference-failed"


class RetryableError(ProblemError):
    """Not now. It has been tried again, as often and as long as the client may."""


class OverloadedError(RetryableError):
    """The server's queue is full."""

    own_slug = "overloaded"


class DrainingError(RetryableError):
    """The server is shutting down."""

    own_slug = "draining"


class ModelLoadingError(RetryableError):
    """The server's models are not ready yet."""

    own_slug = "model-loading"


class DeadlineExceededError(ProblemError):
    """The call's time passed in the server; what had not begun was not run."""

    own_slug = "deadline-exceeded"


def error_of(response: httpx.Response) -> PthetaError:
    """Turn an answer that is no success into the error that it tells of.

    Args:
        response: The answer, read to its end.
    """
    request_id = response.headers.get("x-request-id")
    retry_after = response.headers.get("retry-after", "")
    retry_after_s = float(retry_after) if retry_after.isdecimal() else None
    problem = _problem_of(response)
    if problem is None:
        text = response.text[:_MAX_SHOWN]
        return UnexpectedAnswerError(
            f"{response.request.url} answered {response.status_code}, but no ptheta: {text!r}",
            response.status_code,
            request_id=request_id,
            retry_after_s=retry_after_s,
        )
    kind = _kinds().get(str(problem["type"]), ProblemError)
    return kind(problem, response.status_code, request_id=request_id, retry_after_s=retry_after_s)


def _problem_of(response: httpx.Response) -> Mapping[str, Any] | None:
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/problem+json":
        return None
    try:
        content = response.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) and "type" in content else None


def _kinds(base: type[ProblemError] = ProblemError) -> dict[str, type[ProblemError]]:
    kinds = {base.own_slug: base} if base.own_slug is not None else {}
    for child in base.__subclasses__():
        kinds |= _kinds(child)
    return kinds
