"""Dynamic batching of rows: bounded, cancellable, with deadlines; knows neither HTTP nor ONNX.

A batcher never waits for company while a worker is free: a lone call runs at once, and while all
workers are busy the next batch gathers by itself. Everything but the run itself happens on the
event loop, so that there is no lock and no state between two states.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import (
    DeadlineExceededError,
    DrainingError,
    InferenceFailedError,
    OverloadedError,
    ProblemError,
)
from service.workers import Workers

logger = logging.getLogger(__name__)

T = TypeVar("T")
Rows = Mapping[str, NDArray[Any]]

# Weight of the newest run in the running estimate of seconds per row.
_NEWEST_RUN_WEIGHT = 0.2


class Stop:
    """A wish, from the event loop to a worker, that a run should end early."""

    def __init__(self) -> None:
        self.requested = False
        self._lock = threading.Lock()
        self._hook: Callable[[], None] | None = None

    def on_request(self, hook: Callable[[], None]) -> None:
        """Call `hook` as soon as the wish is there, perhaps at once."""
        with self._lock:
            self._hook = hook
            if self.requested:
                hook()

    def request(self) -> None:
        """Wish the run to end."""
        with self._lock:
            self.requested = True
            if self._hook:
                self._hook()


class Observer(Protocol):
    """Hears of what a batcher does; called on the event loop."""

    def on_start(self, queue_seconds: float) -> None:
        """A call's first rows go to a worker."""

    def on_batch(self, num_rows: int, seconds: float) -> None:
        """A run has ended."""

    def on_cancelled(self, num_queued: int, num_running: int) -> None:
        """Rows lost their caller, in the queue and in runs."""

    def on_answer(self, queue_seconds: float, run_seconds: float) -> None:
        """A call has its answer."""

    def on_failure(self, seconds: float) -> None:
        """A call ends without an answer, whoever's fault it is."""


class StoppedError(Exception):
    """The run ended early because nobody waits for it any more."""


Run = Callable[[Sequence[Rows], Stop], Rows]
"""Run the rows of several parts at once, in their order, and return one row for each."""


class Outcome(NamedTuple, Generic[T]):
    """What a call gets, and what it took.

    Attributes:
        queue_s: Seconds until the first of its rows began to run.
        run_s: Seconds from there until the last was done.
        batch_rows: Rows of the largest batch that it was in.
    """

    value: T
    queue_s: float
    run_s: float
    batch_rows: int


@dataclass(eq=False)
class Ticket(Generic[T]):
    """One waiting call."""

    rows: Rows
    num_rows: int
    finish: Callable[[Rows], T]
    future: asyncio.Future[Outcome[T]]
    queued_at: float
    wanted: Collection[str] | None = None
    num_taken: int = 0
    num_done: int = 0
    started_at: float = 0.0
    batch_rows: int = 0
    results: dict[int, Rows] = field(default_factory=dict)
    batches: list["Batch"] = field(default_factory=list)

    def done(self) -> bool:
        """Whether the caller has its answer, or has gone."""
        return self.future.done()

    def outcome(self, value: T) -> Outcome[T]:
        """Wrap the final value."""
        now = time.monotonic()
        return Outcome(
            value, self.started_at - self.queued_at, now - self.started_at, self.batch_rows
        )


@dataclass(eq=False)
class Part:
    """Rows of one ticket inside one batch."""

    ticket: Ticket[Any]
    start: int
    stop: int
    rows: Rows
    result: Rows | None = None
    value: Any = None
    error: Exception | None = None

    @property
    def is_whole(self) -> bool:
        """Whether these are all the rows of the ticket."""
        return self.stop - self.start == self.ticket.num_rows


@dataclass(eq=False)
class Batch:
    """What one run gets."""

    parts: list[Part]
    num_rows: int
    stop: Stop = field(default_factory=Stop)
    seconds: float = 0.0


class Batcher:
    """Gather the rows of many calls into batches for one graph.

    Args:
        run: Runs a batch in a worker thread.
        workers: Where to run; shared with other batchers.
        max_batch_rows: Most rows per run. Only a call with more rows than this is split.
        max_queue_rows: Most rows that wait; a call that would exceed it is refused.
        max_wait_s: How long to wait for company with a free worker; 0 is best on a CPU.
        observer: Hears of calls and runs.
    """

    def __init__(
        self,
        run: Run,
        workers: Workers,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        max_wait_s: float = 0.0,
        observer: Observer | None = None,
    ) -> None:
        self._run = run
        self._observer = observer
        self._workers = workers
        self.max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._max_wait_s = max_wait_s
        self._tickets: deque[Ticket[Any]] = deque()
        self._running: set[Batch] = set()
        self._finishing: set[asyncio.Task[None]] = set()
        self._row_seconds = 0.0
        self._is_closed = False
        self.num_queued_rows = 0

    async def submit(
        self,
        rows: Rows,
        finish: Callable[[Rows], T],
        *,
        timeout_s: float,
        wanted: Collection[str] | None = None,
    ) -> Outcome[T]:
        """Wait for rows to be run.

        Args:
            rows: Inputs, all with the same length of axis 0; at least one row.
            finish: Makes the answer of the result rows; called once, in a worker thread.
            timeout_s: Deadline, queueing included.
            wanted: Names of the results that `finish` needs; by default all. A large call would
                keep the others until its last row is done.

        Returns:
            What `finish` returned.

        Raises:
            OverloadedError: The queue is full.
            DeadlineExceededError: The deadline passed; rows that had not begun are not run.
            DrainingError: The batcher is closed.
            InferenceFailedError: The run failed with these rows, also without their neighbours.
            ProblemError: What `finish` raised.
        """
        num_rows = len(next(iter(rows.values())))
        self.admit(num_rows)
        loop = asyncio.get_running_loop()
        ticket = Ticket(rows, num_rows, finish, loop.create_future(), time.monotonic(), wanted)
        self._tickets.append(ticket)
        self.num_queued_rows += num_rows
        self._workers.enter()
        self._ask()  # perhaps it is run at once
        timer = None
        if not ticket.done():
            timer = loop.call_later(timeout_s, self._expire, ticket, timeout_s)
        outcome = None
        try:
            outcome = await ticket.future
            return outcome
        finally:
            if timer is not None:
                timer.cancel()
            self._workers.leave()
            if ticket.future.cancelled():
                self._abandon(ticket)
            if self._observer and outcome is not None:
                self._observer.on_answer(outcome.queue_s, outcome.run_s)
            elif self._observer:
                self._observer.on_failure(time.monotonic() - ticket.queued_at)
            # Whatever is raised here holds this frame, and the future of the ticket holds it.
            del ticket

    def admit(self, num_rows: int) -> None:
        """Refuse rows that the queue has no room for; cheap, so it can come before any decoding.

        Raises:
            OverloadedError: The queue is full; tells when it will have drained.
            DrainingError: The batcher is closed.
        """
        if self._is_closed:
            raise DrainingError
        if self.num_queued_rows + num_rows > self._max_queue_rows:
            raise OverloadedError(
                f"{self.num_queued_rows} images wait already and at most {self._max_queue_rows} "
                "may; try again later or ask for fewer",
                retry_after_s=self._row_seconds * self.num_queued_rows,
            )

    def close(self) -> None:
        """Refuse new calls; what has been accepted is still run."""
        self._is_closed = True
        if self._tickets:
            self._workers.ask(self)  # nobody comes any more whom it would pay to wait for

    def abort(self) -> None:
        """Give up on everything that waits or runs."""
        self.close()
        running = [part.ticket for batch in self._running for part in batch.parts]
        for ticket in [*running, *self._tickets]:
            self._fail(ticket, DrainingError())

    def num_quick_rows(self, quick_s: float) -> int:
        """Return how many rows run within a time, as far as is known; 0 where it is not known.

        Calls are not split for it, so the smallest call that waits first must fit.
        """
        if not self._row_seconds or not self._tickets:
            return 0
        num_rows = int(quick_s / self._row_seconds)
        first = self._tickets[0]
        return num_rows if first.num_rows - first.num_taken <= num_rows else 0

    def next_batch(self, max_rows: int) -> Batch | None:
        """Take the rows of the next batch; called by the workers when it is this one's turn.

        Args:
            max_rows: Rows that the workers want to run at once.
        """
        room = min(self.max_batch_rows, max_rows)
        parts: list[Part] = []
        num_rows = 0
        while self._tickets and num_rows < room:
            part = self._take(room - num_rows, is_first=not parts)
            if part is None:
                break
            parts.append(part)
            num_rows += part.stop - part.start
        if not parts:
            return None
        self.num_queued_rows -= num_rows
        batch = Batch(parts, num_rows)
        self._running.add(batch)
        now = time.monotonic()
        for part in parts:
            ticket = part.ticket
            if not ticket.started_at:
                ticket.started_at = now
                if self._observer:
                    self._observer.on_start(now - ticket.queued_at)
            ticket.batch_rows = max(ticket.batch_rows, num_rows)
            ticket.batches.append(batch)
        return batch

    def work(self, batch: Batch) -> None:
        """Run a batch; called in a worker thread, lets nothing escape."""
        began = time.monotonic()
        try:
            self._run_parts(batch.parts, batch.stop)
        except StoppedError:
            for part in batch.parts:
                part.error = StoppedError()
        except BaseException as error:
            logger.exception("a worker failed outside of the run")
            for part in batch.parts:
                part.error = part.error or InferenceFailedError()
            if not isinstance(error, Exception):
                raise
        batch.seconds = time.monotonic() - began

    def settle(self, batch: Batch) -> None:
        """Give each call of a batch what it gets; called on the event loop."""
        if self._observer:
            self._observer.on_batch(batch.num_rows, batch.seconds)
        self._running.discard(batch)
        newest = batch.seconds / batch.num_rows
        weight = _NEWEST_RUN_WEIGHT if self._row_seconds else 1.0
        self._row_seconds += weight * (newest - self._row_seconds)
        for part in batch.parts:
            ticket = part.ticket
            ticket.batches.remove(batch)
            if ticket.done():
                continue
            if part.error is not None:
                self._fail(ticket, part.error)
            elif part.is_whole:
                ticket.future.set_result(ticket.outcome(part.value))
            else:
                self._collect(part)

    def _take(self, room: int, *, is_first: bool) -> Part | None:
        ticket = self._tickets[0]
        remaining = ticket.num_rows - ticket.num_taken
        is_small = ticket.num_rows <= self.max_batch_rows
        if is_small and remaining > room and not is_first:
            return None  # the next batch takes it whole
        count = remaining if is_small else min(remaining, room)
        self._tickets.popleft()
        start = ticket.num_taken
        ticket.num_taken += count
        if ticket.num_taken < ticket.num_rows:
            self._tickets.append(ticket)  # others pass between two chunks of a large call
        stop = start + count
        rows = ticket.rows
        if count < ticket.num_rows:
            rows = {name: array[start:stop] for name, array in rows.items()}
        return Part(ticket, start, stop, rows)

    def _run_parts(self, parts: Sequence[Part], stop: Stop) -> None:
        try:
            result = self._run([part.rows for part in parts], stop)
        except StoppedError:
            raise
        except Exception as error:
            if stop.requested:
                raise StoppedError from error
            if len(parts) == 1:
                logger.exception("a run of %d rows failed", parts[0].stop - parts[0].start)
                parts[0].error = InferenceFailedError()
                return
            # Somebody's rows are bad: halves find them without harm to the others.
            half = len(parts) // 2
            self._run_parts(parts[:half], stop)
            self._run_parts(parts[half:], stop)
            return
        start = 0
        for part in parts:
            end = start + part.stop - part.start
            names = part.ticket.wanted or result
            part.result = {name: result[name][start:end] for name in names}
            start = end
            if part.is_whole and not part.ticket.done():
                _finish_part(part)

    def _collect(self, part: Part) -> None:
        ticket = part.ticket
        assert part.result is not None
        ticket.results[part.start] = part.result
        ticket.num_done += part.stop - part.start
        if ticket.num_done == ticket.num_rows:
            task = asyncio.create_task(self._finish_chunked(ticket))
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish_chunked(self, ticket: Ticket[Any]) -> None:
        chunks = [ticket.results[start] for start in sorted(ticket.results)]

        def finish() -> Any:
            joined = {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}
            return ticket.finish(joined)

        try:
            value = await self._workers.run(finish)
        except ProblemError as error:
            self._fail(ticket, error)
        except Exception:
            logger.exception("an answer of %d rows could not be made", ticket.num_rows)
            self._fail(ticket, InferenceFailedError())
        else:
            if not ticket.done():
                ticket.future.set_result(ticket.outcome(value))

    def _ask(self) -> None:
        if self._max_wait_s and self.num_queued_rows < self.max_batch_rows:
            loop = asyncio.get_running_loop()
            loop.call_later(self._max_wait_s, self._workers.ask, self)
        else:
            self._workers.ask(self)

    def _expire(self, ticket: Ticket[Any], timeout_s: float) -> None:
        self._fail(ticket, DeadlineExceededError(timeout_s))

    def _fail(self, ticket: Ticket[Any], error: Exception) -> None:
        if not ticket.done():
            # Where it was raised holds the ticket, or a part of it.
            ticket.future.set_exception(error.with_traceback(None))
        self._abandon(ticket)

    def _abandon(self, ticket: Ticket[Any]) -> None:
        num_queued = 0
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            num_queued = ticket.num_rows - ticket.num_taken
            self.num_queued_rows -= num_queued
        if self._observer:
            num_running = ticket.num_taken - ticket.num_done if ticket.batches else 0
            self._observer.on_cancelled(num_queued, num_running)
        for batch in ticket.batches:
            if all(part.ticket.done() for part in batch.parts):
                batch.stop.request()


def _finish_part(part: Part) -> None:
    assert part.result is not None
    try:
        part.value = part.ticket.finish(part.result)
    except ProblemError as error:
        part.error = error
    except Exception:
        logger.exception("an answer of %d rows could not be made", part.stop - part.start)
        part.error = InferenceFailedError()
