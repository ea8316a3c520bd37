"""Around every HTTP request: its id, its line in the log, its metrics, its trace."""

import logging
import re
import time
import uuid
from contextlib import nullcontext
from typing import cast

from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from serve.api.logs import request_id
from serve.api.metrics import Metrics
from serve.api.noted import noted
from serve.api.tracing import Tracing
from serve.engine.base import Timeline

CLIENT_LEFT = 499
UNMATCHED = "unmatched"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LONGEST_LOGGED_PATH = 200
# Asked every few seconds; they are in the log only when they fail.
PROBES = ("/health/", "/metrics")

_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


class Telemetry:
    """Metrics, and traces where they were asked for; an `Observer` of the engine's requests."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None) -> None:
        self.metrics, self.tracing = metrics, tracing

    def answered(self, timeline: Timeline, ended: float, tokens: int) -> None:
        """See `serve.analysis.asking.Observer`."""
        self.metrics.answered(timeline, ended, tokens)
        if self.tracing is not None:
            self.tracing.answered(timeline, ended, tokens)


class Observed:
    """The outermost ASGI application, so that what is refused on the way in is counted with its true status."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._observe(cast("HTTPScope", scope), receive, send)

    async def _observe(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        own_id = _id_of(headers.get(b"x-request-id"))
        fields: dict[str, object] = {}
        status = CLIENT_LEFT
        started = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", own_id.encode())]
            await send(message)

        request_id.set(own_id)
        noted.set(fields)
        tracing = self._telemetry.tracing
        with nullcontext() if tracing is None else tracing.request(scope, headers) as span:
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                route = str(scope.get("path_template") or UNMATCHED)
                seconds = time.monotonic() - started
                if fields.pop("left", False):
                    status = CLIENT_LEFT
                # Clients choose methods freely, and each would be a time series for ever.
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._telemetry.metrics.request_ended(method, route, status, seconds)
                if tracing is not None:
                    tracing.request_ended(span, route, status)
                path = scope["path"][:LONGEST_LOGGED_PATH]
                line = {"method": method, "path": path, "status": status, "seconds": round(seconds, 4)}
                level = logging.DEBUG if status < 400 and path.startswith(PROBES) else logging.INFO
                _log.log(level, "request", extra={"fields": line | fields})


def _id_of(header: bytes | None) -> str:
    """The client's id for its request where it is one, else a new one: it goes into the log and into headers."""
    if header is not None and _ACCEPTABLE_ID.fullmatch(text := header.decode("latin-1")):
        return text
    return uuid.uuid4().hex
