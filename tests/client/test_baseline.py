"""Baselines: what is known is not told again."""

import json
from pathlib import Path

import pytest

from tests.client.conftest import Check
from tests.client.reports import make_finding
from tests.client.scripted_server import problem_answer, reporting, scripted_server

OLD = make_finding(fingerprint="old")
NEW = make_finding(fingerprint="new", rule="bare-except")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text("if value == None:\n    pass\n")
    return tmp_path


def test_what_the_baseline_knows_is_not_told_again(check: Check, code: Path) -> None:
    with scripted_server(reporting(OLD)) as server:
        written = check("baseline", "write", "known.json", "a.py", "--url", server.url)
        known = check("a.py", "--url", server.url, "--baseline", "known.json")
    with scripted_server(reporting(OLD, NEW)) as server:
        more = check("a.py", "--url", server.url, "--baseline", "known.json", "--format", "json")

    assert (written.returncode, written.stdout) == (0, "known.json: 1 known finding in 1 file.\n")
    assert json.loads((code / "known.json").read_text()) == {
        "version": 1,
        "findings": [{"fingerprint": "old", "rule": "none-comparison", "path": "a.py"}],
    }
    assert known.returncode == 0
    assert known.stdout.startswith("No findings in 1 file (by nano 0123456789ab, int4 on onnx); 1 in the baseline.")
    assert more.returncode == 1
    told = json.loads(more.stdout)
    assert [finding["fingerprint"] for finding in told["findings"]] == ["new"]
    assert told["totals"]["hidden"] == {"comment": 0, "baseline": 1}


def test_a_baseline_holds_where_lines_move_and_new_findings_still_show(
    check: Check, tmp_path: Path, server_url: str
) -> None:
    """With a real server: its fingerprints have no line numbers in them."""
    everything = ("--url", server_url, "--min-confidence", "0", "--fail-on", "note")
    code = (
        "def first(a, b):\n    if a == None:\n        return b\n    for x in range(10):\n        b += x\n    return a\n"
    )
    (tmp_path / "a.py").write_text(code)
    check("baseline", "write", "known.json", "a.py", "--url", server_url, "--min-confidence", "0")
    assert json.loads((tmp_path / "known.json").read_text())["findings"], "the server finds nothing to know"

    (tmp_path / "a.py").write_text(f"# moved\n\n\n{code}")
    moved = check("a.py", *everything, "--baseline", "known.json")

    assert moved.returncode == 0, moved.stdout


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"version": 2, "findings": []}', b'{"version": 1, "findings": [{}]}', b"\xff", b"[" * 100_000],
    ids=["empty", "other JSON", "newer", "incomplete", "no text", "deep"],
)
def test_a_malformed_baseline_is_wrong_usage(check: Check, code: Path, dead_url: str, content: bytes) -> None:
    (code / "known.json").write_bytes(content)

    done = check("a.py", "--url", dead_url, "--baseline", "known.json")

    assert done.returncode == 2
    assert "known.json is no baseline of this version" in done.stderr
    assert "deepcode-check baseline write known.json" in done.stderr


def test_a_missing_baseline_says_how_to_write_it(check: Check, code: Path, dead_url: str) -> None:
    done = check("a.py", "--url", dead_url, "--baseline", "gone.json")

    assert done.returncode == 2
    assert "the baseline gone.json cannot be read (No such file or directory)" in done.stderr


def test_an_incomplete_check_writes_no_baseline(check: Check, code: Path) -> None:
    (code / "known.json").write_text("what was there")
    with scripted_server(lambda number, request: problem_answer(422, "does not parse")) as server:
        done = check("baseline", "write", "known.json", "a.py", "--url", server.url)

    assert done.returncode == 3
    assert "known.json was not written: the check is incomplete." in done.stderr
    assert (code / "known.json").read_text() == "what was there"


def test_a_baseline_that_cannot_be_written_is_said(check: Check, code: Path) -> None:
    with scripted_server(reporting(OLD)) as server:
        done = check("baseline", "write", "missing/known.json", "a.py", "--url", server.url)

    assert done.returncode == 2
    assert "missing/known.json cannot be written: No such file or directory" in done.stderr


def test_a_folder_named_baseline_is_a_path(check: Check, tmp_path: Path) -> None:
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "a.py").write_text("x = 1\n")
    with scripted_server(reporting()) as server:
        done = check("baseline", "--url", server.url)

    assert done.stdout.startswith("No findings in 1 file")
