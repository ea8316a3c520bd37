"""Code search over HTTP: a real server, a tiny real encoder."""

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Server, running_server, serve_command, wait_until
from tests.serve.problems import problem
from tests.support.server_process import COMMANDS

READING = """def read_config(path):
    '''Load the settings.'''
    with open(path) as file:
        return parse(file)
"""
AREA = "class Circle:\n    radius = 1\n\n    def area(self):\n        return 3.14 * self.radius**2\n"


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def searching(tiny_bundle: Path, tiny_search_bundle: Path, index_dir: Path) -> Iterator[Server]:
    flags = ("--search-bundle", str(tiny_search_bundle), "--index-dir", str(index_dir))
    with running_server(tiny_bundle, *flags) as server:
        yield server


def index(server: Server, project: str, files: dict[str, str], **request: Any) -> httpx.Response:
    body = {"project": project, "files": [{"path": path, "code": code} for path, code in files.items()], **request}
    return httpx.post(f"{server.url}/v1/index", json=body, timeout=120)


def search(server: Server, project: str, query: str, **request: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/search", json={"project": project, "query": query, **request}, timeout=120)


def test_what_is_indexed_is_found_with_its_file_lines_and_code(searching: Server) -> None:
    report = index(searching, "shapes", {"io.py": READING, "shapes.py": AREA}).json()
    assert (report["files"], report["units"], report["changed"], report["embedded"]) == (2, 3, 2, 3)
    assert report["skipped"] == []

    answer = search(searching, "shapes", "read config").json()
    [best, *_] = answer["results"]
    assert answer["model"] == report["model"] == httpx.get(f"{searching.url}/v1/bundle").json()["search"]
    assert (best["path"], best["kind"], best["name"]) == ("io.py", "function", "read_config")
    assert (best["start_line"], best["end_line"]) == (1, 4)
    assert best["snippet"].startswith("def read_config(path):\n    with open(path)")
    assert best["found_by"]["bm25"] == 1

    [method] = search(searching, "shapes", "area", kinds=["method"], path="shapes*", k=1).json()["results"]
    assert (method["name"], method["start_line"], method["end_line"]) == ("Circle.area", 4, 5)


def test_only_what_changed_is_embedded_and_what_is_gone_is_not_found(searching: Server) -> None:
    index(searching, "changing", {"a.py": READING, "b.py": AREA})
    again = index(searching, "changing", {"a.py": READING, "b.py": AREA}).json()
    assert (again["changed"], again["embedded"]) == (0, 0)

    edited = AREA.replace("3.14", "3.1416")
    changed = index(searching, "changing", {"b.py": edited}).json()
    assert (changed["changed"], changed["embedded"], changed["units"]) == (1, 1, 3)
    assert "3.1416" in search(searching, "changing", "area", kinds=["method"]).json()["results"][0]["snippet"]

    renamed = index(searching, "changing", {"c.py": edited}, complete=True).json()
    assert (renamed["deleted"], renamed["embedded"], renamed["files"]) == (2, 0, 1)
    assert {result["path"] for result in search(searching, "changing", "read area").json()["results"]} == {"c.py"}

    emptied = index(searching, "changing", {}, deleted=["c.py", "never.py"]).json()
    assert (emptied["deleted"], emptied["files"], emptied["units"]) == (1, 0, 0)
    assert search(searching, "changing", "read area").json()["results"] == []


def test_projects_are_listed_with_their_files_and_deleted(searching: Server) -> None:
    index(searching, "listed", {"a.py": READING})
    assert {"project": "listed", "files": 1, "units": 1} in httpx.get(f"{searching.url}/v1/index").json()
    files = httpx.get(f"{searching.url}/v1/index/listed").json()["files"]
    assert [*files] == ["a.py"]
    assert len(files["a.py"]) == 64

    assert httpx.delete(f"{searching.url}/v1/index/listed").status_code == 204
    problem(httpx.delete(f"{searching.url}/v1/index/listed"), 404, "unknown-project")
    problem(httpx.get(f"{searching.url}/v1/index/listed"), 404, "unknown-project")
    told = problem(search(searching, "listed", "anything"), 404, "unknown-project")
    assert "'listed'" in told["detail"]


def test_files_that_can_not_be_indexed_are_named_and_stop_no_others(searching: Server) -> None:
    files = {"good.py": READING, "broken.py": "def f(:\n", "nul.py": "x = '\0'\n", "main.go": "package main\n"}
    report = index(searching, "mixed", files).json()
    reasons = {skipped["path"]: skipped["reason"] for skipped in report["skipped"]}
    assert reasons.keys() == {"broken.py", "nul.py", "main.go"}
    assert "line 1" in reasons["broken.py"]
    assert "NUL" in reasons["nul.py"]
    assert "it is go" in reasons["main.go"]
    assert report["files"] == 1

    # What does not parse any more is no longer found as it was.
    assert index(searching, "mixed", {"good.py": "def f(:\n"}).json()["units"] == 0


@pytest.mark.parametrize(
    "body",
    [
        {"query": ""},
        {"query": " \n"},
        {"query": "x" * 1_000_000},
        {"query": "x", "k": 0},
        {"query": "x", "k": 101},
        {"query": "x", "kinds": ["variable"]},
        {"query": "x", "kinds": []},
        {"query": "x", "path": ""},
        {"query": "x", "regex": ".*"},
        {"query": "x", "project": "../../etc"},
        {"query": "x", "project": ".hidden"},
        {"query": None},
    ],
)
def test_a_search_that_asks_for_nothing_or_too_much_is_refused(searching: Server, body: dict[str, Any]) -> None:
    problem(httpx.post(f"{searching.url}/v1/search", json={"project": "shapes"} | body), 422, "invalid-request")


def test_what_can_not_be_an_index_request_is_refused(searching: Server) -> None:
    twice = [{"path": "a.py", "code": ""}, {"path": "a.py", "code": "x = 1"}]
    told = problem(httpx.post(f"{searching.url}/v1/index", json={"project": "p", "files": twice}), 422, "repeated-path")
    assert "'a.py'" in told["detail"]
    problem(index(searching, "p", {"a.py": ""}, deleted=["a.py"]), 422, "repeated-path")
    problem(index(searching, "p/q", {"a.py": ""}), 422, "invalid-request")
    problem(index(searching, "p", {"": ""}), 422, "invalid-request")
    for body in (b'{"project": "p", "files": [{"path": "a.py", "code": "\xff"}]}', b"[" * 10_000):
        sent = httpx.post(f"{searching.url}/v1/index", content=body, headers={"Content-Type": "application/json"})
        problem(sent, 400, "malformed-json")
    assert httpx.get(f"{searching.url}/v1/index/..%2f..%2fetc").status_code in (404, 422)


def test_a_server_without_a_search_bundle_says_so(server: Server) -> None:
    for response in (
        search(server, "p", "x"),
        index(server, "p", {}),
        httpx.get(f"{server.url}/v1/index"),
        httpx.get(f"{server.url}/v1/index/p"),
        httpx.delete(f"{server.url}/v1/index/p"),
    ):
        assert "--search-bundle" in problem(response, 404, "no-search")["detail"]
    assert httpx.get(f"{server.url}/v1/bundle").json()["search"] is None


def test_searches_are_counted(searching: Server) -> None:
    index(searching, "counted", {"a.py": "def only_here():\n    return 1\n"})
    search(searching, "counted", "only here")
    text = httpx.get(f"{searching.url}/metrics").text
    for name in ("search_embedding_seconds_count", "search_lookup_seconds_count", "search_embedded_units_total"):
        [line] = [line for line in text.splitlines() if line.startswith(f"deepcode_{name}{{")]
        assert float(line.rsplit(" ", 1)[1]) >= 1


def test_a_server_that_is_killed_while_it_indexes_comes_back_with_whole_files(
    tiny_bundle: Path, tiny_search_bundle: Path, tmp_path: Path
) -> None:
    flags = ("--search-bundle", str(tiny_search_bundle), "--index-dir", str(tmp_path))
    # Written a few files at a time, so that it takes longer than a moment, and the moment after the first is the one.
    many = {f"{n}.py": f"def f{n}():\n" + f"    some_name = another_name({n})\n" * 250 for n in range(600)}
    with running_server(tiny_bundle, *flags) as server:
        assert index(server, "p", {"first.py": READING}).status_code == 200

        def send() -> None:
            with pytest.raises(httpx.TransportError):
                index(server, "p", many)

        sending = threading.Thread(target=send)
        sending.start()
        wait_until(lambda: len(httpx.get(f"{server.url}/v1/index/p").json()["files"]) > 1)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        sending.join()

    with running_server(tiny_bundle, *flags) as server:
        files = httpx.get(f"{server.url}/v1/index/p").json()["files"]
        assert 1 < len(files) < 601
        [info] = httpx.get(f"{server.url}/v1/index").json()
        assert info["units"] == len(files)
        [spelled] = search(server, "p", "read config", path="first.py").json()["results"]
        assert spelled["found_by"]["bm25"] == 1


def test_half_a_code_search_and_a_bundle_of_the_other_kind_are_refused(
    tiny_bundle: Path, tiny_search_bundle: Path, tmp_path: Path
) -> None:
    def refused(*arguments: str | Path) -> str:
        command = serve_command(str(tiny_bundle), *map(str, arguments))
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        return done.stderr

    assert "--index-dir" in refused("--search-bundle", tiny_search_bundle)
    assert "is an analysis bundle" in refused("--search-bundle", tiny_bundle, "--index-dir", tmp_path)


def test_search_keeps_to_its_openapi_document(searching: Server, tmp_path: Path) -> None:
    command = [
        *(COMMANDS / "schemathesis", "run", f"{searching.url}/schema/openapi.json"),
        *("--include-path-regex", "^/v1/(index|search)", "--phases", "coverage,fuzzing", "--max-examples", "3"),
        # As in test_openapi; and the framework takes 0 and 1 for a Boolean.
        *("--checks", "all", "--exclude-checks"),
        "positive_data_acceptance,allow_header_conformance,negative_data_rejection",
        *("--suppress-health-check", "all", "--no-color", "--request-timeout", "60"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-10_000:]
