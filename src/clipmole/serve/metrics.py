"""What the server counts, for Prometheus.

In: events. Out: the text that /metrics gives. Labels are codes, routes and verdicts: nothing of an image, a name or a
client. It knows nothing of how requests are answered.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "clipmole_requests", "Requests answered.", ["route", "status", "code"], registry=registry
        )
        self.seconds = Histogram(
            "clipmole_request_seconds", "From a request's head to its answer.", ["route"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.images = Counter(
            "clipmole_images", "Images answered, by verdict or by error code.", ["outcome"], registry=registry
        )
        self.image_seconds = Histogram(
            "clipmole_image_seconds", "From admission of an image to its result.", buckets=_SECONDS, registry=registry
        )
        self.decode_seconds = Histogram(
            "clipmole_decode_seconds", "Waiting for a decoding process, and decoding.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch_crops = Histogram(
            "clipmole_batch_crops", "Crops that went through the network together.", buckets=_COUNTS, registry=registry
        )
        self.restarts = Counter(
            "clipmole_worker_restarts", "Decoding processes that were replaced.", ["reason"], registry=registry
        )
        self._gauges: list[Gauge] = []

    def watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for whenever /metrics is read."""
        gauge = Gauge(name, documentation, registry=self._registry)
        gauge.set_function(value)
        self._gauges.append(gauge)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
