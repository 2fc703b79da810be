"""Rows per minute of each caller, counted together by all processes of the server."""

import mmap
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

if sys.platform != "win32":
    import fcntl

_SLOT = struct.Struct("d")
# Times are sums of quotients: without this, a bucket that is exactly full may seem not to be.
_ROUNDING_S = 1e-6


class Slots:
    """One number per caller, in memory that the processes share.

    Made before the processes are forked. The ledger of the metrics does without locks because
    each process only adds to its own row; a bucket has to be read and changed in one step. The
    kernel's locks of files last no longer than the process that holds them, so one that dies
    leaves none behind.

    Args:
        count: How many callers.
        num_processes: How many processes.
    """

    def __init__(self, count: int, num_processes: int = 1) -> None:
        self._memory = mmap.mmap(-1, max(1, count) * _SLOT.size)
        self._lock: int | None = None
        if num_processes > 1:
            with tempfile.TemporaryFile() as file:  # no name, no content: only a thing to lock
                self._lock = os.dup(file.fileno())  # as long as the process lives

    def __getitem__(self, index: int) -> float:
        value: float = _SLOT.unpack_from(self._memory, index * _SLOT.size)[0]
        return value

    def __setitem__(self, index: int, value: float) -> None:
        _SLOT.pack_into(self._memory, index * _SLOT.size, value)

    @contextmanager
    def locked(self, index: int) -> Iterator[None]:
        """Keep other processes from one number; it takes microseconds.

        Threads of one process are not kept apart: all of this takes place on the event loop.
        """
        if self._lock is None or sys.platform == "win32":
            yield
            return
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, index)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, index)


class Bucket:
    """A token bucket: rows come in at a steady rate, up to a limit, and requests take them.

    It is kept as the one moment at which it would be full again, which needs no timer.

    Args:
        slots: Where that moment is.
        index: Which of them.
        rows_per_minute: Rate at which rows come in.
        most_rows: Rows in a full bucket.
        clock: Seconds that only grow, the same in all processes.

    Source:
        The generic cell rate algorithm, ITU-T I.371, "Traffic control and congestion control in
        B-ISDN", annex A, as virtual scheduling.
    """

    def __init__(
        self,
        slots: Slots,
        index: int,
        rows_per_minute: float,
        most_rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = slots
        self._index = index
        self._clock = clock
        self._seconds_per_row = 60 / rows_per_minute
        self.most_rows = most_rows

    @property
    def seconds_to_fill(self) -> float:
        """From empty to full."""
        return self.most_rows * self._seconds_per_row

    @property
    def seconds_until_full(self) -> float:
        """From now on, if nobody takes anything; 0 where it is full."""
        return max(0.0, self._slots[self._index] - self._clock())

    @property
    def num_rows(self) -> int:
        """Rows that could be taken now."""
        left_s = self.seconds_to_fill - self.seconds_until_full + _ROUNDING_S
        return max(0, int(left_s / self._seconds_per_row))

    def wait_s(self, num_rows: int) -> float:
        """Return in how many seconds so many rows could be taken; 0 for now."""
        full_s = self.seconds_until_full + num_rows * self._seconds_per_row
        late_s = full_s - self.seconds_to_fill
        return late_s if late_s > _ROUNDING_S else 0.0

    def take(self, num_rows: int, *, may_owe: bool = False) -> float:
        """Take rows, if they are there.

        Args:
            num_rows: How many, all or none.
            may_owe: Whether to take them in any case; later ones wait the longer.

        Returns:
            0 if they were taken, else the seconds until they could be.
        """
        with self._slots.locked(self._index):
            late_s = 0.0 if may_owe else self.wait_s(num_rows)
            if not late_s:
                full_s = self.seconds_until_full + num_rows * self._seconds_per_row
                self._slots[self._index] = self._clock() + full_s
        return late_s
