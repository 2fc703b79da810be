"""Numbers in shared memory: none is lost between processes, none is read as another."""

import os
import sys

import pytest

from service.tally import Counter, Histogram, Ledger, Stopwatch, Total


def samples(family: Counter | Histogram) -> dict[str, float]:
    (metric,) = family.collect()
    return {
        " ".join([sample.name, *map(str, sample.labels.values())]): sample.value
        for sample in metric.samples
    }


def test_a_counter_tells_what_was_counted_per_combination() -> None:
    counter = Counter(Ledger(), "c", "Counts.", ("kind", "colour"))
    counter.open([("a", "red"), ("b", "red"), ("a", "red")])
    counter.add(("a", "red"))
    counter.add(("a", "red"), 2.5)
    assert samples(counter) == {"c_total a red": 3.5}


def test_what_has_not_happened_is_told_where_that_matters() -> None:
    counter = Counter(Ledger(), "c", "Counts.", ("kind",), shows_zero=True)
    counter.open([("a",)])
    assert samples(counter) == {"c_total a": 0}


def test_a_combination_must_be_opened() -> None:
    with pytest.raises(KeyError):
        Counter(Ledger(), "c", "Counts.", ("kind",)).add(("a",))


def test_a_histogram_counts_in_the_right_bucket_bounds_included() -> None:
    histogram = Histogram(Ledger(), "h", "Sizes.", ("kind",), (1, 2.5))
    series = histogram.open(("a",))
    histogram.open(("never",))
    for value in (0, 1, 1.5, 2.5, 9):
        histogram.observe(series, value)
    assert samples(histogram) == {
        "h_bucket a 1.0": 2,
        "h_bucket a 2.5": 4,
        "h_bucket a +Inf": 5,
        "h_count a": 5,
        "h_sum a": 14,
    }


def test_families_do_not_share_numbers() -> None:
    ledger = Ledger()
    histogram = Histogram(ledger, "h", "Sizes.", (), (1,))
    counter = Counter(ledger, "c", "Counts.", ())
    series = histogram.open(())
    counter.open([()])
    counter.add(())
    histogram.observe(series, 5)
    assert samples(counter) == {"c_total": 1}
    assert samples(histogram)["h_sum"] == 5


def test_a_histogram_tells_its_totals() -> None:
    histogram = Histogram(Ledger(), "h", "Sizes.", ("kind",), (1, 2.5))
    series = histogram.open(("a",))
    assert histogram.total(series) == (0, 0)
    for value in (0.5, 2, 9):
        histogram.observe(series, value)
    assert histogram.total(series) == (3, 11.5)


def test_a_stopwatch_adds_up_all_processes_and_keeps_the_latest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = Ledger(2)
    stopwatch, other = Stopwatch(ledger), Stopwatch(ledger)
    assert stopwatch.total() == Total(0, 0, 0)
    for position, now, seconds in ((0, 50, 1.5), (1, 70, 2), (0, 60, 0.25)):
        ledger.take_place(position)
        monkeypatch.setattr("service.tally.time.time", lambda now=now: now)
        stopwatch.add(seconds)
    assert stopwatch.total() == Total(3, 3.75, 70)
    assert other.total() == Total(0, 0, 0)


def test_a_ledger_that_is_full_says_so() -> None:
    ledger = Ledger()
    with pytest.raises(MemoryError, match="too many graphs"):
        ledger.open(1 << 21)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_forked_processes_count_together() -> None:
    ledger = Ledger(3)
    counter = Counter(ledger, "c", "Counts.", ("kind",))
    counter.open([("a",)])
    children = []
    for position in range(3):
        pid = os.fork()
        if not pid:
            ledger.take_place(position)
            for _ in range(1000):
                counter.add(("a",))
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    assert samples(counter) == {"c_total a": 3000}
