"""The real page before a server that answers as it is told: for moments that a real one passes through too fast."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.response import Stream

from bundle.rules import load_catalogue
from serve.web import page, page_files
from tests.client.reports import make_report
from tests.client.scripted_server import Answer
from tests.support.server_process import free_port

EVALUATION = Path(__file__).with_name("evaluation.json").read_bytes()

# Events of a stream, and moments to wait for before the next is sent. None hangs up in the middle of the answer.
Scripted = Answer | Sequence[tuple[str, Any] | threading.Event | None]


class PageServer:
    """Asks `script` for the answer to each analysis; `requests` and `keys` hold what was sent."""

    def __init__(self, script: Callable[[int, dict[str, Any]], Scripted]) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.key: str | None = None
        self.evaluation: bytes | None = EVALUATION
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        app = Litestar([page, page_files, *self._routes()], openapi_config=None, logging_config=None)
        self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=0))
        self._thread = threading.Thread(target=self._server.run)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def _routes(self) -> list[Any]:
        @post("/v1/analyze", status_code=200)
        async def analyze(request: Request[Any, Any, Any]) -> Response[Any]:
            body = json.loads(await request.body())
            self.requests.append(body)
            self.keys.append(request.headers.get("authorization"))
            if (refusal := self._refusal(request)) is not None:
                return refusal
            answer = self.script(len(self.requests), body)
            if isinstance(answer, Answer):
                return Response(answer.body, status_code=answer.status, headers=answer.headers)
            return Stream(_events(answer), media_type="text/event-stream")

        @get("/v1/bundle")
        async def served(request: Request[Any, Any, Any]) -> Response[Any]:
            model = make_report("x.py").model
            catalogue = load_catalogue()
            told = {
                "model": model,
                "language": "python",
                "context_length": 2048,
                "rules": catalogue.rules,
                "thresholds": {rule: 0.73 for rule in catalogue.ids},
            }
            return self._refusal(request) or _json(msgspec.json.encode(told))

        @get("/v1/bundle/report")
        async def evaluation(request: Request[Any, Any, Any]) -> Response[Any]:
            missing = Response(b"{}", status_code=404, media_type=MediaType.JSON)
            return self._refusal(request) or (missing if self.evaluation is None else _json(self.evaluation))

        return [analyze, served, evaluation]

    def _refusal(self, request: Request[Any, Any, Any]) -> Response[Any] | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        body = {"title": "An API key is needed", "detail": "Send a key this server knows."}
        return Response(msgspec.json.encode(body), status_code=401, media_type="application/problem+json")


def _json(content: bytes) -> Response[bytes]:
    return Response(content, media_type=MediaType.JSON)


async def _events(script: Sequence[tuple[str, Any] | threading.Event | None]) -> AsyncIterator[bytes]:
    yield b": analysing\n\n"
    for item in script:
        if item is None:
            raise ConnectionAbortedError
        if isinstance(item, threading.Event):
            await asyncio.to_thread(item.wait, 60)
            continue
        name, value = item
        yield f"event: {name}\ndata: ".encode() + msgspec.json.encode(value) + b"\n\n"


@contextmanager
def page_server(script: Callable[[int, dict[str, Any]], Scripted]) -> Iterator[PageServer]:
    """A running server. `script` gets the request's number, from 1, and its body."""
    server = PageServer(script)
    server.start()
    try:
        yield server
    finally:
        server.stop()
