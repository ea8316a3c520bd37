"""OpenTelemetry traces: one span for a request, and below it the queue, prefill and decode of what the engine did.

They are on where OpenTelemetry's own OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) says where to send them;
`OTEL_SERVICE_NAME` and the rest of its variables hold too. It is imported only then.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serve.engine.base import Timeline
from serve.settings import SettingsError

FLUSH_MILLISECONDS = 2_000
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """Makes the spans of this server and sends them in the background."""

    def __init__(self) -> None:
        """
        Raises:
            SettingsError: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise SettingsError(
                f"{ENDPOINTS[0]} asks for traces, which need: pip install 'deepcode-analyst[tracing]' ({error})"
            ) from error
        default_name = Resource({"service.name": "deepcode-serve"})
        # What it would do at exit is done in `close`, which does not wait for a collector that is gone.
        self._provider = TracerProvider(resource=default_name.merge(Resource.create()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("deepcode")
        self._extract = propagate.extract
        self._server_kind = trace.SpanKind.SERVER

    @contextmanager
    def request(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> Iterator[Any]:
        """A span around a request, within the client's trace where it sends a W3C `traceparent`."""
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with self._tracer.start_as_current_span(
            scope["method"],
            context=self._extract(carrier),
            kind=self._server_kind,
            attributes=attributes,
        ) as span:
            yield span

    def request_ended(self, span: Any, route: str, status: int) -> None:
        """Tell a request's span how it ended."""
        span.update_name(f"{span.name} {route}")
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)

    def answered(self, timeline: Timeline, ended: float, tokens: int) -> None:
        """See `serve.analysis.asking.Observer`."""
        since_epoch = time.time_ns() - time.monotonic_ns()
        parts = (
            ("queue", timeline.submitted, timeline.admitted),
            ("prefill", timeline.admitted, timeline.first_token),
            ("decode", timeline.first_token, ended),
        )
        for name, begun, done in parts:
            if begun is None:
                return
            attributes = {"deepcode.tokens": tokens} if name == "decode" else None
            span = self._tracer.start_span(name, start_time=since_epoch + int(begun * 1e9), attributes=attributes)
            span.end(since_epoch + int((ended if done is None else done) * 1e9))

    def close(self) -> None:
        """Send what is left, within two seconds."""
        self._provider.force_flush(FLUSH_MILLISECONDS)


def make_tracing(environment: Mapping[str, str]) -> Tracing | None:
    """Traces, where the environment asks for them.

    Raises:
        SettingsError: they are asked for, and OpenTelemetry is not installed.
    """
    return Tracing() if any(environment.get(name) for name in ENDPOINTS) else None
