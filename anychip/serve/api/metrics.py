"""Prometheus metrics: what the engine says of itself at each scrape, and what its users saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from ..settings import EngineStats
from .call import Call

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
# EngineStats fields: name, help, whether it only grows
_ENGINE = (("waiting", "Requests in the queue", False), ("running", "Answers in the batch", False),
           ("finished", "Requests answered", True), ("aborted", "Requests ended by their client", True),
           ("preempted", "Answers that stepped back for want of cache", True),
           ("prompt_tokens", "Tokens of prompts", True), ("cached_tokens", "Of these, from the prefix cache", True),
           ("new_tokens", "Tokens made", True), ("drafted_tokens", "Tokens drafted by the MTP block", True),
           ("accepted_tokens", "Of these, kept", True), ("cache_blocks", "Cache blocks there are", False),
           ("cache_blocks_used", "Cache blocks in use", False), ("cache_bytes", "Bytes of the cache", False),
           ("tokens_per_s", "Tokens made a second, over the last ten", False),
           ("uptime_s", "Seconds since start", False))


class Metrics:
    """Counters and histograms of one server, and a registry that renders them."""

    def __init__(self, stats: Callable[[], EngineStats] | None, paths: frozenset[str]) -> None:
        """`stats` None: the engine is another process. `paths`: those that get their own label."""
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._paths, self.registry = paths, CollectorRegistry()
        if stats is not None:
            self.registry.register(_EngineCollector(stats))  # type: ignore[arg-type]
        self._requests = Counter("anychip_http_requests", "Answers by path and status", ("path", "status"),
                                 registry=self.registry)
        self._duration = Histogram("anychip_http_request_seconds", "Seconds from arrival to the answer's end",
                                   ("path",), buckets=_SECONDS, registry=self.registry)
        self._ttft = Histogram("anychip_ttft_seconds", "Seconds from arrival to the first token", buckets=_SECONDS,
                               registry=self.registry)
        self._tpot = Histogram("anychip_tpot_seconds", "Seconds a token after the first", buckets=_TOKEN_SECONDS,
                               registry=self.registry)
        self._malformed = Counter("anychip_malformed_tool_calls", "Answers with text that only looked like a call",
                                  registry=self.registry)

    def record(self, call: Call, duration_s: float) -> None:
        """Count a request that is over."""
        path = call.path if call.path in self._paths else "other"
        self._requests.labels(path, str(call.status or 499)).inc()
        self._duration.labels(path).observe(duration_s)
        if call.ttft_s is not None:
            self._ttft.observe(call.ttft_s)
        if call.tpot_s is not None:
            self._tpot.observe(call.tpot_s)
        if call.malformed is not None:
            self._malformed.inc()

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _EngineCollector:
    """Reads the engine's statistics at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        found = asdict(self._stats())
        for name, text, grows in _ENGINE:
            family = CounterMetricFamily if grows else GaugeMetricFamily
            yield family(f"anychip_engine_{name}", text, value=found[name])
        yield GaugeMetricFamily("anychip_engine_up", "Whether the engine runs", value=float(found["failed"] is None))
