"""Everything that can go wrong for a client, one class per slug of the HTTP contract.

    ProblemError
    ├── InvalidRequestError            422  invalid-request
    │   └── MalformedRequestError      400  invalid-request
    ├── UnauthenticatedError           401  unauthenticated
    ├── ForbiddenError                 403  forbidden
    ├── UnknownModelError              404  unknown-model
    ├── NotFoundError                  404  not-found
    ├── MethodNotAllowedError          405  method-not-allowed
    ├── NotAcceptableError             406  not-acceptable
    ├── SlowRequestError               408  slow-request
    ├── PayloadTooLargeError           413  payload-too-large
    ├── UnsupportedMediaTypeError      415  unsupported-media-type
    ├── UnsupportedOperationError      422  unsupported-operation
    │   ├── LogProbUndefinedError      422  log-prob-undefined
    │   └── NoLatentSpaceError         422  no-latent-space
    ├── InferenceFailedError           500  inference-failed
    ├── RetryableError                 503
    │   ├── QuotaExceededError         429  quota-exceeded
    │   ├── OverloadedError            503  overloaded
    │   ├── DrainingError              503  draining
    │   └── ModelLoadingError          503  model-loading
    └── DeadlineExceededError          504  deadline-exceeded

A detail says what is wrong and what to do. What is not in this list is a bug, and a client sees it
as `inference-failed` without its text.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar


class ProblemError(Exception):
    """Something that a client is told about as problem+json (RFC 9457).

    Args:
        detail: What is wrong and what to do.
        extensions: Further members of the JSON object.
    """

    slug: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]

    def __init__(self, detail: str, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extensions = extensions

    @property
    def headers(self) -> dict[str, str]:
        """Further headers of the answer."""
        return {}

    def content(self, request_id: str) -> dict[str, Any]:
        """Return the answer's JSON object.

        Args:
            request_id: What the log knows the request by.
        """
        return {
            "type": self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "error": self.detail,  # where clients of the Open Inference Protocol look
            "request_id": request_id,
            **self.extensions,
        }


class InvalidRequestError(ProblemError):
    """A field breaks its rule.

    Args:
        detail: What is wrong and what to do.
        errors: One (pointer, detail) per field; a pointer is `/anchors/0/seed`.
    """

    slug, status, title = "invalid-request", 422, "The request is not valid"

    def __init__(self, detail: str, errors: Sequence[tuple[str, str]] = ()) -> None:
        fields = [{"pointer": pointer, "detail": text} for pointer, text in errors]
        super().__init__(detail, **({"errors": fields} if fields else {}))

    @classmethod
    def of_field(cls, name: str, detail: str) -> "InvalidRequestError":
        """Blame one field."""
        return cls(f"{name}: {detail}", [(f"/{name}", detail)])


class MalformedRequestError(InvalidRequestError):
    """The body cannot be parsed at all."""

    status, title = 400, "The request cannot be read"


class UnauthenticatedError(ProblemError):
    """No API key, or one that is not known here.

    Args:
        detail: What is wrong and what to do.
        has_key: Whether there was one.
    """

    slug, status, title = "unauthenticated", 401, "An API key is needed"

    def __init__(self, detail: str, *, has_key: bool = False) -> None:
        super().__init__(detail)
        self._has_key = has_key

    @property
    def headers(self) -> dict[str, str]:
        """Tell how to send a key, by RFC 6750, section 3."""
        reason = ', error="invalid_token"' if self._has_key else ""
        return {"WWW-Authenticate": f'Bearer realm="ptheta"{reason}'}


class ForbiddenError(ProblemError):
    """The API key does not allow this."""

    slug, status, title = "forbidden", 403, "The API key does not allow this"


class UnknownModelError(ProblemError):
    """No such model or version."""

    slug, status, title = "unknown-model", 404, "No such model"

    def __init__(self, reference: str, available: Sequence[str]) -> None:
        listed = ", ".join(available) or "none: the model store is empty"
        super().__init__(
            f"there is no model {reference!r}; available: {listed}", available=list(available)
        )


class NotFoundError(ProblemError):
    """No such route or file."""

    slug, status, title = "not-found", 404, "Nothing is here"


class MethodNotAllowedError(ProblemError):
    """The route exists, with other methods."""

    slug, status, title = "method-not-allowed", 405, "Method not allowed"

    def __init__(self, path: str, method: str, allowed: Sequence[str]) -> None:
        self.allowed = allowed
        listed = ", ".join(allowed)
        super().__init__(f"{path} does not answer {method}, only {listed}; see /docs")

    @property
    def headers(self) -> dict[str, str]:
        """Tell which methods there are."""
        return {"Allow": ", ".join(self.allowed)}


class NotAcceptableError(ProblemError):
    """None of the formats in `Accept` can be made."""

    slug, status, title = "not-acceptable", 406, "No such format"

    def __init__(self, accept: str, possible: Sequence[str]) -> None:
        super().__init__(
            f"cannot answer as {accept!r}; possible: {', '.join(possible)}",
            possible=list(possible),
        )


class SlowRequestError(ProblemError):
    """The body came too slowly."""

    slug, status, title = "slow-request", 408, "The request came too slowly"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the body was not complete after {limit_s:g} s; send it faster or split")


class PayloadTooLargeError(ProblemError):
    """The body is over its limit."""

    slug, status, title = "payload-too-large", 413, "The body is too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the body is larger than {limit_bytes} bytes; send fewer images per request",
            limit_bytes=limit_bytes,
        )


class UnsupportedMediaTypeError(ProblemError):
    """The body's media type is not one that the route reads."""

    slug, status, title = "unsupported-media-type", 415, "Unsupported media type"

    def __init__(self, content_type: str, possible: Sequence[str]) -> None:
        super().__init__(
            f"cannot read a body of type {content_type!r}; send one of: {', '.join(possible)}",
            possible=list(possible),
        )


class UnsupportedOperationError(ProblemError):
    """The model cannot do this; others may."""

    slug, status, title = "unsupported-operation", 422, "The model cannot do this"

    def __init__(self, reason: str, alternatives: Sequence[str]) -> None:
        listed = ", ".join(alternatives) or "none in this store"
        super().__init__(f"{reason}; models that can: {listed}", alternatives=list(alternatives))


class LogProbUndefinedError(UnsupportedOperationError):
    """An implicit model has no likelihood."""

    slug, title = "log-prob-undefined", "The model has no likelihood"

    def __init__(self, reference: str, alternatives: Sequence[str]) -> None:
        reason = f"{reference} is implicit: it can make images, but not say how likely one is"
        super().__init__(reason, alternatives)


class NoLatentSpaceError(UnsupportedOperationError):
    """The noise of the model is no smooth code of its images."""

    slug, title = "no-latent-space", "The model has no latent space"

    def __init__(self, reference: str, alternatives: Sequence[str]) -> None:
        super().__init__(f"{reference} has no latent space to work in", alternatives)


class InferenceFailedError(ProblemError):
    """Our fault; the cause is in the log under the request id."""

    slug, status, title = "inference-failed", 500, "Inference failed"

    def __init__(self, detail: str = "the cause is in the server's log, by request_id") -> None:
        super().__init__(detail)


class RetryableError(ProblemError):
    """Not now; the same request may succeed after a while.

    Args:
        detail: What is wrong and what to do.
        retry_after_s: When to try again; rounded up to whole seconds for the client.
    """

    status = 503

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Tell when to try again."""
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


class QuotaExceededError(RetryableError):
    """The API key has used up what it may, for now."""

    slug, status, title = "quota-exceeded", 429, "The quota is used up"


class OverloadedError(RetryableError):
    """The queue is full."""

    slug, title = "overloaded", "The server is overloaded"


class DrainingError(RetryableError):
    """The server is shutting down."""

    slug, title = "draining", "The server is shutting down"

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send the request to another replica")


class ModelLoadingError(RetryableError):
    """The models are not ready yet."""

    slug, title = "model-loading", "Models are loading"

    def __init__(self) -> None:
        super().__init__("the models are being loaded and verified; try again soon")


class DeadlineExceededError(ProblemError):
    """The request's deadline passed; its rows are not run."""

    slug, status, title = "deadline-exceeded", 504, "The deadline passed"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"not done after {1000 * timeout_s:g} ms; ask for fewer images or raise timeout_ms"
        )


def all_problems(base: type[ProblemError] = ProblemError) -> list[type[ProblemError]]:
    """List the classes of all problems that a client can be told of."""
    own = [base] if "slug" in vars(base) and hasattr(base, "status") else []
    return own + [problem for child in base.__subclasses__() for problem in all_problems(child)]
