"""Prometheus metrics. Their names are documented in docs/server.md and stay."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from jaxpool.runner import Stats
from jaxpool.server.scheduler import Scheduler

REGISTRY = CollectorRegistry()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = tuple(2**i for i in range(2, 20, 2))

requests = Counter("jaxpool_requests", "Requests answered.", ("model", "endpoint", "status"), registry=REGISTRY)
request_seconds = Histogram(
    "jaxpool_request_seconds", "From a request's first byte to its answer.", ("model", "endpoint"),
    buckets=_SECONDS, registry=REGISTRY,
)  # fmt: skip
request_tokens = Histogram(
    "jaxpool_request_tokens", "Tokens of a request.", ("model", "endpoint"), buckets=_TOKENS, registry=REGISTRY
)
truncated = Counter("jaxpool_truncated_texts", "Texts that were cut.", ("model",), registry=REGISTRY)
_queue_seconds = Histogram(
    "jaxpool_queue_seconds", "From a request's arrival in the queue to its first batch.", ("model",),
    buckets=_SECONDS, registry=REGISTRY,
)  # fmt: skip
_batch_seconds = Histogram(
    "jaxpool_batch_seconds", "A batch, from the planner to its rows.", ("model",), buckets=_SECONDS, registry=REGISTRY
)
_device_seconds = Histogram(
    "jaxpool_device_seconds", "A batch on its device, without waiting for the one before.", ("model",),
    buckets=_SECONDS, registry=REGISTRY,
)  # fmt: skip
_batch_tokens = Histogram(
    "jaxpool_batch_tokens", "Tokens of a batch, without padding.", ("model",), buckets=_TOKENS, registry=REGISTRY
)
_padding = Counter("jaxpool_padding_tokens", "Tokens computed that were padding.", ("model",), registry=REGISTRY)
up = Gauge("jaxpool_up", "1 while the model can answer.", ("model",), registry=REGISTRY)


class ModelMetrics:
    """One model's metrics that the scheduler feeds.

    Args:
        model: its name.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self.queue_seconds = _queue_seconds.labels(model)
        self._batch_seconds, self._batch_tokens = _batch_seconds.labels(model), _batch_tokens.labels(model)
        self._device_seconds = _device_seconds.labels(model)
        self._padding = _padding.labels(model)
        self._engine: _Engine | None = None

    def batch(self, seconds: float, device_seconds: float, tokens: int, area: int) -> None:
        """Counts a batch."""
        self._batch_seconds.observe(seconds)
        self._device_seconds.observe(device_seconds)
        self._batch_tokens.observe(tokens)
        self._padding.inc(area - tokens)

    def watch(self, scheduler: Scheduler, stats: Stats) -> None:
        """Reads queue and engine whenever metrics are asked for."""
        self._engine = _Engine(self._model, scheduler, stats)
        REGISTRY.register(self._engine)

    def close(self) -> None:
        """Forgets queue and engine; what was counted stays."""
        if self._engine is not None:
            REGISTRY.unregister(self._engine)
            self._engine = None


class _Engine:
    """Counters that others keep."""

    def __init__(self, model: str, scheduler: Scheduler, stats: Stats) -> None:
        self._model, self._scheduler, self._stats = model, scheduler, stats

    def describe(self) -> list[Any]:
        """None: several models have the same names."""
        return []

    def collect(self) -> list[Any]:
        """Prometheus's protocol."""
        found: list[Any] = []
        gauges = {
            "jaxpool_queued_tokens": ("Tokens that wait.", self._scheduler.queued_tokens),
            "jaxpool_queued_requests": ("Requests of which something waits.", self._scheduler.waiting),
            "jaxpool_running_batches": ("Batches being computed.", self._scheduler.busy),
        }
        counters = {
            "jaxpool_texts": ("Texts computed.", self._stats.texts),
            "jaxpool_tokens": ("Tokens computed, without padding.", self._stats.tokens),
            "jaxpool_batches": ("Batches run.", self._stats.batches),
            "jaxpool_compilations": ("Programs compiled; stands still once ready.", self._stats.compilations),
        }
        for kind, metrics in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (what, value) in metrics.items():
                family = kind(name, what, labels=["model"])
                family.add_metric([self._model], value)
                found.append(family)
        return found
