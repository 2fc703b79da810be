"""A bucket lets the right number of rows pass, whichever process they come to."""

import os
import signal
import sys

import pytest

from service.quota import Bucket, Slots


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def bucket(clock: Clock, rows_per_minute: float = 60, most_rows: int = 10) -> Bucket:
    return Bucket(Slots(1), 0, rows_per_minute, most_rows, clock)


def test_it_begins_full(clock: Clock) -> None:
    full = bucket(clock)
    assert (full.num_rows, full.seconds_until_full, full.seconds_to_fill) == (10, 0, 10)
    assert full.take(10) == 0
    assert full.num_rows == 0


def test_all_or_nothing_is_taken_and_the_wait_is_told(clock: Clock) -> None:
    half = bucket(clock)
    assert half.take(7) == 0
    assert half.take(4) == pytest.approx(1)
    assert half.num_rows == 3
    assert half.take(3) == 0


def test_after_the_wait_that_was_told_the_rows_are_there(clock: Clock) -> None:
    for rows_per_minute in (7, 60, 1234.5):
        empty = bucket(clock, rows_per_minute)
        empty.take(10)
        wait_s = empty.take(4)
        clock.now += wait_s * 0.99
        assert empty.take(4) > 0
        clock.now += wait_s * 0.01
        assert empty.take(4) == 0


def test_it_fills_at_its_rate_and_no_further(clock: Clock) -> None:
    empty = bucket(clock)
    empty.take(10)
    clock.now += 3.5
    assert empty.num_rows == 3
    clock.now += 3600
    assert empty.num_rows == 10
    assert empty.take(11) > 0


def test_in_the_long_run_the_rate_is_kept(clock: Clock) -> None:
    asked = bucket(clock, rows_per_minute=30, most_rows=4)
    taken = 0
    for _ in range(6000):
        clock.now += 0.1
        taken += asked.take(1) == 0
    assert taken == 300 + 4 - 1  # what fills up in ten minutes, and what was there; the last comes


def test_what_is_owed_is_waited_for(clock: Clock) -> None:
    owing = bucket(clock)
    owing.take(10)
    assert owing.take(5, may_owe=True) == 0
    assert owing.num_rows == 0
    assert owing.take(1) == pytest.approx(6)


def test_the_number_of_rows_is_what_can_be_taken(clock: Clock) -> None:
    for most_rows in range(1, 40):
        for rows_per_minute in (1, 7, 59.9, 1000):
            some = bucket(clock, rows_per_minute, most_rows)
            some.take(most_rows // 3)
            clock.now += 0.37
            left = some.num_rows
            assert some.take(left + 1) > 0
            assert some.take(left) == 0


def test_callers_do_not_share_what_they_have(clock: Clock) -> None:
    slots = Slots(2)
    one, other = (Bucket(slots, index, 60, 10, clock) for index in range(2))
    one.take(10)
    assert (one.num_rows, other.num_rows) == (0, 10)


needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")


@needs_fork
def test_processes_never_take_more_than_there_is() -> None:
    """Each tries for far more than its share; a lost update would let some pass twice."""
    slots = Slots(2, num_processes=4)
    most_rows = 3000
    shared = Bucket(slots, 1, rows_per_minute=1e-3, most_rows=most_rows)
    children = []
    for _ in range(4):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            taken = sum(shared.take(1) == 0 for _ in range(most_rows))
            os.write(writing, taken.to_bytes(4, "big"))
            os._exit(0)
        os.close(writing)
        children.append((pid, reading))
    counts = []
    for pid, reading in children:
        counts.append(int.from_bytes(os.read(reading, 4), "big"))
        os.close(reading)
        os.waitpid(pid, 0)
    assert sum(counts) == most_rows


@needs_fork
def test_a_process_that_dies_in_the_middle_locks_nobody_out() -> None:
    slots = Slots(1, num_processes=2)
    shared = Bucket(slots, 0, 60, 10)
    locked, tell = os.pipe()
    pid = os.fork()
    if not pid:
        with slots.locked(0):
            os.write(tell, b".")
            signal.pause()
    os.read(locked, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert shared.take(1) == 0
    os.close(locked)
    os.close(tell)
