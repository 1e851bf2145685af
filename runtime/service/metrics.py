"""Numbers for Prometheus: jobs, seconds, frames, what waits and for how long, memory."""

import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairy.runtime.service.jobs import JobStore

_BUCKETS_S = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14_400)


class Metrics:
    """All of the service's numbers, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        by: dict[str, Any] = {"registry": self._registry}
        self._ended = Counter("fairy_jobs_ended", "Jobs that ended, by how", ["outcome"], **by)
        self.seconds = Histogram(
            "fairy_stage_seconds", "Seconds by stage of an edit", ["stage"], buckets=_BUCKETS_S, **by
        )
        self.frames = Counter("fairy_frames_edited", "Frames edited", **by)
        self.received = Counter("fairy_received_bytes", "Bytes of videos received", **by)
        self.restarts = Counter("fairy_editor_restarts", "Editors that were started again", **by)
        self.refused = Counter(
            "fairy_requests_refused", "Requests for an edit that were refused, by why", ["code"], **by
        )
        self.gpu_bytes = Gauge("fairy_gpu_peak_bytes", "Most GPU memory that the last edit held", **by)
        self.webhooks = Counter("fairy_webhooks", "Webhooks, by how their sending ended", ["outcome"], **by)

    def ended(self, outcome: str) -> None:
        """A job ended so."""
        self._ended.labels(outcome).inc()

    def watch(self, store: JobStore) -> None:
        """Ask the table when somebody asks for the numbers."""
        self._registry.register(_Table(store))

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)


class _Table(Collector):
    def __init__(self, store: JobStore) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("fairy_jobs", "Jobs known, by status", labels=["status"])
        counts = self._store.counts()
        for status in ("queued", "in_progress", "completed", "failed"):
            jobs.add_metric([status], counts.get(status, 0))
        yield jobs
        since = self._store.longest_waiting_since()
        age = 0.0 if since is None else max(time.time() - since, 0.0)
        yield GaugeMetricFamily("fairy_queue_age_seconds", "How long the oldest waiting job has waited", value=age)
