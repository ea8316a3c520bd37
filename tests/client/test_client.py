"""The Python client: typed reports and errors, streams, patience; blocking and asynchronous alike."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.analysis.report import Finding, Report, SkippedUnit, UnitReport
from serve.client.api import AsyncClient, Client
from serve.client.errors import (
    KeyRefused,
    NoAnswer,
    Refused,
    ServerUnreachable,
    UnexpectedAnswer,
    UnknownRules,
    UnparsableCode,
    UnsupportedLanguage,
)
from serve.client.messages import AnalyzeRequest, Event, Lines
from tests.client.reports import make_finding, make_report
from tests.client.scripted_server import (
    Answer,
    problem_answer,
    report_answer,
    scripted_server,
    stream_answer,
)

PROBLEM = "urn:deepcode-analyst:problem:"
FOUND = make_finding()
SKIPPED = SkippedUnit(name="huge", start_line=1, end_line=900, reason="too long")
UNIT = UnitReport(name="f", start_line=1, end_line=2, done=1, total=2)
REPORT = make_report("a.py", FOUND, skipped=(SKIPPED,))

Call = Callable[..., Any]


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


@pytest.fixture(params=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest) -> Call:
    """Call one method of a client, of either kind; a stream becomes a list."""

    def blocking(url: str, method: str, *arguments: Any, key: str | None = None, **options: Any) -> Any:
        with Client(url, key) as client:
            result = getattr(client, method)(*arguments, **options)
            return list(result) if isinstance(result, Iterator) else result

    def asynchronous(url: str, method: str, *arguments: Any, key: str | None = None, **options: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(url, key) as client:
                result = getattr(client, method)(*arguments, **options)
                return await (collect(result) if isinstance(result, AsyncIterator) else result)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else asynchronous


@pytest.mark.parametrize("method", ["analyze", "stream"])
def test_a_request_carries_what_was_asked_for_and_nothing_else(call: Call, method: str) -> None:
    with scripted_server(lambda number, request: report_answer(request)) as server:
        call(server.url, method, "x = 1\n")
        call(server.url, method, "x", "b.py", language="python", rules=["bare-except"], min_confidence=0.0)

    plain, full = server.requests
    assert plain == {"endpoint": "/v1/analyze", "code": "x = 1\n", "path": "<input>"}
    assert full == {
        "endpoint": "/v1/analyze",
        "code": "x",
        "path": "b.py",
        "language": "python",
        "rules": ["bare-except"],
        "min_confidence": 0.0,
    }


def test_a_stream_ends_with_the_whole_report_and_passes_over_what_it_does_not_know(call: Call) -> None:
    answer = stream_answer(
        ("finding", FOUND), ("unit", UNIT), ("skipped", SKIPPED), ("new", {"any": "thing"}), ("report", REPORT)
    )
    with scripted_server(lambda number, request: answer) as server:
        events = call(server.url, "stream", "x = 1\n", "a.py")

    assert events == [FOUND, UNIT, SKIPPED, REPORT]
    assert server.headers[0]["Accept"] == "text/event-stream"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_leaving_a_stream_early_hangs_up(kind: type) -> None:
    left = threading.Event()

    def answer_and_wait(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: finding\ndata: ")
        connection.sendall(msgspec.json.encode(FOUND) + b"\n\n")
        while connection.recv(65536):
            pass
        left.set()

    async def leave(url: str) -> None:
        async with AsyncClient(url) as client, aclosing(client.stream("x = 1\n")) as events:
            async for event in events:
                assert event == FOUND
                break
            # The client itself stays open: that it was left is all the server can notice.
            await events.aclose()
            assert await asyncio.to_thread(left.wait, 60)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer_and_wait, args=[listener], daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if kind is AsyncClient:
            asyncio.run(leave(url))
        else:
            with Client(url) as client:
                events = client.stream("x = 1\n")
                assert next(iter(events)) == FOUND
                events.close()
                assert left.wait(60)


def test_a_server_that_does_not_stream_gives_the_same_events_at_once(call: Call) -> None:
    with scripted_server(lambda number, request: report_answer(request)) as server:
        events = call(server.url, "stream", "x = 1\n", "a.py")

    assert events == [make_report("a.py")]


def test_an_error_in_a_stream_is_the_error_it_would_have_been_at_once(call: Call) -> None:
    problem = {"type": f"{PROBLEM}unparsable-code", "status": 422, "detail": "line 3", "line": 3, "column": 7}
    with (
        scripted_server(lambda number, request: stream_answer(("finding", FOUND), ("error", problem))) as server,
        pytest.raises(UnparsableCode) as raised,
    ):
        call(server.url, "stream", "x = 1\n", "a.py")

    assert (raised.value.status, raised.value.problem.line, raised.value.problem.column) == (422, 3, 7)
    assert str(raised.value) == "refused by the server (422): line 3"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (stream_answer(("finding", FOUND)), NoAnswer),
        (stream_answer(("finding", {"rule": 1})), UnexpectedAnswer),
        (Answer(200, b"<html>hello</html>", {"Content-Type": "text/html"}), UnexpectedAnswer),
        (Answer(308, b"", {"Location": "https://new.example/"}), UnexpectedAnswer),
        (Answer(404, b"<html>not here</html>"), Refused),
    ],
    ids=["cut short", "not a finding", "a page", "moved", "other server"],
)
def test_an_answer_that_is_no_whole_report_is_never_taken_for_one(call: Call, answer: Answer, error: type) -> None:
    with scripted_server(lambda number, request: answer) as server, pytest.raises(error):
        call(server.url, "stream", "x = 1\n", "a.py")


@pytest.mark.parametrize("method", ["analyze", "stream"])
@pytest.mark.parametrize(
    ("status", "body", "error", "told"),
    [
        (401, b'{"detail": "a key is needed"}', KeyRefused, {}),
        (422, b'{"type": "%sunparsable-code", "line": 2, "column": 5}', UnparsableCode, {"line": 2, "column": 5}),
        (422, b'{"type": "%sunknown-rules", "unknown": ["x"], "known": ["y"]}', UnknownRules, {"known": ("y",)}),
        (422, b'{"type": "%sunsupported-language", "supported": ["python"]}', UnsupportedLanguage, {}),
        (413, b'{"type": "%sbody-too-large", "detail": "at most 2 bytes"}', Refused, {"detail": "at most 2 bytes"}),
        (500, b"\xff\xfe", Refused, {}),
    ],
    ids=["key", "unparsable", "rules", "language", "another kind", "no problem at all"],
)
def test_errors_can_be_told_apart(
    call: Call, method: str, status: int, body: bytes, error: type[Refused], told: dict[str, Any]
) -> None:
    answer = Answer(status, body.replace(b"%s", PROBLEM.encode()))
    with scripted_server(lambda number, request: answer) as server, pytest.raises(Refused) as raised:
        call(server.url, method, "x = 1\n", "a.py")

    assert type(raised.value) is error
    assert raised.value.status == status
    assert {name: getattr(raised.value.problem, name) for name in told} == told
    assert len(server.requests) == 1


FILES = [AnalyzeRequest("x = 1\n", "a.py"), AnalyzeRequest("x = = 1\n", "b.py", min_confidence=0.25)]
REFUSED = {"type": f"{PROBLEM}unparsable-code", "status": 422, "detail": "line 1", "line": 1, "column": 5}


def lines_answer(*lines: dict[str, Any]) -> Answer:
    return Answer(200, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def test_a_batch_gives_each_file_its_report_or_its_error_in_the_order_they_are_done(call: Call) -> None:
    answer = lines_answer({"id": "1", "error": REFUSED}, {"id": "0", "report": REPORT})
    with scripted_server(lambda number, request: answer) as server:
        (second, error), first = call(server.url, "batch", FILES)

    assert first == (FILES[0], REPORT)
    assert second == FILES[1]
    assert (type(error), error.problem.line) == (UnparsableCode, 1)
    assert server.requests[0]["files"] == [
        {"id": "0", "code": "x = 1\n", "path": "a.py"},
        {"id": "1", "code": "x = = 1\n", "path": "b.py", "min_confidence": 0.25},
    ]
    assert call(server.url, "batch", []) == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lines_answer({"id": "1", "error": REFUSED}), NoAnswer),
        (lines_answer({"id": "2", "error": REFUSED}), UnexpectedAnswer),
        (lines_answer({"id": "0"}), UnexpectedAnswer),
        (Answer(413, b'{"detail": "too much"}'), Refused),
    ],
    ids=["cut short", "of another file", "says nothing", "refused"],
)
def test_a_batch_that_lacks_a_file_is_never_taken_for_whole(call: Call, answer: Answer, error: type) -> None:
    with scripted_server(lambda number, request: answer) as server, pytest.raises(error):
        call(server.url, "batch", FILES)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1)), st.data())
def test_lines_are_cut_at_line_feeds_alone_however_they_arrive(texts: list[str], data: st.DataObject) -> None:
    sent = "".join(f"{text}\n" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=5)))
    lines = Lines()

    got = [
        line for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True) for line in lines.feed(sent[start:end])
    ]

    assert [line.decode() for line in got] == texts


@pytest.mark.parametrize("method", ["analyze", "stream"])
def test_a_busy_server_is_asked_again_when_it_says_so(call: Call, method: str) -> None:
    def busy_once(number: int, request: dict[str, Any]) -> Answer:
        return problem_answer(503, "full", {"Retry-After": "0"}) if number == 1 else report_answer(request)

    with scripted_server(busy_once) as server:
        result = call(server.url, method, "x = 1\n", "a.py")

    assert (result if method == "analyze" else result[-1]) == make_report("a.py")
    assert len(server.requests) == 2


def test_nobody_listening_is_an_error_of_its_own(call: Call, dead_url: str) -> None:
    with pytest.raises(ServerUnreachable, match="cannot be reached"):
        call(dead_url, "analyze", "x = 1\n")


def test_the_key_is_sent_as_a_bearer_token_and_never_shown(call: Call) -> None:
    with scripted_server(lambda number, request: problem_answer(403, "not this key")) as server:
        with pytest.raises(KeyRefused) as raised:
            call(server.url, "analyze", "x = 1\n", key="secret-key")
        with pytest.raises(KeyRefused):
            call(server.url, "analyze", "x = 1\n")

    assert [headers["Authorization"] for headers in server.headers] == ["Bearer secret-key", None]
    assert "secret-key" not in str(raised.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("ftp://example", None),
        ("example:8000", None),
        ("/v1", None),
        ("http://example", "ends with a line break\n"),
        ("http://example", ""),
        ("http://example", "schlüssel"),
        ("http://user:password@example", "key"),
    ],
)
def test_an_address_or_a_key_that_can_not_work_is_refused_before_anything_is_sent(
    kind: type, url: str, key: str | None
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        kind(url, key)


CODE = "def f(items, seen=[]):\n    if items == None:\n        return seen\n    return [item for item in items]\n"


def test_a_real_server_streams_what_its_report_says(call: Call, server_url: str) -> None:
    events = call(server_url, "stream", CODE, "f.py", min_confidence=0.0)
    report = call(server_url, "analyze", CODE, "f.py", min_confidence=0.0)

    assert isinstance(events[-1], Report)
    assert events[-1].findings == report.findings
    assert report.findings
    streamed = [event for event in events[:-1] if isinstance(event, Finding)]
    assert sorted(finding.fingerprint for finding in streamed) == sorted(
        finding.fingerprint for finding in report.findings
    )


def test_a_real_server_tells_its_rules_and_names_them_when_asked_for_another(call: Call, server_url: str) -> None:
    served = call(server_url, "bundle")
    with pytest.raises(UnknownRules) as raised:
        call(server_url, "analyze", CODE, rules=["no-such-rule"])

    assert served.language == "python"
    assert raised.value.problem.unknown == ("no-such-rule",)
    assert raised.value.problem.known == tuple(rule.id for rule in served.rules)
    assert call(server_url, "analyze", CODE, rules=[served.rules[0].id]).model == served.model
