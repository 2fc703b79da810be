"""Counters and histograms in memory that the processes of a server share.

Prometheus' own client keeps the numbers of several processes in files, and costs a request three
times what these do. Each process adds to a row of its own, so that nothing needs a lock; whichever
is asked adds the rows up. What a process has counted outlives it.
"""

import mmap
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

# Memory that is never written costs nothing, so there is room for some ten thousand graphs.
_NUMBERS_PER_PROCESS = 1 << 20


class Ledger:
    """The numbers of all processes; series are opened before the processes are forked.

    Args:
        num_processes: How many rows of numbers.
    """

    def __init__(self, num_processes: int = 1) -> None:
        memory = mmap.mmap(-1, 8 * num_processes * _NUMBERS_PER_PROCESS)
        self._all = np.frombuffer(memory, np.float64).reshape(num_processes, -1)
        self._num_open = 0
        self.take_place(0)

    def take_place(self, position: int) -> None:
        """Add to another row from now on.

        Args:
            position: Which process this is, from 0.
        """
        self.own = memoryview(self._all[position]).cast("B").cast("d")

    def open(self, count: int) -> int:
        """Reserve numbers that begin at 0; returns the position of the first."""
        start = self._num_open
        self._num_open += count
        if self._num_open > _NUMBERS_PER_PROCESS:
            raise MemoryError("too many graphs for the metrics")
        return start

    def sum(self, start: int, count: int = 1) -> list[float]:
        """Add up what all processes have counted."""
        totals: list[float] = self._all[:, start : start + count].sum(axis=0).tolist()
        return totals

    def by_process(self, position: int) -> list[float]:
        """List one number of each process."""
        numbers: list[float] = self._all[:, position].tolist()
        return numbers


@dataclass(frozen=True)
class Total:
    """How often something happened, and how long it took in all.

    Attributes:
        last_s: When it last did, in seconds since 1970; 0 for never.
    """

    count: int
    seconds: float
    last_s: float


class Stopwatch:
    """Counts and adds durations that Prometheus is not told of.

    Args:
        ledger: Where the numbers are.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._start = ledger.open(3)

    def add(self, seconds: float) -> None:
        """Count what took some time and ends now."""
        own, start = self._ledger.own, self._start
        own[start] += 1
        own[start + 1] += seconds
        own[start + 2] = time.time()

    def total(self) -> Total:
        """Add up what all processes have counted."""
        count, seconds = self._ledger.sum(self._start, 2)
        return Total(int(count), seconds, max(self._ledger.by_process(self._start + 2)))


class Tally:
    """What is counted per combination of labels.

    Args:
        ledger: Where the numbers are.
        name: Prometheus' name.
        documentation: What is counted.
        labels: Names of the labels.
    """

    def __init__(
        self, ledger: Ledger, name: str, documentation: str, labels: Sequence[str]
    ) -> None:
        self._ledger = ledger
        self._about = (name, documentation, labels)
        self._series: dict[tuple[str, ...], int] = {}


class Counter(Tally):
    """Counts per combination of labels; combinations are opened before they are counted.

    Args:
        ledger: Where the numbers are.
        name: Prometheus' name, without `_total`.
        documentation: What is counted.
        labels: Names of the labels.
        shows_zero: Whether to tell of what has not happened yet.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        shows_zero: bool = False,
    ) -> None:
        super().__init__(ledger, name, documentation, labels)
        self._shows_zero = shows_zero

    def open(self, combinations: Iterable[tuple[str, ...]]) -> None:
        """Prepare to count these combinations of labels."""
        for labels in combinations:
            if labels not in self._series:
                self._series[labels] = self._ledger.open(1)

    def add(self, labels: tuple[str, ...], amount: float = 1) -> None:
        """Count.

        Raises:
            KeyError: The combination has not been opened.
        """
        self._ledger.own[self._series[labels]] += amount

    def own(self, labels: tuple[str, ...]) -> float:
        """Return what this process has counted."""
        return self._ledger.own[self._series[labels]]

    def collect(self) -> Iterator[Metric]:
        """Yield the totals."""
        name, documentation, labels = self._about
        family = CounterMetricFamily(name, documentation, labels=labels)
        for values, position in self._series.items():
            (total,) = self._ledger.sum(position)
            if total or self._shows_zero:
                family.add_metric(values, total)
        yield family


class Histogram(Tally):
    """Distributions per combination of labels.

    Args:
        ledger: Where the numbers are.
        name: Prometheus' name.
        documentation: What is observed.
        labels: Names of the labels.
        bounds: Upper bounds of the buckets, ascending; one without a bound comes on top.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        documentation: str,
        labels: Sequence[str],
        bounds: Sequence[float],
    ) -> None:
        super().__init__(ledger, name, documentation, labels)
        self._bounds = bounds

    def open(self, labels: tuple[str, ...]) -> int:
        """Prepare to observe a combination of labels; returns what `observe` wants."""
        if labels not in self._series:
            self._series[labels] = self._ledger.open(len(self._bounds) + 2)
        return self._series[labels]

    def observe(self, series: int, value: float) -> None:
        """Count a value in its bucket and add it to the sum."""
        own = self._ledger.own
        own[series] += value
        own[series + 1 + bisect_left(self._bounds, value)] += 1

    def total(self, series: int) -> tuple[int, float]:
        """Return how many values have been observed, and their sum."""
        total, *counts = self._ledger.sum(series, len(self._bounds) + 2)
        return int(sum(counts)), total

    def collect(self) -> Iterator[Metric]:
        """Yield the totals of what has been observed at least once."""
        name, documentation, labels = self._about
        family = HistogramMetricFamily(name, documentation, labels=labels)
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for values, position in self._series.items():
            total, *counts = self._ledger.sum(position, len(names) + 1)
            if any(counts):
                buckets = list(zip(names, accumulate(counts), strict=True))
                family.add_metric(values, buckets, total)
        yield family
