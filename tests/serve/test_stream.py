"""Reports as they come about: server-sent events, SARIF, and batches as NDJSON, from a real server process."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve.analysis.report import Finding, Report, SkippedUnit, UnitReport
from serve.api.leaving import one_line
from tests.serve.conftest import SOURCE, Server, running_server, wait_until
from tests.serve.problems import problem

FUNCTION = "def f{n}(a):\n    return a[1]\n\n\n"
LONG_WORK = "".join(FUNCTION.format(n=n) + f"    # {n}\n" for n in range(600))
EVENTS = {"Accept": "text/event-stream"}


def events(server: Server, body: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Every event of a stream, (name, data)."""
    with httpx.stream("POST", f"{server.url}/v1/analyze", json=body, headers=EVENTS, timeout=120) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "text/event-stream"
        text = response.read().decode()
    blocks = [block.split("\n") for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(name.startswith("event: ") and data.startswith("data: ") for name, data in blocks)
    return [(name.removeprefix("event: "), data.removeprefix("data: ").encode()) for name, data in blocks]


def named(kind: str, found: list[tuple[str, bytes]], decoded: type) -> list[Any]:
    return [msgspec.json.decode(data, type=decoded) for name, data in found if name == kind]


def running_requests(server: Server) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("deepcode_num_requests_"))


def test_a_stream_tells_every_unit_and_ends_with_the_report_that_the_findings_add_up_to(server: Server) -> None:
    giant = "def giant(a):\n" + "".join(f"    a[{n}] = a[{n + 1}]\n" for n in range(400))
    body = {"code": f"{SOURCE.read_text()}\n\n{giant}", "path": "m.py", "min_confidence": 0}
    found = events(server, body)
    name, data = found[-1]
    assert name == "report"
    report = msgspec.json.decode(data, type=Report)
    assert report.findings
    streamed = named("finding", found, Finding)
    assert sorted(streamed, key=lambda each: (each.start_line, each.start_column, each.rule)) == list(report.findings)
    assert set(named("skipped", found, SkippedUnit)) == set(report.skipped)
    assert "giant" in {unit.name for unit in report.skipped}
    units = named("unit", found, UnitReport)
    assert [unit.done for unit in units] == list(range(1, units[0].total + 1))


def test_a_stream_of_a_known_report_and_the_plain_answer_say_the_same(server: Server) -> None:
    body = {"code": "def seen(a):\n    return a[1]\n", "min_confidence": 0}
    plain = httpx.post(f"{server.url}/v1/analyze", json=body, timeout=60).json()
    found = events(server, body)
    assert [json.loads(data) for name, data in found if name == "finding"] == plain["findings"]
    again = json.loads(found[-1][1])
    assert again["findings"] == plain["findings"]
    assert again["usage"]["cached_tokens"] == again["usage"]["prompt_tokens"]


def test_what_is_refused_is_refused_before_the_stream_begins(server: Server) -> None:
    response = httpx.post(f"{server.url}/v1/analyze", json={"code": "def f(:\n"}, headers=EVENTS, timeout=60)
    assert problem(response, 422, "unparsable-code")["line"] == 1


def test_a_client_that_leaves_a_stream_stops_its_work(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--slots", "1", "--max-queue", "1") as server:
        body = json.dumps({"code": LONG_WORK}).encode()
        head = (
            "POST /v1/analyze HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
            assert b"200 OK" in connection.recv(100)
            wait_until(lambda: running_requests(server) > 0)
        wait_until(lambda: running_requests(server) == 0)
        assert httpx.post(f"{server.url}/v1/analyze", json={"code": "x = 1\n"}, timeout=60).status_code == 200
        # The log is written after the answer was sent.
        wait_until(lambda: [e["status"] for e in server.log() if e.get("path") == "/v1/analyze"] == [499, 200])


def test_a_client_that_stops_reading_is_hung_up_on_and_makes_room(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--max-queue", "1", "--read-seconds", "0.5") as server:
        # One file many times: its report is kept, so that 8 MB of answer are soon more than all buffers hold.
        code = "".join(FUNCTION.format(n=n) for n in range(60))
        body = json.dumps([{"id": str(n), "code": code, "min_confidence": 0} for n in range(2000)]).encode()
        head = (
            "POST /v1/analyze/batch HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with connection:
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head.encode() + body)
            wait_until(lambda: httpx.get(f"{server.url}/metrics").text.count('status="499"') > 0)


def test_sarif_is_the_same_report_for_code_scanning(server: Server) -> None:
    schema = Path(__file__).parents[1] / "client" / "schemas" / "sarif-2.1.0-rtm.5.json"
    body = {"code": SOURCE.read_text(), "path": "bundle/units.py", "min_confidence": 0}
    headers = {"Accept": "application/sarif+json"}
    response = httpx.post(f"{server.url}/v1/analyze", json=body, headers=headers, timeout=120)
    assert response.headers["content-type"].startswith("application/sarif+json")
    log = response.json()
    jsonschema.validate(log, json.loads(schema.read_text()))
    plain = httpx.post(f"{server.url}/v1/analyze", json=body, timeout=120).json()
    [run] = log["runs"]
    assert [result["ruleId"] for result in run["results"]] == [finding["rule"] for finding in plain["findings"]]


@pytest.mark.parametrize("accept", ["text/html", "image/png, text/plain;q=0.5"])
def test_a_form_nobody_makes_is_refused_with_those_there_are(server: Server, accept: str) -> None:
    response = httpx.post(f"{server.url}/v1/analyze", json={"code": ""}, headers={"Accept": accept}, timeout=60)
    assert "text/event-stream" in problem(response, 406, "not-acceptable")["offered"]


def batch(server: Server, items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with httpx.stream("POST", f"{server.url}/v1/analyze/batch", json=items, timeout=120) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "application/x-ndjson"
        for line in response.iter_lines():
            yield json.loads(line)


def test_a_batch_answers_every_file_under_its_id(server: Server) -> None:
    items = [
        {"id": f"file {n}", "code": FUNCTION.format(n=n), "path": f"{n}.py", "min_confidence": 0} for n in range(9)
    ]
    items += [{"id": "bad", "code": "def f(:\n"}, {"id": "go", "code": "x", "path": "main.go"}]
    lines = {line["id"]: line for line in batch(server, items)}
    assert set(lines) == {item["id"] for item in items}
    for n in range(9):
        body = {key: value for key, value in items[n].items() if key != "id"}
        alone = httpx.post(f"{server.url}/v1/analyze", json=body, timeout=60).json()
        assert lines[f"file {n}"]["report"]["findings"] == alone["findings"]
    assert lines["bad"]["error"]["type"].endswith(":unparsable-code")
    assert lines["go"]["error"]["type"].endswith(":unsupported-language")


def test_a_line_of_a_batch_is_one_line_to_readers_that_cut_at_more_than_line_feeds(server: Server) -> None:
    name = "next\x85line\u2028and\u2029paragraph"
    [line] = batch(server, [{"id": name, "code": "x = 1\n"}])  # httpx cuts as `str.splitlines` does
    assert line["id"] == name


@example({"\x85": "\u2028\u2029\x0c\x1c"})
@given(st.dictionaries(st.text(), st.text()))
def test_what_is_sent_on_one_line_is_what_was_said(content: dict[str, str]) -> None:
    encoded = one_line(content)
    assert len(encoded.decode().splitlines()) == 1
    assert json.loads(encoded) == content


@pytest.mark.parametrize(
    ("items", "status", "kind"),
    [
        ([], 422, "invalid-request"),
        ([{"code": ""}], 422, "invalid-request"),
        ([{"id": "", "code": ""}], 422, "invalid-request"),
        ([{"id": "1", "code": "", "unknown": 1}], 422, "invalid-request"),
        ([{"id": "1", "code": ""}, {"id": "1", "code": ""}], 422, "repeated-id"),
    ],
    ids=str,
)
def test_a_batch_that_is_none_is_refused(server: Server, items: list[Any], status: int, kind: str) -> None:
    problem(httpx.post(f"{server.url}/v1/analyze/batch", json=items, timeout=60), status, kind)


def test_a_batch_may_be_larger_than_a_file(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--max-body-bytes", "1000", "--max-batch-bytes", "2000") as server:
        body = {"code": "#" * 1200}
        response = httpx.post(f"{server.url}/v1/analyze", json=body, timeout=60)
        assert "1000 bytes" in problem(response, 413, "body-too-large")["detail"]
        assert [line["id"] for line in batch(server, [{"id": "a", **body}])] == ["a"]
        response = httpx.post(f"{server.url}/v1/analyze/batch", json=[{"id": "a", "code": "#" * 2200}], timeout=60)
        assert "2000 bytes" in problem(response, 413, "body-too-large")["detail"]


def test_what_is_not_answered_in_time_is_listed_as_skipped(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--slots", "1", "--analysis-seconds", "0.3") as server:
        response = httpx.post(f"{server.url}/v1/analyze", json={"code": LONG_WORK}, timeout=120)
        assert response.status_code == 200
        reasons = {unit["reason"] for unit in response.json()["skipped"]}
        assert "the time limit of the analysis was reached before it was answered" in reasons
