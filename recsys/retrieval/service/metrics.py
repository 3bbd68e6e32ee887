"""Metrics: what Prometheus reads."""

from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from recsys.retrieval.snapshot import Recommendations

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
SIZES = (1, 2, 4, 8, 16, 32)
Versions = Callable[[], dict[str, dict[str, Any]]]
"""What `Retriever.version` says of each model served."""


class Metrics:
    """Counts of one service. Routes are templates, so that no label names a user or an item."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "recsys_requests", "Requests.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "recsys_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._sizes = Histogram(
            "recsys_batch_size",
            "Questions that were worked out together.",
            ("model",),
            buckets=SIZES,
            registry=self.registry,
        )
        self._fallbacks = Counter(
            "recsys_fallbacks",
            "Lists by popularity, for histories without a known item.",
            ("model",),
            registry=self.registry,
        )
        self._short = Counter(
            "recsys_short_lists", "Lists of fewer than k items.", ("model",), registry=self.registry
        )
        self._unknown = Counter(
            "recsys_unknown_ids",
            "Ids of histories and events that the catalogue did not know.",
            ("model",),
            registry=self.registry,
        )
        self._reloads = Counter(
            "recsys_reloads",
            "Attempts to take a run over.",
            ("model", "took_over"),
            registry=self.registry,
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request has ended."""
        # A client may call its method anything, and each label is kept for good.
        known = method if method in METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, model: str, size: int) -> None:
        """A batch is worked out."""
        self._sizes.labels(model).observe(size)

    def list(self, model: str, found: Recommendations) -> None:
        """A list was made."""
        if found.fallback is not None:
            self._fallbacks.labels(model).inc()
        if found.short is not None:
            self._short.labels(model).inc()
        self.unknown(model, len(found.unknown))

    def unknown(self, model: str, ids: int) -> None:
        """Ids that the catalogue did not know."""
        if ids:
            self._unknown.labels(model).inc(ids)

    def reload(self, model: str, took_over: bool) -> None:
        """A run was taken over or refused."""
        self._reloads.labels(model, str(took_over).lower()).inc()

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)


class Serving(Collector):
    """What serves now: items, available ones, versions and waiting requests, asked for at each
    reading."""

    def __init__(self, versions: Versions, waiting: Callable[[], int]):
        self._versions = versions
        self._waiting = waiting

    def collect(self) -> list[Metric]:
        """Gauges."""
        items = GaugeMetricFamily("recsys_items", "Items of the catalogue.", labels=["model"])
        available = GaugeMetricFamily(
            "recsys_items_available", "Items that may be recommended.", labels=["model"]
        )
        info = GaugeMetricFamily(
            "recsys_model",
            "Always 1; the labels say what serves.",
            labels=["model", "kind", "version", "index"],
        )
        for name, version in self._versions().items():
            items.add_metric([name], version["items"])
            available.add_metric([name], version["available"])
            index = version["index"] or ""
            labels = [name, version["model"], version["fingerprint"][:12], index]
            info.add_metric(labels, 1)
        waiting = GaugeMetricFamily(
            "recsys_waiting", "Requests at work, this one too.", value=self._waiting()
        )
        return [items, available, info, waiting]
