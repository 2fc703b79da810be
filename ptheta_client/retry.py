"""When a call is tried again, and for how long."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from ptheta_client.call import Call
from ptheta_client.errors import (
    PthetaError,
    RetryableError,
    TimedOutError,
    UnexpectedAnswerError,
    UnreachableError,
    error_of,
)

T = TypeVar("T")

# The server answers by itself when the time is up; the connection gets a little longer.
_GRACE_S = 5.0
_CONNECT_S = 5.0

# What proxies say for a server that is not there now.
_GATEWAY_STATUSES = {502, 503}

# No connection, so nothing was sent; or it ended before an answer, as an idle one does when its
# server stops. Sending again is safe in both cases: no route of the server changes anything.
_CONNECTION_ERRORS = (httpx.ConnectTimeout, httpx.NetworkError, httpx.RemoteProtocolError)


@dataclass(frozen=True)
class Retry:
    """How often and how long calls are tried again.

    The pause before the k-th retry is what the server asked for in `Retry-After`, and besides a
    random part of `first_pause_s`·2^(k-1), so that many clients do not come back in one moment. A
    call never waits beyond its own time: its last error is raised instead, at once.

    Attributes:
        max_attempts: Requests per call, the first included.
        first_pause_s: Longest random part of the first pause.
        max_pause_s: Longest random part of any pause.
        clock: Seconds that only grow.
        random: Draws from [0, 1).
    """

    max_attempts: int = 5
    first_pause_s: float = 0.25
    max_pause_s: float = 8.0
    clock: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is at least 1, not {self.max_attempts}")

    def pause_s(self, num_attempts: int, asked_s: float | None) -> float:
        """Return how long to wait.

        Args:
            num_attempts: Requests so far.
            asked_s: What the server asked for.
        """
        longest = min(self.first_pause_s * 2.0 ** (num_attempts - 1), self.max_pause_s)
        return (asked_s or 0.0) + longest * self.random()


class Exchange(Generic[T]):
    """One call on its way: its requests, and what becomes of their answers; does no I/O itself.

    Args:
        call: What to ask.
        retry: How often to try again.
        timeout_s: Seconds for all requests and pauses together.
    """

    def __init__(self, call: Call[T], retry: Retry, timeout_s: float) -> None:
        self._call = call
        self._retry = retry
        self._timeout_s = timeout_s
        self._end = retry.clock() + timeout_s
        self._num_attempts = 0

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Build the next request."""
        self._num_attempts += 1
        left_s = max(self._left_s(), 0.001)
        timeout = httpx.Timeout(left_s + _GRACE_S, connect=min(left_s, _CONNECT_S))
        parts: dict[str, Any] = self._call.parts(left_s)
        return http.build_request(self._call.method, self._call.path, timeout=timeout, **parts)

    def read(self, response: httpx.Response) -> T:
        """Read an answer.

        Raises:
            PthetaError: It tells of an error, or is no answer of ptheta.
        """
        if response.status_code not in self._call.expected:
            raise error_of(response)
        try:
            return self._call.read(response)
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as e:
            raise UnexpectedAnswerError(
                f"{response.request.url} answered, but no ptheta, or one of another version: {e!r}",
                response.status_code,
                request_id=response.headers.get("x-request-id"),
            ) from e

    def pause_after(self, error: httpx.TransportError | PthetaError) -> float:
        """Return how long to wait before the next request, in seconds.

        Raises:
            PthetaError: The call ends with this error.
        """
        failure = error if isinstance(error, PthetaError) else self._failure_of(error)
        cause = None if failure is error else error
        if not (self._call.may_retry and _is_passing(error)):
            raise failure from cause
        pause_s = self._retry.pause_s(self._num_attempts, failure.retry_after_s)
        if self._num_attempts >= self._retry.max_attempts or pause_s >= self._left_s():
            raise failure from cause
        return pause_s

    def _left_s(self) -> float:
        return self._end - self._retry.clock()

    def _failure_of(self, error: httpx.TransportError) -> PthetaError:
        text = str(error) or type(error).__name__
        if isinstance(error, httpx.TimeoutException) and not isinstance(
            error, httpx.ConnectTimeout
        ):
            return TimedOutError(f"no answer within {self._timeout_s:g} s: {text}")
        return UnreachableError(f"the server cannot be reached: {text}")


def _is_passing(error: httpx.TransportError | PthetaError) -> bool:
    """Tell whether the same request may go well a moment later."""
    if isinstance(error, UnexpectedAnswerError):
        return error.status in _GATEWAY_STATUSES
    return isinstance(error, (RetryableError, *_CONNECTION_ERRORS))
