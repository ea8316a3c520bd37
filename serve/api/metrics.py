"""GET /metrics: what the server does, for Prometheus. Names end as vLLM's do, so that its dashboards are known ground.

An engine request is one unit of a file, or one completion.
"""

from collections.abc import Iterator

from litestar import get
from litestar.di import NamedDependency
from litestar.response import Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serve.analysis.cache import AnswerCache
from serve.api.limits import Admission
from serve.engine.base import Engine, Timeline
from serve.search.service import CodeSearch

PREFIX = "deepcode_"
LABEL = ("model_name",)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SEARCH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

disable_created_metrics()  # a time series for each label, which nobody asks for


class Metrics:
    """The server's metrics; told of requests, and asking the engine for the rest when they are scraped."""

    def __init__(self, model_name: str) -> None:
        """`model_name`: the label of every metric."""
        self._model = model_name
        self.registry = CollectorRegistry()
        for process_wide in (ProcessCollector, PlatformCollector, GCCollector):
            process_wide(registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            made = Histogram(PREFIX + name, text, LABEL, buckets=buckets, registry=self.registry)
            return made.labels(model_name)

        self._first_token = histogram(
            "time_to_first_token_seconds", "From an engine request's arrival to the first token the student chose."
        )
        self._inter_token = histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer: its mean.", TOKEN_SECONDS
        )
        self._end_to_end = histogram("e2e_request_latency_seconds", "From an engine request's arrival to its end.")
        self._queue = histogram("request_queue_time_seconds", "An engine request's wait for a slot.")
        self._prefill = histogram("request_prefill_time_seconds", "Computing the prompt of an engine request.")
        self._decode = histogram("request_decode_time_seconds", "Writing the answer of an engine request.")
        self._query_embedding = histogram(
            "search_embedding_seconds", "Embedding a search's query, the wait for its turn included.", SEARCH_SECONDS
        )
        self._finding = histogram("search_lookup_seconds", "Finding code once the query is embedded.", SEARCH_SECONDS)
        self._http = Counter(
            PREFIX + "http_requests",
            "HTTP requests, by route and status; 499: the client left.",
            (*LABEL, "method", "route", "status"),
            registry=self.registry,
        )
        self._http_seconds = Histogram(
            PREFIX + "http_request_duration_seconds",
            "HTTP requests, from the end of their headers to the end of their answer.",
            (*LABEL, "route"),
            buckets=SECONDS,
            registry=self.registry,
        )

    def watch(
        self, engine: Engine, admission: Admission, cache: AnswerCache | None, search: CodeSearch | None = None
    ) -> None:
        """Ask these whenever the metrics are scraped."""
        self.registry.register(_Watched(self._model, engine, admission, cache, search))

    def searched(self, embedding: float, finding: float) -> None:
        """See `serve.search.service.Observer`."""
        self._query_embedding.observe(embedding)
        self._finding.observe(finding)

    def answered(self, timeline: Timeline, ended: float, tokens: int) -> None:
        """See `serve.analysis.asking.Observer`."""
        self._end_to_end.observe(ended - timeline.submitted)
        if timeline.admitted is None:
            return
        self._queue.observe(timeline.admitted - timeline.submitted)
        if timeline.first_token is None:
            return
        self._first_token.observe(timeline.first_token - timeline.submitted)
        self._prefill.observe(timeline.first_token - timeline.admitted)
        self._decode.observe(ended - timeline.first_token)
        if tokens > 1:
            self._inter_token.observe((ended - timeline.first_token) / (tokens - 1))

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request. `route` is the path's template: there are few."""
        self._http.labels(self._model, method, route, str(status)).inc()
        self._http_seconds.labels(self._model, route).observe(seconds)


class _Watched(Collector):
    """What others count, read when it is asked for."""

    def __init__(
        self, model: str, engine: Engine, admission: Admission, cache: AnswerCache | None, search: CodeSearch | None
    ) -> None:
        self._model = model
        self._engine, self._admission, self._cache, self._search = engine, admission, cache, search

    def collect(self) -> Iterator[Metric]:
        """Every metric anew."""
        stats = self._engine.stats()
        up = self._engine.failure is None and self._engine.away is None
        yield self._gauge("engine_up", "1 while the engine works, and can be reached.", up)
        yield self._gauge(
            "requests_in_flight", "Accepted HTTP requests that are not answered.", self._admission.in_flight
        )
        yield self._gauge("num_requests_running", "Engine requests that own a slot.", stats.running)
        yield self._gauge("num_requests_waiting", "Engine requests that wait for a slot.", stats.waiting)
        used = stats.kv_tokens_used / stats.kv_tokens if stats.kv_tokens else 0.0
        yield self._gauge("kv_cache_usage_perc", "The part of the KV cache in use; 1 is all of it.", used)
        yield self._counter("prompt_tokens", "Tokens of prompts, the cached ones included.", stats.prompt_tokens)
        yield self._counter("generation_tokens", "Tokens of answers, the forced ones included.", stats.generated_tokens)
        yield self._counter(
            "forced_tokens", "Tokens of answers that the grammar left no choice about.", stats.forced_tokens
        )
        yield self._counter(
            "prefix_cache_queries", "Prompt tokens looked for in the prefix cache.", stats.prompt_tokens
        )
        yield self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.cached_tokens)
        yield self._counted_by(
            "request_success", "Engine requests that ended, by why.", "finished_reason", stats.finished
        )
        yield self._counted_by(
            "admission_rejections", "HTTP requests that were refused, by why.", "reason", self._admission.rejections
        )
        if self._cache is not None:
            yield self._counter(
                "answer_cache_queries", "Answers and reports looked for in the cache.", self._cache.queries
            )
            yield self._counter("answer_cache_hits", "Answers and reports found in the cache.", self._cache.hits)
            yield self._gauge("answer_cache_bytes", "Memory of the answers that are kept.", self._cache.bytes)
        if self._search is not None:
            yield self._counter("search_embedded_units", "Units that were embedded.", self._search.embedded)
        steps = HistogramMetricFamily(PREFIX + "engine_step_seconds", "Steps of the engine.", labels=LABEL)
        buckets = [(_bound(bound), count) for bound, count in stats.step_times.buckets]
        steps.add_metric([self._model], buckets, stats.step_times.total_s)
        yield steps

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=LABEL)
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=LABEL)
        family.add_metric([self._model], value)
        return family

    def _counted_by(self, name: str, text: str, label: str, counts: dict[str, int]) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=(*LABEL, label))
        for value, count in sorted(counts.items()):
            family.add_metric([self._model, value], count)
        return family


def _bound(seconds: float) -> str:
    return "+Inf" if seconds == float("inf") else repr(seconds)


@get("/metrics", tags=["operation"], summary="Metrics for Prometheus", media_type="text/plain")
async def metrics_page(metrics: NamedDependency[Metrics]) -> Response[bytes]:
    """In Prometheus' text format."""
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
