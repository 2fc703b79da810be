"""Prometheus metrics: one namespace, base units, the same whichever process is asked."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from service.errors import all_problems
from service.manifest import Manifest, Role
from service.tally import Counter, Histogram, Ledger, Stopwatch, Total

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_STAGES = ("queued", "running")

# What is answered beside these is counted as "other".
_STATUSES = sorted({200, 304, 307, 499} | {problem.status for problem in all_problems()})
_OTHER = "other"


@dataclass(frozen=True)
class GraphTotals:
    """What all processes have done with one graph.

    Attributes:
        success: Calls that were answered, from their arrival to their answer.
        fail: Calls that were taken in and not answered.
        queue: Waits of the answered calls until their first run.
        compute: Runs of the answered calls, noise and answers included.
        num_rows: Rows that were run.
        num_runs: Runs.
    """

    success: Total
    fail: Total
    queue: Total
    compute: Total
    num_rows: int
    num_runs: int


class Queue(Protocol):
    """What is read of a batcher when metrics are asked for."""

    num_queued_rows: int


class Metrics(Collector):
    """All metrics of one server.

    Series are opened while models are loaded and routes are added; after that, processes may be
    forked that count together.

    Args:
        num_processes: How many will count.
    """

    def __init__(self, num_processes: int = 1) -> None:
        self.ledger = ledger = Ledger(num_processes)
        graph = ("model", "graph")
        self._requests = Counter(
            ledger, "ptheta_requests", "Requests answered.", ("method", "route", "status")
        )
        self._request_seconds = Histogram(
            ledger,
            "ptheta_request_seconds",
            "Seconds from a request's headers until the last of its answer leaves.",
            ("route",),
            _SECONDS,
        )
        self._rejections = Counter(
            ledger,
            "ptheta_rejections",
            "Requests refused, by the slug of the problem.",
            ("reason",),
        )
        self._rejections.open((problem.slug,) for problem in all_problems())
        self.batch_rows = Histogram(ledger, "ptheta_batch_rows", "Rows per run.", graph, _ROWS)
        self.run_seconds = Histogram(
            ledger,
            "ptheta_run_seconds",
            "Seconds per run, noise and answers included.",
            graph,
            _SECONDS,
        )
        self.queue_seconds = Histogram(
            ledger,
            "ptheta_queue_seconds",
            "Seconds that a call waited for its first run.",
            graph,
            _SECONDS,
        )
        self.cancelled_rows = Counter(
            ledger,
            "ptheta_cancelled_rows",
            "Rows whose caller had gone or whose deadline had passed, by what they were doing.",
            (*graph, "stage"),
            shows_zero=True,
        )
        self.non_finite_rows = Counter(
            ledger,
            "ptheta_non_finite_rows",
            "Rows whose result was not finite.",
            graph,
            shows_zero=True,
        )
        self._key_rows = Counter(
            ledger, "ptheta_key_rows", "Rows charged to an API key, by its name.", ("key",)
        )
        self._routes: dict[tuple[str, str], dict[int | str, tuple[str, ...]]] = {}
        self._durations: dict[str, int] = {}
        self._calls = ledger.open(1)
        self._queues: list[tuple[tuple[str, str], int, Queue]] = []
        self._models: list[Manifest] = []
        self._broken: list[str] = []
        self._is_ready = False
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.add_route(_OTHER, "")

    def take_place(self, position: int) -> None:
        """Count as one of several processes.

        Args:
            position: Which, from 0.
        """
        self.ledger.take_place(position)

    def add_route(self, method: str, route: str) -> None:
        """Prepare to count the requests of a route."""
        statuses: tuple[int | str, ...] = (*_STATUSES, _OTHER)
        labels: dict[int | str, tuple[str, ...]] = {
            status: (method, route, str(status)) for status in statuses
        }
        self._requests.open(labels.values())
        self._routes[method, route] = labels
        self._durations[route] = self._request_seconds.open((route,))

    def add_keys(self, names: Iterable[str]) -> None:
        """Prepare to count the rows of the owners of API keys."""
        self._key_rows.open((name,) for name in names)

    def add_model(self, manifest: Manifest, queues: Iterable[tuple[Role, Queue]]) -> None:
        """Begin to tell of a model."""
        self._models.append(manifest)
        for role, queue in queues:
            self._queues.append(((manifest.reference, role), self.ledger.open(1), queue))

    def add_broken(self, reference: str) -> None:
        """Begin to tell of a bundle that is not served."""
        self._broken.append(reference)

    def on_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note a request that has its answer; those of no known route are counted together."""
        labels = self._routes.get((method, route))
        if labels is None:
            labels, route = self._routes[_OTHER, ""], ""
        self._requests.add(labels.get(status) or labels[_OTHER])
        self._request_seconds.observe(self._durations[route], seconds)

    def on_refusal(self, slug: str) -> None:
        """Note a request that has been refused."""
        self._rejections.add((slug,))

    def own_refusals(self, slug: str) -> float:
        """Return how many requests this process has refused for a reason."""
        return self._rejections.own((slug,))

    def on_key_rows(self, name: str, num_rows: int) -> None:
        """Note rows that are about to be run for the owner of an API key."""
        self._key_rows.add((name,), num_rows)

    def share_calls(self, num_calls: float) -> float:
        """Tell all processes how many calls this one has under way; returns their mean."""
        self.ledger.own[self._calls] = num_calls
        calls = self.ledger.by_process(self._calls)
        return sum(calls) / len(calls)

    def refresh(self) -> None:
        """Read the queues; called a few times a second, so that nothing is on the hot path."""
        for _, position, queue in self._queues:
            self.ledger.own[position] = queue.num_queued_rows

    def render(self, *, is_ready: bool) -> bytes:
        """Return everything in Prometheus' text format.

        Args:
            is_ready: Whether traffic should come to this server.
        """
        self.refresh()
        self._is_ready = is_ready
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        families = (
            self._requests,
            self._request_seconds,
            self._rejections,
            self.batch_rows,
            self.run_seconds,
            self.queue_seconds,
            self.cancelled_rows,
            self.non_finite_rows,
            self._key_rows,
        )
        for family in families:
            yield from family.collect()
        yield GaugeMetricFamily(
            "ptheta_ready", "1 where traffic should come here.", value=self._is_ready
        )
        rows = GaugeMetricFamily("ptheta_queue_rows", "Rows that wait.", labels=("model", "graph"))
        for labels, position, _ in self._queues:
            rows.add_metric(labels, self.ledger.sum(position)[0])
        yield rows
        info = InfoMetricFamily("ptheta_model", "Models that are served.", labels=("model",))
        state = GaugeMetricFamily("ptheta_model_ready", "1 served, 0 broken.", labels=("model",))
        for manifest in self._models:
            about = {"family": manifest.family, "density": manifest.density}
            info.add_metric((manifest.reference,), about)
            state.add_metric((manifest.reference,), 1)
        for reference in self._broken:
            state.add_metric((reference,), 0)
        yield info
        yield state


class GraphMetrics:
    """What a batcher reports of one graph.

    Args:
        metrics: All metrics.
        model: `name@version`.
        role: Which graph of the model.
    """

    def __init__(self, metrics: Metrics, model: str, role: Role) -> None:
        self._metrics = metrics
        self._labels = labels = (model, role)
        self._batch_rows = metrics.batch_rows.open(labels)
        self._run_seconds = metrics.run_seconds.open(labels)
        self._queue_seconds = metrics.queue_seconds.open(labels)
        metrics.cancelled_rows.open((*labels, stage) for stage in _STAGES)
        metrics.non_finite_rows.open([labels])
        self._queued = Stopwatch(metrics.ledger)
        self._computed = Stopwatch(metrics.ledger)
        self._failed = Stopwatch(metrics.ledger)
        self._lock = threading.Lock()

    @property
    def totals(self) -> GraphTotals:
        """What has happened to the graph so far."""
        queue, compute = self._queued.total(), self._computed.total()
        num_runs, num_rows = self._metrics.batch_rows.total(self._batch_rows)
        return GraphTotals(
            success=Total(queue.count, queue.seconds + compute.seconds, compute.last_s),
            fail=self._failed.total(),
            queue=queue,
            compute=compute,
            num_rows=int(num_rows),
            num_runs=num_runs,
        )

    def on_start(self, queue_seconds: float) -> None:
        """Note how long a call waited."""
        self._metrics.queue_seconds.observe(self._queue_seconds, queue_seconds)

    def on_batch(self, num_rows: int, seconds: float) -> None:
        """Note a run."""
        self._metrics.batch_rows.observe(self._batch_rows, num_rows)
        self._metrics.run_seconds.observe(self._run_seconds, seconds)

    def on_cancelled(self, num_queued: int, num_running: int) -> None:
        """Note rows that nobody waits for any more."""
        for stage, num_rows in zip(_STAGES, (num_queued, num_running), strict=True):
            self._metrics.cancelled_rows.add((*self._labels, stage), num_rows)

    def on_answer(self, queue_seconds: float, run_seconds: float) -> None:
        """Note a call that has its answer."""
        self._queued.add(queue_seconds)
        self._computed.add(run_seconds)

    def on_failure(self, seconds: float) -> None:
        """Note a call that ends without an answer."""
        self._failed.add(seconds)

    def on_non_finite(self, num_rows: int) -> None:
        """Note results that are not finite; called in worker threads."""
        if num_rows:
            with self._lock:
                self._metrics.non_finite_rows.add(self._labels, num_rows)
