"""Whatever the service can refuse has a class here, and carries all that it was told."""

import pytest

import ptheta_client
from ptheta_client import (
    LogProbUndefinedError,
    NoLatentSpaceError,
    ProblemError,
    PthetaError,
    UnknownModelError,
    UnsupportedOperationError,
)
from service.errors import all_problems
from tests.client.conftest import Connect, Play
from tests.client.loopback import refusal


@pytest.mark.parametrize("slug", sorted({problem.slug for problem in all_problems()}))
def test_every_problem_of_the_service_has_a_class(connect: Connect, play: Play, slug: str) -> None:
    with pytest.raises(ProblemError) as raised:
        connect(play(refusal(slug, 422, None)).url, sleep=lambda _: None).models()
    assert type(raised.value).own_slug == raised.value.slug == slug
    assert type(raised.value).__name__ in ptheta_client.__all__


def test_a_problem_tells_all_that_the_server_said(connect: Connect, play: Play) -> None:
    step = refusal(
        "log-prob-undefined",
        422,
        "7",
        alternatives=["nade", "vae"],
        errors=[{"pointer": "/model", "detail": "is implicit"}],
        request_id="r-1",
    )
    with pytest.raises(LogProbUndefinedError) as raised:
        connect(play(step).url).models()
    error = raised.value
    assert isinstance(error, UnsupportedOperationError)
    assert isinstance(error, PthetaError)
    assert (error.slug, error.status, error.request_id) == ("log-prob-undefined", 422, "r-1")
    assert str(error) == error.detail == "because log-prob-undefined"
    assert error.alternatives == ("nade", "vae")
    assert error.errors == (("/model", "is implicit"),)
    assert error.retry_after_s == 7


def test_a_slug_that_is_newer_than_the_client_is_a_problem_too(
    connect: Connect, play: Play
) -> None:
    with pytest.raises(ProblemError) as raised:
        connect(play(refusal("too-purple", 418, None)).url).models()
    assert type(raised.value) is ProblemError
    assert raised.value.slug == "too-purple"


def test_a_real_server_tells_alternatives_and_its_request_id(client: object, url: str) -> None:
    with pytest.raises(NoLatentSpaceError) as raised:
        client.interpolate([1, 2], model="tiny-binary")  # type: ignore[attr-defined]
    assert "tiny-latent" in raised.value.alternatives
    assert raised.value.request_id


def test_an_unknown_model_is_told_with_those_that_there_are(client: object) -> None:
    with pytest.raises(UnknownModelError, match="tiny-latent"):
        client.sample(model="nobody")  # type: ignore[attr-defined]
