"""The promises of the batcher, kept by a graph that can be held and remembers its batches."""

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from service.batcher import Batcher, Outcome, Rows, Stop, StoppedError
from service.errors import (
    DeadlineExceededError,
    DrainingError,
    InferenceFailedError,
    InvalidRequestError,
    OverloadedError,
)
from service.workers import Workers

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

POISON = -1.0
LONG_S = 60.0


class FakeGraph:
    """Doubles `x`; remembers its batches; waits in each run while it is held."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.started: asyncio.Queue[list[float]] = asyncio.Queue()
        self.num_stopped = 0
        self._loop = asyncio.get_running_loop()
        self._is_held = False
        self._waiting: list[threading.Event] = []
        self._lock = threading.Lock()

    @property
    def batch_sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]

    def hold(self) -> None:
        with self._lock:
            self._is_held = True

    def release(self) -> None:
        with self._lock:
            self._is_held = False
            for resume in self._waiting:
                resume.set()

    def __call__(self, parts: Sequence[Rows], stop: Stop) -> Rows:
        x = np.concatenate([part["x"] for part in parts])
        resume = threading.Event()
        stop.on_request(resume.set)
        with self._lock:
            self.batches.append(x.tolist())
            if self._is_held:
                self._waiting.append(resume)
            else:
                resume.set()
        self._loop.call_soon_threadsafe(self.started.put_nowait, x.tolist())
        resume.wait()
        if stop.requested:
            self.num_stopped += 1
            raise StoppedError
        if POISON in x:
            raise FloatingPointError("poison")
        return {"y": 2 * x}


Make = Callable[..., Batcher]


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    """Return one worker."""
    made = Workers(1)
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
async def graph(workers: Workers) -> AsyncIterator[FakeGraph]:
    """Return a graph; runs that a test has left behind end before the workers do."""
    made = FakeGraph()
    yield made
    made.release()


@pytest.fixture
def make(graph: FakeGraph, workers: Workers) -> Make:
    """Return a function that makes a batcher for the graph."""

    def make(run: Any = graph, on: Workers = workers, **limits: Any) -> Batcher:
        return Batcher(run, on, **{"max_batch_rows": 16, "max_queue_rows": 64} | limits)

    return make


def rows(*values: float) -> Rows:
    return {"x": np.array(values, dtype=np.float64)}


def as_list(outputs: Rows) -> list[float]:
    doubled: list[float] = outputs["y"].tolist()
    return doubled


Call = asyncio.Task[Outcome[list[float]]]


def call(batcher: Batcher, *values: float, timeout_s: float = LONG_S) -> Call:
    return asyncio.create_task(batcher.submit(rows(*values), as_list, timeout_s=timeout_s))


async def settled() -> None:
    """Let everything run that can run now."""
    for _ in range(10):
        await asyncio.sleep(0)


async def busy(batcher: Batcher, graph: FakeGraph) -> Call:
    """Return a call that holds the only worker."""
    graph.hold()
    running = call(batcher, 0)
    await graph.started.get()
    return running


class TestBatching:
    @pytest.mark.parametrize("num_workers", [1, 2, 3])
    async def test_every_call_gets_its_own_rows_back(
        self, graph: FakeGraph, make: Make, num_workers: int
    ) -> None:
        rng = np.random.default_rng(0)
        several = Workers(num_workers)
        batcher = make(on=several, max_queue_rows=10_000)
        calls, first = [], 0
        for count in rng.integers(1, 50, 60):  # up to three batches long
            calls.append((call(batcher, *range(first, first + count)), range(first, first + count)))
            first += count
            for _ in range(rng.integers(0, 4)):
                await asyncio.sleep(0)
        for task, values in calls:
            assert (await task).value == [2 * value for value in values]
        assert max(graph.batch_sizes) <= 16
        assert sorted(value for batch in graph.batches for value in batch) == list(range(first))
        await asyncio.to_thread(several.close)

    async def test_calls_gather_while_the_worker_is_busy(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        running = await busy(batcher, graph)
        waiting = [call(batcher, value) for value in range(1, 11)]
        await settled()
        graph.release()
        outcomes = await asyncio.gather(running, *waiting)
        assert graph.batch_sizes == [1, 10]
        assert [outcome.batch_rows for outcome in outcomes] == [1] + [10] * 10

    async def test_a_lone_call_waits_for_no_company(self, graph: FakeGraph, make: Make) -> None:
        task = call(make(), 3)
        assert await graph.started.get() == [3]
        assert (await task).value == [6]

    async def test_calls_of_one_moment_run_together(self, graph: FakeGraph, make: Make) -> None:
        batcher = make()
        await asyncio.gather(*[call(batcher, value) for value in range(5)])
        assert graph.batch_sizes == [5]

    async def test_calls_that_keep_arriving_are_read_before_the_batch_is_closed(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        calls = []
        for value in range(5):  # one in every round of the event loop
            calls.append(call(batcher, value))
            await asyncio.sleep(0)
        await asyncio.gather(*calls)
        assert graph.batch_sizes == [5]

    async def test_a_full_batch_does_not_wait_for_calls_to_stop_arriving(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make(max_batch_rows=2)
        calls = []
        while not graph.batches:
            calls.append(call(batcher, 0))
            await asyncio.sleep(0)
            assert len(calls) < 20
        await asyncio.gather(*calls)

    async def test_with_a_wait_a_lone_call_waits_and_a_full_batch_does_not(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make(max_batch_rows=4, max_wait_s=LONG_S)
        calls = [call(batcher, value) for value in range(3)]
        await settled()
        assert graph.batches == []
        calls.append(call(batcher, 3))
        await asyncio.gather(*calls)
        assert graph.batch_sizes == [4]

    async def test_a_wait_ends_by_itself(self, graph: FakeGraph, make: Make) -> None:
        batcher = make(max_wait_s=0.02)
        assert (await call(batcher, 1)).value == [2]

    async def test_free_workers_share_what_waits(self, graph: FakeGraph, make: Make) -> None:
        pair = Workers(2)
        batcher = make(on=pair)
        await asyncio.gather(*[call(batcher, value) for value in range(10)])
        assert graph.batch_sizes == [5, 5]
        await asyncio.to_thread(pair.close)

    async def test_no_batch_is_larger_than_the_limit(self, graph: FakeGraph, make: Make) -> None:
        batcher = make(max_batch_rows=4)
        running = await busy(batcher, graph)
        waiting = [call(batcher, *range(count)) for count in (3, 3, 2, 4, 1)]
        await settled()
        graph.release()
        await asyncio.gather(running, *waiting)
        # A call that fits into one batch is never split.
        assert graph.batch_sizes == [1, 3, 3, 2, 4, 1]

    async def test_an_answer_is_made_once_and_off_the_event_loop(self, make: Make) -> None:
        threads = []

        def finish(outputs: Rows) -> str:
            threads.append(threading.current_thread().name)
            return "made"

        outcome = await make().submit(rows(1, 2), finish, timeout_s=LONG_S)
        assert outcome.value == "made"
        assert len(threads) == 1
        assert threads[0].startswith("ptheta-worker")

    async def test_times_tell_queue_and_run_apart(self, graph: FakeGraph, make: Make) -> None:
        batcher = make()
        running = await busy(batcher, graph)
        waiting = call(batcher, 1)
        await settled()
        threading.Event().wait(0.03)  # no wait of less than this is possible for the two
        graph.release()
        assert (await running).run_s >= 0.03 > (await running).queue_s
        assert (await waiting).queue_s >= 0.03


class TestCancellation:
    async def test_a_queued_call_that_is_cancelled_is_not_run(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        running = await busy(batcher, graph)
        kept, gone = call(batcher, 1), call(batcher, 2, 3)
        await settled()
        gone.cancel()
        await settled()
        assert batcher.num_queued_rows == 1
        graph.release()
        await asyncio.gather(running, kept)
        assert graph.batches == [[0], [1]]

    async def test_a_cancelled_call_does_not_harm_its_batch_mates(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        graph.hold()
        calls = [call(batcher, value) for value in range(4)]
        await graph.started.get()
        for gone in calls[1:3]:
            gone.cancel()
        await settled()
        graph.release()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert graph.num_stopped == 0
        values = [result.value for result in results if isinstance(result, Outcome)]
        assert values == [[0], [6]]
        assert all(isinstance(result, asyncio.CancelledError) for result in results[1:3])

    async def test_a_batch_that_nobody_waits_for_is_stopped(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        graph.hold()
        calls = [call(batcher, value) for value in range(3)]
        await graph.started.get()
        following = call(batcher, 7)
        await settled()
        for gone in calls:
            gone.cancel()
        # The graph is still held: the next batch can only start because the first was stopped.
        assert await graph.started.get() == [7]
        assert graph.num_stopped == 1
        graph.release()
        assert (await following).value == [14]

    async def test_all_chunks_of_a_large_call_end_when_it_is_cancelled(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make(max_batch_rows=4)
        graph.hold()
        large = call(batcher, *range(20))
        assert await graph.started.get() == [0, 1, 2, 3]
        large.cancel()
        assert (await call_after(batcher, graph, 99)).value == [198]
        assert graph.batches == [[0, 1, 2, 3], [99]]
        assert batcher.num_queued_rows == 0

    async def test_cancelling_twice_or_too_late_does_nothing(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        done = call(batcher, 1)
        await done
        done.cancel()
        gone = call(batcher, 2)
        await settled()
        gone.cancel()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert (await call(batcher, 3)).value == [6]


async def call_after(batcher: Batcher, graph: FakeGraph, value: float) -> Outcome[list[float]]:
    task = call(batcher, value)
    await settled()
    graph.release()
    return await task


class TestFailures:
    async def test_a_bad_row_harms_no_other_call(self, graph: FakeGraph, make: Make) -> None:
        batcher = make()
        running = await busy(batcher, graph)
        good = [call(batcher, value, value + 0.5) for value in range(1, 4)]
        bad = call(batcher, POISON)
        good += [call(batcher, value) for value in range(4, 8)]
        await settled()
        graph.release()
        await running
        for task in good:
            outcome = await task
            assert outcome.value
            assert min(outcome.value) >= 2
        with pytest.raises(InferenceFailedError) as raised:
            await bad
        assert "poison" not in raised.value.detail
        # 8 calls in one batch: it is halved 3 times around the bad one.
        assert len(graph.batches) - 2 <= 2 * 3

    async def test_several_bad_rows_are_all_found(self, graph: FakeGraph, make: Make) -> None:
        batcher = make()
        running = await busy(batcher, graph)
        values = [POISON, 1, 2, POISON, POISON, 3, POISON]
        tasks = [call(batcher, value) for value in values]
        await settled()
        graph.release()
        await running
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for value, result in zip(values, results, strict=True):
            if value == POISON:
                assert isinstance(result, InferenceFailedError)
            else:
                assert isinstance(result, Outcome)
                assert result.value == [2 * value]

    async def test_a_call_of_many_chunks_fails_as_one(self, graph: FakeGraph, make: Make) -> None:
        batcher = make(max_batch_rows=4)
        with pytest.raises(InferenceFailedError):
            await call(batcher, 0, 1, 2, 3, POISON, *range(40))
        await settled()
        assert batcher.num_queued_rows == 0
        assert len(graph.batches) <= 3
        assert (await call(batcher, 1)).value == [2]

    @pytest.mark.parametrize("count", [1, 10], ids=["whole", "chunked"])
    async def test_an_answer_is_made_of_the_wanted_results_alone(
        self, make: Make, count: int
    ) -> None:
        def run(parts: Sequence[Rows], stop: Stop) -> Rows:
            x = np.concatenate([part["x"] for part in parts])
            return {"y": 2 * x, "large": np.zeros((len(x), 1000))}

        batcher = make(run, max_batch_rows=4)
        some, everything = await asyncio.gather(
            batcher.submit(rows(*range(count)), dict, timeout_s=LONG_S, wanted=("y",)),
            batcher.submit(rows(*range(count)), dict, timeout_s=LONG_S),
        )
        assert some.value.keys() == {"y"}
        assert everything.value.keys() == {"y", "large"}
        for value in (some.value, everything.value):
            np.testing.assert_array_equal(value["y"], 2 * np.arange(count))

    @pytest.mark.parametrize("count", [1, 10], ids=["whole", "chunked"])
    async def test_an_answer_that_cannot_be_made_fails_its_call_alone(
        self, graph: FakeGraph, make: Make, count: int
    ) -> None:
        batcher = make(max_batch_rows=4)
        running = await busy(batcher, graph)

        def fail(outputs: Rows) -> None:
            raise KeyError("secret")

        bad = asyncio.create_task(batcher.submit(rows(*range(count)), fail, timeout_s=LONG_S))
        good = call(batcher, 5)
        await settled()
        graph.release()
        await running
        assert (await good).value == [10]
        with pytest.raises(InferenceFailedError) as raised:
            await bad
        assert "secret" not in raised.value.detail

    @pytest.mark.parametrize("count", [1, 10], ids=["whole", "chunked"])
    async def test_a_problem_that_the_answer_tells_of_reaches_the_caller(
        self, make: Make, count: int
    ) -> None:
        problem = InvalidRequestError("not so")

        def refuse(outputs: Rows) -> None:
            raise problem

        with pytest.raises(InvalidRequestError) as raised:
            await make(max_batch_rows=4).submit(rows(*range(count)), refuse, timeout_s=LONG_S)
        assert raised.value is problem

    async def test_the_next_call_works_after_a_failure(self, graph: FakeGraph, make: Make) -> None:
        batcher = make()
        with pytest.raises(InferenceFailedError):
            await call(batcher, POISON)
        assert (await call(batcher, 1)).value == [2]


class TestBound:
    async def test_a_full_queue_refuses_and_says_when_to_come_back(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make(max_queue_rows=4)
        slow = await busy(batcher, graph)
        threading.Event().wait(0.05)
        graph.release()
        run_s = (await slow).run_s
        running = await busy(batcher, graph)
        waiting = [call(batcher, 1, 2), call(batcher, 3, 4)]
        await settled()
        with pytest.raises(OverloadedError) as raised:
            await call(batcher, 5)
        # Four rows wait, and the one run so far took run_s for one row.
        assert raised.value.retry_after_s == pytest.approx(4 * run_s, rel=0.5)
        assert batcher.num_queued_rows == 4
        graph.release()
        await asyncio.gather(running, *waiting)
        assert (await call(batcher, 5)).value == [10]

    async def test_room_is_checked_without_queueing(self, graph: FakeGraph, make: Make) -> None:
        batcher = make(max_queue_rows=4)
        running = await busy(batcher, graph)
        batcher.admit(4)
        with pytest.raises(OverloadedError):
            batcher.admit(5)
        assert batcher.num_queued_rows == 0
        graph.release()
        await running

    async def test_a_call_that_is_refused_takes_nothing_from_those_that_wait(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make(max_queue_rows=4)
        running = await busy(batcher, graph)
        waiting = call(batcher, 1, 2, 3)
        await settled()
        with pytest.raises(OverloadedError):
            await call(batcher, 4, 5)
        fitting = call(batcher, 6)
        await settled()
        graph.release()
        await running
        assert (await waiting).value == [2, 4, 6]
        assert (await fitting).value == [12]


class TestDeadlines:
    async def test_a_deadline_passes_while_queued_and_the_rows_are_not_run(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        running = await busy(batcher, graph)
        late = call(batcher, 1, timeout_s=0.02)
        patient = call(batcher, 2)
        # The worker is held all the while: only a timer can tell.
        with pytest.raises(DeadlineExceededError, match="20 ms"):
            await late
        graph.release()
        await asyncio.gather(running, patient)
        assert graph.batches == [[0], [2]]

    async def test_a_deadline_passes_while_running_and_mates_are_served(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        graph.hold()
        late, patient = call(batcher, 1, timeout_s=0.02), call(batcher, 2)
        assert await graph.started.get() == [1, 2]
        with pytest.raises(DeadlineExceededError):
            await late
        graph.release()
        assert (await patient).value == [4]
        assert graph.num_stopped == 0

    async def test_a_run_whose_deadlines_have_all_passed_is_stopped(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        graph.hold()
        late = [call(batcher, value, timeout_s=0.02) for value in (1, 2)]
        await asyncio.gather(*late, return_exceptions=True)
        following = call(batcher, 3)
        await graph.started.get()
        assert await graph.started.get() == [3]
        assert graph.num_stopped == 1
        graph.release()
        await following

    async def test_a_deadline_that_was_met_does_nothing_later(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make()
        assert (await call(batcher, 1, timeout_s=0.05)).value == [2]
        await asyncio.sleep(0.06)  # past it
        assert (await call(batcher, 2)).value == [4]


class TestFairness:
    async def test_small_calls_pass_between_the_chunks_of_a_large_one(
        self, graph: FakeGraph, make: Make
    ) -> None:
        batcher = make(max_batch_rows=4)
        graph.hold()
        large = call(batcher, *range(100, 120))
        await graph.started.get()
        small = [call(batcher, value) for value in (1, 2)]
        await settled()
        graph.release()
        assert (await large).value == [2 * value for value in range(100, 120)]
        assert all(task.done() for task in small)
        positions = [
            position for position, batch in enumerate(graph.batches) if {1, 2} & set(batch)
        ]
        assert max(positions) <= 2
        assert graph.batch_sizes == [4, *graph.batch_sizes[1:]]
        assert sum(graph.batch_sizes) == 22

    async def test_two_large_calls_take_turns(self, graph: FakeGraph, make: Make) -> None:
        batcher = make(max_batch_rows=4)
        running = await busy(batcher, graph)
        first, second = call(batcher, *[1] * 12), call(batcher, *[2] * 12)
        await settled()
        graph.release()
        await asyncio.gather(running, first, second)
        assert [batch[0] for batch in graph.batches[1:]] == [1, 2, 1, 2, 1, 2]

    async def test_graphs_take_turns_on_a_worker(self, graph: FakeGraph, make: Make) -> None:
        crowded, quiet = make(max_batch_rows=1), make(max_batch_rows=1)
        running = await busy(crowded, graph)
        many = [call(crowded, 1) for _ in range(10)]
        await settled()
        few = [call(quiet, 2) for _ in range(3)]
        await settled()
        graph.release()
        await asyncio.gather(running, *many, *few)
        order = [batch[0] for batch in graph.batches]
        assert order[:7] == [0, 1, 2, 1, 2, 1, 2]


class TestQuickRuns:
    @staticmethod
    def named() -> tuple[list[str], Any]:
        """Return the names of the threads that ran, and a run that notes them."""
        threads: list[str] = []

        def run(parts: Sequence[Rows], stop: Stop) -> Rows:
            threads.append(threading.current_thread().name)
            return {"y": np.concatenate([part["x"] for part in parts])}

        return threads, run

    async def test_a_run_known_to_be_quick_needs_no_thread(self, make: Make) -> None:
        here = threading.current_thread().name
        threads, run = self.named()
        quick = Workers(1, quick_s=10)
        batcher = make(run=run, on=quick)
        await call(batcher, 1)  # not known yet
        await asyncio.gather(call(batcher, 1), call(batcher, 2, 3))
        assert threads[0] != here
        assert threads[1:] == [here]
        await asyncio.to_thread(quick.close)

    async def test_a_run_known_to_be_long_leaves_the_event_loop_alone(self, make: Make) -> None:
        here = threading.current_thread().name
        threads, run = self.named()
        careful = Workers(1, quick_s=1e-9)
        batcher = make(run=run, on=careful)
        for _ in range(3):
            await call(batcher, 1)
        assert here not in threads
        await asyncio.to_thread(careful.close)

    async def test_quick_runs_pass_a_long_one(self, graph: FakeGraph, make: Make) -> None:
        quick = Workers(1, quick_s=10)
        _, run = self.named()
        small, large = make(run=run, on=quick), make(on=quick)
        await call(small, 1)
        running = await busy(large, graph)
        assert (await asyncio.wait_for(call(small, 5), 5)).value == [5]
        assert not running.done()
        graph.release()
        await running
        await asyncio.to_thread(quick.close)

    async def test_with_several_threads_only_a_lone_call_runs_here(self, make: Make) -> None:
        here = threading.current_thread().name
        threads, run = self.named()
        pair = Workers(2, quick_s=10)
        batcher = make(run=run, on=pair, max_batch_rows=4)
        await call(batcher, 1)
        await call(batcher, 1)
        assert threads[1] == here
        threads.clear()
        await asyncio.gather(*[call(batcher, 1, 2, 3, 4) for _ in range(4)])
        assert threads[0] != here
        await asyncio.to_thread(pair.close)

    async def test_with_siblings_on_the_other_cores_every_quick_run_is_here(
        self, make: Make
    ) -> None:
        here = threading.current_thread().name
        threads, run = self.named()
        one_of_many = Workers(2, quick_s=10, has_siblings=True)
        batcher = make(run=run, on=one_of_many)
        await call(batcher, 1)
        threads.clear()
        await asyncio.gather(*[call(batcher, 1) for _ in range(4)])
        assert set(threads) == {here}
        await asyncio.to_thread(one_of_many.close)

    async def test_the_call_of_a_sole_client_is_answered_in_its_own_round(self, make: Make) -> None:
        here = threading.current_thread().name
        threads, run = self.named()
        quick = Workers(1, quick_s=10)
        batcher = make(run=run, on=quick)
        await call(batcher, 1)
        for is_sole in (True, False):
            quick.is_sole_client = lambda is_sole=is_sole: is_sole
            task = call(batcher, 2)
            await asyncio.sleep(0)
            assert task.done() == is_sole
            assert (await task).value == [2]
        assert threads[1:] == [here, here]
        await asyncio.to_thread(quick.close)

    async def test_calls_beside_another_are_gathered_whatever_the_server_counts(
        self, graph: FakeGraph, make: Make
    ) -> None:
        quick = Workers(1, quick_s=10)
        quick.is_sole_client = lambda: True
        large, small = make(on=quick), make(on=quick)
        running = await busy(large, graph)
        waiting = [call(small, value) for value in (1, 2)]
        await settled()
        graph.release()
        await asyncio.gather(running, *waiting)
        assert graph.batch_sizes == [1, 2]
        await asyncio.to_thread(quick.close)

    async def test_a_sole_call_that_fails_tells_its_caller(self, make: Make) -> None:
        def run(parts: Sequence[Rows], stop: Stop) -> Rows:
            x = np.concatenate([part["x"] for part in parts])
            if POISON in x:
                raise FloatingPointError("poison")
            return {"y": x}

        quick = Workers(1, quick_s=10)
        batcher = make(run=run, on=quick)
        await call(batcher, 1)
        quick.is_sole_client = lambda: True
        with pytest.raises(InferenceFailedError):
            await call(batcher, POISON)
        assert (await call(batcher, 3)).value == [3]
        assert quick.num_calls == 0
        await asyncio.to_thread(quick.close)

    async def test_a_quick_batch_has_no_more_rows_than_run_within_the_time(
        self, make: Make
    ) -> None:
        sizes: list[int] = []

        def run(parts: Sequence[Rows], stop: Stop) -> Rows:
            x = np.concatenate([part["x"] for part in parts])
            sizes.append(len(x))
            time.sleep(0.004 * len(x))  # the time that a row takes is what is tested
            return {"y": x}

        quick = Workers(1, quick_s=0.013)
        batcher = make(run=run, on=quick)
        await call(batcher, 1)
        await asyncio.gather(*[call(batcher, 1) for _ in range(9)])
        assert max(sizes) <= 3
        await asyncio.to_thread(quick.close)


class TestShutdown:
    async def test_what_was_accepted_is_finished_and_new_calls_are_refused(
        self, graph: FakeGraph, make: Make, workers: Workers
    ) -> None:
        batcher = make(max_batch_rows=4)
        running = await busy(batcher, graph)
        waiting = [call(batcher, 1), call(batcher, *range(10))]
        await settled()
        batcher.close()
        with pytest.raises(DrainingError):
            await call(batcher, 5)
        idle = asyncio.create_task(workers.wait_until_idle())
        await settled()
        assert not idle.done()
        graph.release()
        await idle
        assert (await running).value == [0]
        assert (await waiting[0]).value == [2]
        assert (await waiting[1]).value == [2 * value for value in range(10)]

    @pytest.mark.parametrize("max_wait_s", [0.0, LONG_S])
    async def test_a_call_of_the_last_moment_is_not_lost(
        self, graph: FakeGraph, make: Make, workers: Workers, max_wait_s: float
    ) -> None:
        batcher = make(max_wait_s=max_wait_s)
        last = call(batcher, 1)
        await asyncio.sleep(0)  # it has been accepted, and no worker knows yet
        batcher.close()
        await workers.wait_until_idle()
        assert graph.batches == [[1]]
        assert (await last).value == [2]

    async def test_workers_are_idle_but_while_a_call_runs(
        self, graph: FakeGraph, make: Make, workers: Workers
    ) -> None:
        await workers.wait_until_idle()
        running = await busy(make(), graph)
        idle = asyncio.create_task(workers.wait_until_idle())
        await settled()
        assert not idle.done()
        graph.release()
        await running
        await idle

    async def test_workers_become_idle_after_the_last_call_was_cancelled(
        self, graph: FakeGraph, make: Make, workers: Workers
    ) -> None:
        batcher = make(max_wait_s=LONG_S)
        gone = call(batcher, 1)
        await settled()
        gone.cancel()
        await workers.wait_until_idle()
        assert graph.batches == []

    async def test_giving_up_refuses_what_waits_and_stops_what_runs(
        self, graph: FakeGraph, make: Make, workers: Workers
    ) -> None:
        batcher = make(max_batch_rows=4)
        graph.hold()
        calls = [call(batcher, value) for value in range(3)]
        await graph.started.get()
        calls += [call(batcher, 9), call(batcher, *range(10))]
        await settled()
        batcher.abort()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [DrainingError] * 5
        # The graph is still held: the workers can only become idle because its run was stopped.
        await workers.wait_until_idle()
        assert graph.num_stopped == 1
        assert graph.batch_sizes == [3]


class TestLeaks:
    async def test_nothing_is_left_after_calls_of_every_fate(
        self, graph: FakeGraph, make: Make
    ) -> None:
        before = asyncio.all_tasks(), set(threading.enumerate())
        pair = Workers(2)
        batcher = make(on=pair, max_batch_rows=4, max_queue_rows=1000)
        rng = np.random.default_rng(0)
        tasks = []
        for _ in range(200):
            count = int(rng.integers(1, 10))
            value = POISON if rng.random() < 0.1 else float(rng.random())
            timeout_s = 1e-4 if rng.random() < 0.2 else LONG_S
            tasks.append(call(batcher, *[value] * count, timeout_s=timeout_s))
            await asyncio.sleep(0)
            if rng.random() < 0.3:
                tasks[rng.integers(len(tasks))].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        fates = {type(result) for result in results}
        assert fates >= {Outcome, asyncio.CancelledError, InferenceFailedError}
        await pair.wait_until_idle()
        await settled()
        assert batcher.num_queued_rows == 0
        await asyncio.to_thread(pair.close)
        assert asyncio.all_tasks() == before[0]
        left = {thread.name for thread in set(threading.enumerate()) - before[1]}
        assert not [name for name in left if name.startswith("ptheta-worker")]

    @pytest.mark.parametrize("count", [3, 10], ids=["whole", "chunked"])
    @pytest.mark.parametrize(
        "fate", ["served", "cancelled", "late", "cancelled in its run", "late in its run"]
    )
    async def test_rows_are_gone_with_their_call(
        self, graph: FakeGraph, make: Make, workers: Workers, fate: str, count: int
    ) -> None:
        """They do not wait for Python to look for objects that hold each other."""
        batcher = make(max_batch_rows=4)
        running = await busy(batcher, graph)
        x = np.ones(count)
        kept = weakref.ref(x)
        timeout_s = 0.05 if fate.startswith("late") else LONG_S
        gc.collect()
        gc.disable()
        try:
            task = asyncio.create_task(batcher.submit({"x": x}, as_list, timeout_s=timeout_s))
            del x
            await settled()
            if fate.endswith("in its run"):
                graph.release()
                graph.hold()
                await graph.started.get()
            if fate.startswith("cancelled"):
                task.cancel()
            if fate != "served":
                await asyncio.wait([task])
            graph.release()
            await asyncio.wait([task])
            await running
            await workers.wait_until_idle()
            assert task.cancelled() == fate.startswith("cancelled")
            if not task.cancelled():
                assert (task.exception() is None) == (fate == "served")
            del task
            await call(batcher, 5)  # the worker thread lets go of its last batch
            assert kept() is None
        finally:
            gc.enable()

    @pytest.mark.parametrize("count", [3, 10], ids=["whole", "chunked"])
    @pytest.mark.parametrize("fault", ["run", "problem", "bug"])
    async def test_rows_are_gone_with_a_call_that_fails(
        self, make: Make, caplog: pytest.LogCaptureFixture, fault: str, count: int
    ) -> None:
        caplog.set_level(logging.CRITICAL, "service.batcher")  # its records keep tracebacks

        def finish(outputs: Rows) -> list[float]:
            match fault:
                case "problem":
                    raise InvalidRequestError("not so")
                case "bug":
                    raise KeyError
            return as_list(outputs)

        batcher = make(max_batch_rows=4)
        x = np.full(count, POISON if fault == "run" else 1.0)
        kept = weakref.ref(x)
        gc.collect()
        gc.disable()
        try:
            task = asyncio.create_task(batcher.submit({"x": x}, finish, timeout_s=LONG_S))
            del x
            await asyncio.wait([task])
            assert task.exception() is not None
            del task
            await call(batcher, 5)  # the worker thread lets go of its last batch
            assert kept() is None
        finally:
            gc.enable()
