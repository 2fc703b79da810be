"""Prometheus metrics: one namespace, base units, one registry per application.

Where several processes share a port, each writes to files of its own in PROMETHEUS_MULTIPROC_DIR,
and whichever is asked answers for all.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from service.manifest import Manifest, Role

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Queue(Protocol):
    """What is read of a batcher when metrics are asked for."""

    num_queued_rows: int


class GraphMetrics:
    """What a batcher reports of one graph.

    Args:
        metrics: All metrics.
        model: `name@version`.
        role: Which graph of the model.
    """

    def __init__(self, metrics: "Metrics", model: str, role: Role) -> None:
        self._batch_rows = metrics.batch_rows.labels(model, role)
        self._run_seconds = metrics.run_seconds.labels(model, role)
        self._queue_seconds = metrics.queue_seconds.labels(model, role)
        self._non_finite = metrics.non_finite_rows.labels(model, role)
        self._cancelled = {
            stage: metrics.cancelled_rows.labels(model, role, stage)
            for stage in ("queued", "running")
        }

    def on_start(self, queue_seconds: float) -> None:
        """Note how long a call waited."""
        self._queue_seconds.observe(queue_seconds)

    def on_batch(self, num_rows: int, seconds: float) -> None:
        """Note a run."""
        self._batch_rows.observe(num_rows)
        self._run_seconds.observe(seconds)

    def on_cancelled(self, num_queued: int, num_running: int) -> None:
        """Note rows that nobody waits for any more."""
        self._cancelled["queued"].inc(num_queued)
        self._cancelled["running"].inc(num_running)

    def on_non_finite(self, num_rows: int) -> None:
        """Note results that are not finite; called in worker threads."""
        self._non_finite.inc(num_rows)


class Metrics:
    """All metrics of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        graph = ("model", "graph")
        self.requests = Counter(
            "ptheta_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "ptheta_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.rejections = Counter(
            "ptheta_rejections",
            "Requests refused, by the slug of the problem.",
            ("reason",),
            registry=self._registry,
        )
        self.batch_rows = Histogram(
            "ptheta_batch_rows", "Rows per run.", graph, buckets=_ROWS, registry=self._registry
        )
        self.run_seconds = Histogram(
            "ptheta_run_seconds",
            "Seconds per run, noise and answers included.",
            graph,
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.queue_seconds = Histogram(
            "ptheta_queue_seconds",
            "Seconds that a call waited for its first run.",
            graph,
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.cancelled_rows = Counter(
            "ptheta_cancelled_rows",
            "Rows whose caller had gone or whose deadline had passed, by what they were doing.",
            (*graph, "stage"),
            registry=self._registry,
        )
        self.non_finite_rows = Counter(
            "ptheta_non_finite_rows",
            "Rows whose result was not finite.",
            graph,
            registry=self._registry,
        )
        self._queue_rows = Gauge(
            "ptheta_queue_rows",
            "Rows that wait.",
            graph,
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._queues: list[tuple[Gauge, Queue]] = []
        self._state = _StateCollector()
        if _shared_folder():
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        self._registry.register(self._state)

    def add_model(self, manifest: Manifest, queues: Iterable[tuple[Role, Queue]]) -> None:
        """Begin to tell of a model."""
        self._state.models.append(manifest)
        for role, queue in queues:
            self._queues.append((self._queue_rows.labels(manifest.reference, role), queue))

    def add_broken(self, reference: str) -> None:
        """Begin to tell of a bundle that is not served."""
        self._state.broken.append(reference)

    def refresh(self) -> None:
        """Read the queues; called a few times a second, so that nothing is on the hot path."""
        for gauge, queue in self._queues:
            gauge.set(queue.num_queued_rows)

    def render(self, *, is_ready: bool) -> bytes:
        """Return everything in Prometheus' text format.

        Args:
            is_ready: Whether traffic should come to this server.
        """
        self.refresh()
        self._state.is_ready = is_ready
        return generate_latest(self._registry)


def forget_process(pid: int) -> None:
    """Forget the gauges of a process that has ended; what it has counted stays."""
    if folder := _shared_folder():
        mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


def _shared_folder() -> str | None:
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")


class _StateCollector(Collector):
    """Tells what every process knows alike, when asked."""

    def __init__(self) -> None:
        self.models: list[Manifest] = []
        self.broken: list[str] = []
        self.is_ready = False

    def collect(self) -> Iterator[Metric]:
        """Yield the current state."""
        yield GaugeMetricFamily(
            "ptheta_ready", "1 where traffic should come here.", value=self.is_ready
        )
        info = InfoMetricFamily("ptheta_model", "Models that are served.", labels=("model",))
        state = GaugeMetricFamily("ptheta_model_ready", "1 served, 0 broken.", labels=("model",))
        for manifest in self.models:
            about = {"family": manifest.family, "density": manifest.density}
            info.add_metric((manifest.reference,), about)
            state.add_metric((manifest.reference,), 1)
        for reference in self.broken:
            state.add_metric((reference,), 0)
        yield info
        yield state
