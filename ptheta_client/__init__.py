"""A typed client of ptheta: sample, walk through latent space, and score images, from Python.

Example:
    >>> from ptheta_client import Client
    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     digits = client.sample(model="nade-mnist", n=16, seed=7)
    ...     scores = client.log_prob(digits.images, model="nade-mnist")
"""

from ptheta_client.client import AsyncClient, Client
from ptheta_client.errors import (
    DeadlineExceededError,
    DrainingError,
    ForbiddenError,
    InferenceFailedError,
    InvalidRequestError,
    LogProbUndefinedError,
    MethodNotAllowedError,
    ModelLoadingError,
    NoLatentSpaceError,
    NotAcceptableError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    ProblemError,
    PthetaError,
    QuotaExceededError,
    RetryableError,
    SlowRequestError,
    TimedOutError,
    UnauthenticatedError,
    UnexpectedAnswerError,
    UnknownModelError,
    UnreachableError,
    UnsupportedMediaTypeError,
    UnsupportedOperationError,
)
from ptheta_client.images import ImageInput
from ptheta_client.results import (
    Classification,
    Classifications,
    Images,
    Latents,
    ModelInfo,
    Readiness,
    Samples,
    Score,
    Scores,
    Walk,
)
from ptheta_client.retry import Retry

__all__ = [
    "AsyncClient",
    "Classification",
    "Classifications",
    "Client",
    "DeadlineExceededError",
    "DrainingError",
    "ForbiddenError",
    "ImageInput",
    "Images",
    "InferenceFailedError",
    "InvalidRequestError",
    "Latents",
    "LogProbUndefinedError",
    "MethodNotAllowedError",
    "ModelInfo",
    "ModelLoadingError",
    "NoLatentSpaceError",
    "NotAcceptableError",
    "NotFoundError",
    "OverloadedError",
    "PayloadTooLargeError",
    "ProblemError",
    "PthetaError",
    "QuotaExceededError",
    "Readiness",
    "Retry",
    "RetryableError",
    "Samples",
    "Score",
    "Scores",
    "SlowRequestError",
    "TimedOutError",
    "UnauthenticatedError",
    "UnexpectedAnswerError",
    "UnknownModelError",
    "UnreachableError",
    "UnsupportedMediaTypeError",
    "UnsupportedOperationError",
    "Walk",
]
