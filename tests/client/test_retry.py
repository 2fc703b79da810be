"""What passes is tried again, as the server asks, and never for ever."""

import json
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest

from ptheta_client import (
    DeadlineExceededError,
    DrainingError,
    ModelLoadingError,
    OverloadedError,
    Retry,
    UnexpectedAnswerError,
    UnreachableError,
)
from tests.client.conftest import Connect, Play
from tests.client.loopback import Loopback, Step, refusal

MODELS = Step(content={"models": []})
JITTER = 0.5


@dataclass
class FakeTime:
    """A clock that only sleeping moves."""

    now: float = 100.0
    pauses: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def options(self, **retry: Any) -> dict[str, Any]:
        """Return what makes a client live in this time."""
        policy = Retry(clock=lambda: self.now, random=lambda: JITTER, **retry)
        return {"retry": policy, "sleep": self.sleep}


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.mark.parametrize("slug", ["overloaded", "draining", "model-loading"])
def test_a_call_waits_as_long_as_the_server_asks_and_a_little_more(
    connect: Connect, play: Play, time: FakeTime, slug: str
) -> None:
    server = play(refusal(slug, retry_after="3"), refusal(slug, retry_after="2"), MODELS)
    client = connect(server.url, **time.options(first_pause_s=0.2))
    assert client.models() == ()
    assert time.pauses == pytest.approx([3 + 0.2 * JITTER, 2 + 0.4 * JITTER])
    assert len(server.received) == 3


def test_pauses_without_an_order_grow_up_to_a_limit(
    connect: Connect, play: Play, time: FakeTime
) -> None:
    server = play(*[refusal("overloaded", retry_after=None)] * 4, MODELS)
    client = connect(server.url, **time.options(first_pause_s=1, max_pause_s=3))
    client.models()
    assert time.pauses == pytest.approx([1 * JITTER, 2 * JITTER, 3 * JITTER, 3 * JITTER])


@pytest.mark.parametrize(
    ("slug", "error"),
    [("overloaded", OverloadedError), ("draining", DrainingError)],
)
def test_the_number_of_requests_is_bounded(
    connect: Connect, play: Play, time: FakeTime, slug: str, error: type[Exception]
) -> None:
    server = play(refusal(slug))
    with pytest.raises(error, match=f"because {slug}"):
        connect(server.url, **time.options(max_attempts=3)).models()
    assert len(server.received) == 3


def test_a_call_never_waits_beyond_its_own_time(
    connect: Connect, play: Play, time: FakeTime
) -> None:
    server = play(refusal("model-loading", retry_after="4"))
    with pytest.raises(ModelLoadingError) as raised:
        connect(server.url, timeout_s=10, **time.options(max_attempts=100)).models()
    assert len(server.received) == 3  # two pauses of a little over 4 s fit, a third does not
    assert sum(time.pauses) < 10
    assert raised.value.retry_after_s == 4


def test_the_server_is_told_what_is_left_of_the_time(
    connect: Connect, play: Play, time: FakeTime
) -> None:
    server = play(refusal("overloaded", retry_after="2"), refusal("unknown", 500, None))
    with pytest.raises(Exception, match="because unknown"):
        connect(server.url, **time.options(first_pause_s=0)).sample(seed=1, timeout_s=5)
    bodies = [json.loads(received.body) for received in server.received]
    assert [body["timeout_ms"] for body in bodies] == [5000, 3000]
    assert bodies[0] | {"timeout_ms": 3000} == bodies[1]


def test_a_lost_connection_is_tried_again(connect: Connect, play: Play, time: FakeTime) -> None:
    server = play(Step(hangs_up=True), MODELS)
    assert connect(server.url, **time.options()).models() == ()
    assert len(time.pauses) == 1


def test_a_server_that_is_not_there_is_tried_again_and_named_unreachable(
    connect: Connect, time: FakeTime
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # nobody listens there a moment later
    with pytest.raises(UnreachableError, match="cannot be reached"):
        connect(f"http://127.0.0.1:{port}", **time.options(max_attempts=4)).models()
    assert len(time.pauses) == 3


def test_a_gateway_without_a_server_is_tried_again(
    connect: Connect, play: Play, time: FakeTime
) -> None:
    page = Step(502, "<html>Bad Gateway</html>", media_type="text/html")
    assert connect(play(page, MODELS).url, **time.options()).models() == ()
    with pytest.raises(UnexpectedAnswerError, match="Bad Gateway") as raised:
        connect(play(page).url, **time.options()).models()
    assert raised.value.status == 502


@pytest.mark.parametrize(
    "step",
    [
        refusal("invalid-request", 422, None),
        refusal("inference-failed", 500, None),
        refusal("quota-exceeded", 429, "1"),
        refusal("deadline-exceeded", 504, None),
        Step(200, "<html>hello</html>", media_type="text/html"),
        Step(404, "<html>nothing here</html>", media_type="text/html"),
    ],
    ids=lambda step: f"{step.status}",
)
def test_what_would_fail_again_is_raised_at_once(
    connect: Connect, play: Play, time: FakeTime, step: Step
) -> None:
    server: Loopback = play(step)
    with pytest.raises(Exception, match=r"because|hello|nothing here|no ptheta"):
        connect(server.url, **time.options()).models()
    assert len(server.received) == 1
    assert not time.pauses


def test_readiness_is_asked_once(connect: Connect, play: Play, time: FakeTime) -> None:
    content = {"status": "not ready", "reason": "loading", "models": []}
    server = play(Step(503, content))
    readiness = connect(server.url, **time.options()).ready()
    assert not readiness.is_ready
    assert readiness.reason == "loading"
    assert len(server.received) == 1


def test_a_deadline_of_the_server_is_named(connect: Connect, play: Play) -> None:
    with pytest.raises(DeadlineExceededError):
        connect(play(refusal("deadline-exceeded", 504, None)).url).sample()


def test_jitter_spreads_clients() -> None:
    pauses = {Retry().pause_s(3, asked_s=2) for _ in range(20)}
    assert len(pauses) > 1
    assert all(2 <= pause_s < 2 + 1 for pause_s in pauses)


def test_no_attempt_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Retry(max_attempts=0)
