"""What an operator sees of a real server: metrics, the log, traces."""

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from serve.api.logs import JsonLines
from tests.deploy.conftest import ROOT
from tests.serve.conftest import Server, running_server, wait_until

PREFIX = "deepcode_"
FUNCTION = "def {name}(a):\n    if a == None:\n        return a[1]\n    return a\n"

# https://docs.vllm.ai/en/stable/usage/metrics/: the same names after the prefix.
EXPECTED = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter",
    "admission_rejections": "counter",
    "request_success": "counter",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
}


def scrape(server: Server) -> dict[str, Any]:
    """Every metric family of the server's own, by its name without the prefix."""
    text = httpx.get(f"{server.url}/metrics").text
    families = text_string_to_metric_families(text)
    return {family.name.removeprefix(PREFIX): family for family in families if family.name.startswith(PREFIX)}


def value(families: dict[str, Any], sample: str, **labels: str) -> float:
    """The sum of the samples of that name with these labels."""
    found = (each for family in families.values() for each in family.samples if each.name == PREFIX + sample)
    return sum(each.value for each in found if labels.items() <= each.labels.items())


def analyze(server: Server, code: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/analyze", json={"code": code}, headers=headers, timeout=120)


def test_the_metrics_are_there_under_the_model_s_name(server: Server) -> None:
    analyze(server, FUNCTION.format(name="for_metrics"))
    families = scrape(server)
    assert {name: families[name].type for name in EXPECTED} == EXPECTED
    for family in families.values():
        assert all(sample.labels["model_name"] == "tiny" for sample in family.samples)


def test_the_metrics_count_what_was_done(server: Server) -> None:
    before = scrape(server)
    usage = analyze(server, FUNCTION.format(name="counted")).json()["usage"]
    assert analyze(server, "def f(:\n").status_code == 422
    assert httpx.get(f"{server.url}/v1/no-such-{'x' * 50}").status_code == 404
    after = scrape(server)

    def grown(sample: str, **labels: str) -> float:
        return value(after, sample, **labels) - value(before, sample, **labels)

    assert grown("prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("generation_tokens_total") >= usage["completion_tokens"]
    for histogram in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_decode_time_seconds"):
        assert grown(f"{histogram}_count") == 1
    assert grown("http_requests_total", route="/v1/analyze", status="200") == 1
    assert grown("http_requests_total", route="/v1/analyze", status="422") == 1
    assert grown("http_requests_total", route="unmatched", status="404") == 1
    assert analyze(server, FUNCTION.format(name="counted")).status_code == 200
    assert value(scrape(server), "answer_cache_hits_total") > value(after, "answer_cache_hits_total")


def test_the_dashboard_asks_for_metrics_that_there_are(server: Server) -> None:
    dashboard = json.loads((ROOT / "k8s" / "grafana" / "deepcode-analyst.json").read_text())
    asked = set(re.findall(rf"{PREFIX}\w+", json.dumps(dashboard)))
    samples = {sample.name for family in scrape(server).values() for sample in family.samples}
    declared = {PREFIX + name + ending for name in scrape(server) for ending in ("", "_total", "_bucket")}
    assert asked
    assert asked <= samples | declared


def test_every_metric_is_documented_with_its_kind(server: Server) -> None:
    page = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    told = dict(re.findall(rf"^\| `({PREFIX}\w+)` \| (\w+) \|(?!.*only with code search)", page, re.MULTILINE))
    ending = {"counter": "_total"}
    families = scrape(server).values()
    assert told == {family.name + ending.get(family.type, ""): family.type for family in families}


def test_a_request_s_id_is_in_its_answer_and_in_the_log(server: Server) -> None:
    assert (
        analyze(server, FUNCTION.format(name="named"), **{"X-Request-ID": "ci-42"}).headers["x-request-id"] == "ci-42"
    )
    wait_until(lambda: any(line.get("request_id") == "ci-42" for line in server.log()))
    [line] = [line for line in server.log() if line.get("request_id") == "ci-42"]
    assert (line["method"], line["path"], line["status"], line["caller"]) == ("POST", "/v1/analyze", 200, "everybody")
    assert line["prompt_tokens"] > 0


@pytest.mark.parametrize("given", ["two words", "x" * 65, 'a"b', "\xe9"])
def test_an_id_that_could_do_harm_is_replaced(server: Server, given: str) -> None:
    headers = [(b"X-Request-ID", given.encode("latin-1"))]
    answered = httpx.get(f"{server.url}/health/live", headers=headers).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", answered)


def test_a_line_break_in_a_path_makes_no_second_line(server: Server) -> None:
    httpx.get(f"{server.url}/v1/%0d%0a%7b%22forged%22:1%7d")
    wait_until(lambda: any("forged" in line.get("path", "") for line in server.log()))
    assert not any("forged" in line for line in server.log())


def test_code_is_in_the_log_only_when_that_was_asked_for(tiny_bundle: Path, server: Server) -> None:
    code = FUNCTION.format(name="private_business")
    analyze(server, code)
    analyze(server, f"{code}\n)")
    assert "private_business" not in str(server.log())
    with running_server(tiny_bundle, "--log-code", "true") as open_server:
        analyze(open_server, code)
        wait_until(lambda: any(line.get("code") == code for line in open_server.log()))


def test_an_exception_is_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("here", logging.ERROR, "file", 1, "it %s", ("failed",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "it failed"
    assert "two\nlines" in json.loads(line)["exception"]


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP receiver, and the spans it has got."""
    spans: list[Any] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{receiver.server_port}", spans
    receiver.shutdown()
    receiver.server_close()


def test_a_trace_goes_on_where_the_client_s_was_and_shows_what_the_engine_did(
    tiny_bundle: Path, collector: tuple[str, list[Any]]
) -> None:
    endpoint, spans = collector
    with running_server(tiny_bundle, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) as server:
        trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        analyze(server, FUNCTION.format(name="traced"), traceparent=f"00-{trace}-{parent}-01")
        server.terminate()
        assert server.wait() == 0
    ours = [span for span in spans if span.trace_id.hex() == trace]
    [request] = [span for span in ours if span.name == "POST /v1/analyze"]
    assert request.parent_span_id.hex() == parent
    engine = {span.name: span for span in ours if span is not request}
    assert set(engine) == {"queue", "prefill", "decode"}
    for span in engine.values():
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    assert engine["queue"].end_time_unix_nano == engine["prefill"].start_time_unix_nano
    assert engine["prefill"].end_time_unix_nano == engine["decode"].start_time_unix_nano
