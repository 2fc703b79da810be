"""A few threads, and the event loop for what is quick, on which batchers take turns."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# A request that has been read is handled one round of the event loop later, and its answer leaves
# in the next: who is refused need not wait for a run.
_ROUNDS_TO_REFUSE = 4


class Queue(Protocol):
    """What workers ask of a batcher; a batch means nothing to them."""

    num_queued_rows: int
    max_batch_rows: int

    def num_quick_rows(self, quick_s: float) -> int:
        """Return how many rows run within a time, as far as is known; 0 where it is not known."""

    def next_batch(self, max_rows: int) -> Any:
        """Take the rows of the next batch; None if nobody waits any more."""

    def work(self, batch: Any) -> None:
        """Run a batch, on whatever thread, and let nothing escape."""

    def settle(self, batch: Any) -> None:
        """Give the calls of a batch what they get, on the event loop."""


class Workers:
    """A few threads on which the batchers of all graphs take turns, one batch each.

    Handing a batch to a thread and back costs two switches and a fight over Python's lock, more
    than a quick run itself. So runs that are known to be quick take place on the event loop: always
    where one thread or sibling processes use the cores, else only where there is no other call,
    since they would keep the other cores idle. They pass the long ones that occupy the threads.

    Nobody is waited for, but what has arrived is read before a batch is closed: turns are granted
    in the first round of the event loop that brings no further call, or soon where a batch is full.
    Where there is nobody but the caller, the turn is granted at once.

    Attributes:
        num_calls: Accepted calls that have no answer yet.
        is_sole_client: Tells whether no further call can have arrived, as far as is known. A server
            that can count its connections sets it.

    Args:
        num_threads: Runs at once.
        quick_s: Longest run on the event loop, in seconds; 0 for none.
        has_siblings: Whether other processes share the requests and the cores.
    """

    def __init__(
        self, num_threads: int, quick_s: float = 0.0, *, has_siblings: bool = False
    ) -> None:
        self._quick_s = quick_s
        self._leaves_no_core_idle = has_siblings or num_threads == 1
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="ptheta-worker")
        self._num_threads = num_threads
        self._num_free = num_threads
        self.num_calls = 0
        self.is_sole_client: Callable[[], bool] = lambda: False
        self._num_entered = 0
        self._num_gathered = 0
        self._num_rounds = 0
        self._turns: deque[Queue] = deque()
        self._is_granting = False
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Count a call that has been accepted."""
        self.num_calls += 1
        self._num_entered += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count a call that has its answer, or whose caller has gone."""
        self.num_calls -= 1
        self._rest()

    def ask(self, batcher: Queue) -> None:
        """Queue a batcher up for a turn."""
        if batcher not in self._turns:
            self._turns.append(batcher)
        if self.num_calls == 1 and not self._is_granting and self.is_sole_client():
            self._grant()
        else:
            self._grant_soon()

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function on one of the threads, outside of all turns."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def wait_until_idle(self) -> None:
        """Return once no accepted call is without its answer, and nothing runs."""
        await self._idle.wait()

    def close(self) -> None:
        """End the threads once their runs have ended."""
        self._executor.shutdown(wait=True)

    def _grant_soon(self) -> None:
        if not self._is_granting:
            self._is_granting = True
            asyncio.get_running_loop().call_soon(self._gather)

    def _gather(self) -> None:
        self._is_granting = False
        is_full = any(queue.num_queued_rows >= queue.max_batch_rows for queue in self._turns)
        is_quiet = self._num_gathered == self._num_entered
        self._num_gathered = self._num_entered
        self._num_rounds += 1
        if is_quiet or (is_full and self._num_rounds >= _ROUNDS_TO_REFUSE):
            self._num_rounds = 0
            self._grant()
        else:
            self._grant_soon()

    def _grant(self) -> None:
        loop = asyncio.get_running_loop()
        without_thread: deque[Queue] = deque()
        not_done: deque[Queue] = deque()
        while self._turns:
            batcher = self._turns.popleft()
            num_quick = batcher.num_quick_rows(self._quick_s)
            if num_quick and (self._leaves_no_core_idle or self.num_calls == 1):
                self._run_here(batcher, num_quick)
                if batcher.num_queued_rows:
                    not_done.append(batcher)
            elif self._num_free:
                self._run_in_thread(loop, batcher)
                if batcher.num_queued_rows:
                    self._turns.append(batcher)
            else:
                without_thread.append(batcher)
        self._turns = without_thread + not_done
        if not_done:
            self._grant_soon()  # requests and answers pass between two runs on the event loop

    def _run_here(self, batcher: Queue, num_rows: int) -> None:
        batch = batcher.next_batch(num_rows)
        if batch is not None:
            batcher.work(batch)
            batcher.settle(batch)

    def _run_in_thread(self, loop: asyncio.AbstractEventLoop, batcher: Queue) -> None:
        share = math.ceil(batcher.num_queued_rows / self._num_free)
        batch = batcher.next_batch(share)
        if batch is not None:
            self._num_free -= 1
            self._executor.submit(self._work, loop, batcher, batch)

    def _work(self, loop: asyncio.AbstractEventLoop, batcher: Queue, batch: Any) -> None:
        try:
            batcher.work(batch)
        finally:
            loop.call_soon_threadsafe(self._done, batcher, batch)

    def _done(self, batcher: Queue, batch: Any) -> None:
        self._num_free += 1
        batcher.settle(batch)
        self._grant()
        self._rest()

    def _rest(self) -> None:
        if not self.num_calls and self._num_free == self._num_threads:
            self._idle.set()
