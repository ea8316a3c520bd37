"""The REST API of a real server process: reports for code, problems for everything else."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from serve.analysis.report import Report
from tests.serve.conftest import SOURCE, Server, running_server
from tests.serve.problems import problem

FUNCTION = "def f(a):\n    return a[1]\n"


def post(server: Server, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/analyze", json=body, timeout=30)


def test_a_report_comes_back_with_status_200(server: Server) -> None:
    body = {"code": SOURCE.read_text(), "path": "bundle/units.py", "language": None, "rules": None, "min_confidence": 0}
    response = post(server, body)
    assert response.status_code == 200
    report = msgspec.json.decode(response.content, type=Report)
    assert report.schema_version == 1
    assert report.findings
    assert {finding.path for finding in report.findings} == {"bundle/units.py"}


async def test_32_concurrent_analyses_all_answer_and_agree(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--cache-bytes", "0") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            code = "".join(f"def f{n}(a, b):\n    if a == None:\n        return b[{n}]\n\n\n" for n in range(6))
            body = {"code": code, "min_confidence": 0}
            responses = await asyncio.gather(*(client.post("/v1/analyze", json=body) for _ in range(32)))
    assert [response.status_code for response in responses] == [200] * 32
    assert len({str(response.json()["findings"]) for response in responses}) == 1


def test_unparsable_code_names_line_and_column(server: Server) -> None:
    body = problem(post(server, {"code": "x = 1\ny = = 2\n"}), 422, "unparsable-code")
    assert (body["line"], body["column"]) == (2, 5)


def test_unknown_rules_are_named_with_the_known_ones(server: Server) -> None:
    body = problem(post(server, {"code": FUNCTION, "rules": ["off-by-one", "nonsense"]}), 422, "unknown-rules")
    assert body["unknown"] == ["nonsense"]
    assert "off-by-one" in body["known"]


@pytest.mark.parametrize("body", [{"path": "main.go"}, {"language": "javascript"}, {"language": "klingon"}])
def test_another_language_is_answered_with_the_supported_one(server: Server, body: dict[str, str]) -> None:
    assert problem(post(server, {"code": FUNCTION, **body}), 422, "unsupported-language")["supported"] == ["python"]


@pytest.mark.parametrize(
    "content", [b"code=x", b'{"code": "', rb'{"code":"\ud800"}', b'{"code":"\xff"}', b'{"code":' + b"[" * 10_000]
)
def test_a_body_that_is_no_json_is_said_to_be_that(server: Server, content: bytes) -> None:
    problem(httpx.post(f"{server.url}/v1/analyze", content=content, timeout=30), 400, "malformed-json")


def test_a_body_over_the_limit_names_the_limit(server: Server) -> None:
    assert "2000000 bytes" in problem(post(server, {"code": "#" * 2_000_000}), 413, "body-too-large")["detail"]


def test_binary_is_refused(server: Server) -> None:
    problem(post(server, {"code": "\0\1\2"}), 422, "binary-input")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": 1},
        {"code": FUNCTION, "unknown": 1},
        {"code": FUNCTION, "min_confidence": 1.5},
        {"code": FUNCTION, "min_confidence": -0.1},
        {"code": FUNCTION, "rules": "off-by-one"},
        {"code": FUNCTION, "path": "x" * 5000},
        {"code": FUNCTION, "schema": {"type": "string"}},
    ],
    ids=str,
)
def test_a_body_that_does_not_fit_the_schema_is_422(server: Server, body: dict[str, Any]) -> None:
    problem(post(server, body), 422, "invalid-request")


@pytest.mark.parametrize("code", ["f'" + "{a}" * 20_000 + "'", "x = 1\r\ny = 2\r", "\f\n", "a = '" + "é" * 9_000 + "'"])
def test_odd_code_is_answered(server: Server, code: str) -> None:
    assert post(server, {"code": code}).status_code == 200


def test_unknown_paths_and_methods_are_problems(server: Server) -> None:
    problem(httpx.get(f"{server.url}/v1/nothing"), 404, "not-found")
    problem(httpx.get(f"{server.url}/v1/analyze"), 405, "method-not-allowed")


def test_health_bundle_and_schema(server: Server) -> None:
    assert httpx.get(f"{server.url}/health/live").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/health/ready").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/health/startup").json() == {"status": "ok"}
    bundle = httpx.get(f"{server.url}/v1/bundle").json()
    assert (bundle["model"]["name"], bundle["language"]) == ("tiny", "python")
    assert "off-by-one" in {rule["id"] for rule in bundle["rules"]}
    schema = httpx.get(f"{server.url}/schema/openapi.json").json()
    assert {"200", "400", "413", "422", "503"} <= set(schema["paths"]["/v1/analyze"]["post"]["responses"])
    assert "Report" in schema["components"]["schemas"]


def test_the_schema_page_needs_no_other_host(server: Server) -> None:
    page = httpx.get(f"{server.url}/schema").text
    assert "cdn" not in page
    assert "unpkg" not in page
