"""An HTTP server that answers as it is told: for what a well-behaved deepcode-serve can not be made to do."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import msgspec

from serve.analysis.report import Finding
from tests.client.reports import make_report


class Answer(msgspec.Struct, frozen=True):
    """One response. A status of 0 closes the connection without one."""

    status: int
    body: bytes
    headers: dict[str, str] = {}


HANG_UP = Answer(0, b"")


def report_answer(request: dict[str, Any]) -> Answer:
    """What a server says about clean code."""
    return Answer(200, msgspec.json.encode(make_report(request["path"])))


def reporting(*findings: Finding) -> Callable[[int, dict[str, Any]], Answer]:
    """A script that finds the same in every file, whose path the findings take."""

    def answer(number: int, request: dict[str, Any]) -> Answer:
        path = request["path"]
        found = (msgspec.structs.replace(finding, path=path) for finding in findings)
        return Answer(200, msgspec.json.encode(make_report(path, *found)))

    return answer


def problem_answer(status: int, detail: str, headers: dict[str, str] | None = None) -> Answer:
    """An error as the API contract writes it."""
    return Answer(status, json.dumps({"title": "A problem", "detail": detail}).encode(), headers or {})


def stream_answer(*events: tuple[str, Any]) -> Answer:
    """A stream of events: names, and values that become their data."""
    text = b"".join(f"event: {name}\ndata: ".encode() + msgspec.json.encode(value) + b"\n\n" for name, value in events)
    return Answer(200, text, {"Content-Type": "text/event-stream"})


class ScriptedServer(ThreadingHTTPServer):
    """Asks `script` for the answer to each request; `requests` and `headers` hold what was sent.

    A body that is a list, as a batch's, is found under "files".
    """

    def __init__(self, script: Callable[[int, dict[str, Any]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Message] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = {"files": body} if isinstance(body, list) else body
        self.server.requests.append(request | {"endpoint": self.path})
        self.server.headers.append(self.headers)
        answer = self.server.script(len(self.server.requests), request)
        if answer.status == 0:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output quiet."""


@contextmanager
def scripted_server(script: Callable[[int, dict[str, Any]], Answer]) -> Iterator[ScriptedServer]:
    """A running server. `script` gets the request's number, from 1, and its body."""
    with ScriptedServer(script) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
