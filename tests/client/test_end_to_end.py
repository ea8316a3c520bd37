"""The command against a real deepcode-serve, and against the same bundle without a server."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import bundle
from tests.client.conftest import Check

EVERYTHING = ("--min-confidence", "0")
NOTHING = ("--min-confidence", "1")
PLACE = ("rule", "start_line", "start_column", "end_line", "end_column")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Real code below the test's folder, in a folder with a space in its name."""
    folder = tmp_path / "my project"
    folder.mkdir()
    for name in ("answer.py", "rules.py"):
        shutil.copy(Path(bundle.__file__).with_name(name), folder / name)
    return folder


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout)


@pytest.mark.parametrize("source", ["server", "bundle"])
def test_findings_fail_the_check_and_none_pass_it(
    check: Check, project: Path, server_url: str, tiny_bundle: Path, source: str
) -> None:
    where = ("--url", server_url) if source == "server" else ("--bundle", tiny_bundle)

    found = check("my project", *where, *EVERYTHING, "--fail-on", "note")
    clean = check("my project", *where, *NOTHING, "--fail-on", "note")

    assert (found.returncode, clean.returncode) == (1, 0), found.stderr + clean.stderr
    assert clean.stdout.startswith("No findings in 2 files (by tiny ")
    assert clean.stderr == ""


def test_a_server_and_its_bundle_say_the_same(check: Check, project: Path, server_url: str, tiny_bundle: Path) -> None:
    remote = document(check(".", "--url", server_url, "--format", "json", *EVERYTHING))
    local = document(check(".", "--bundle", tiny_bundle, "--format", "json", *EVERYTHING))

    # How much of a prompt was cached depends on what was asked before.
    for either in (remote, local):
        del either["totals"]["usage"]["cached_tokens"]
    assert remote == local


def test_the_json_document(check: Check, project: Path, server_url: str) -> None:
    (project / "notes.txt").write_text("no code\n")
    (project / "broken.py").write_text("def f(:\n")

    done = check("my project", "my project/notes.txt", "--url", server_url, "--format", "json", *EVERYTHING)
    told = document(done)

    assert done.returncode == 3
    assert list(told) == [
        "schema_version",
        "model",
        "files",
        "findings",
        "skipped",
        "errors",
        "totals",
    ]
    assert told["schema_version"] == 1
    assert told["model"]["name"] == "tiny"
    assert [file["path"] for file in told["files"]] == ["my project/answer.py", "my project/rules.py"]
    assert told["files"][0]["metrics"]["lines"] == len((project / "answer.py").read_text().splitlines())
    assert told["skipped"][0] == {
        "path": "my project/notes.txt",
        "reason": "not a .py file",
        "name": None,
        "start_line": None,
        "end_line": None,
    }
    [error] = told["errors"]
    assert (error["path"], error["line"], error["column"]) == ("my project/broken.py", 1, 7)
    assert "422" in error["message"]

    severities = [finding["severity"] for finding in told["findings"]]
    assert severities
    assert told["totals"]["findings"] == {name: severities.count(name) for name in ("error", "warning", "note")}
    assert told["totals"]["files"] == 2
    assert told["totals"]["errors"] == 1
    assert told["totals"]["skipped"] == len(told["skipped"])
    assert told["totals"]["usage"]["prompt_tokens"] > 0


def test_every_finding_points_at_text_that_is_there(check: Check, project: Path, server_url: str) -> None:
    told = document(check("my project", "--url", server_url, "--format", "json", *EVERYTHING))

    for finding in told["findings"]:
        lines = (project.parent / finding["path"]).read_text().split("\n")
        line = lines[finding["start_line"] - 1]
        assert line[finding["start_column"] - 1 :].strip()
        assert finding["snippet"].strip() in "\n".join(lines)


def test_the_text_format_tells_every_finding_of_the_json_format(check: Check, project: Path, server_url: str) -> None:
    findings = document(check("my project", "--url", server_url, "--format", "json", *EVERYTHING))["findings"]
    text = check("my project", "--url", server_url, *EVERYTHING).stdout

    for finding in findings:
        place = f"{finding['path']}:{finding['start_line']}:{finding['start_column']}"
        assert f"{place}: {finding['severity']} {finding['rule']} (" in text
        assert f"  {finding['message']}\n" in text


def test_only_the_rules_that_were_asked_for_are_reported(check: Check, project: Path, server_url: str) -> None:
    done = check(".", "--url", server_url, "--rules", "bare-except,off-by-one", "--format", "json", *EVERYTHING)

    rules = {finding["rule"] for finding in document(done)["findings"]}
    assert rules
    assert rules <= {"bare-except", "off-by-one"}


@pytest.mark.parametrize("source", ["server", "bundle"])
def test_a_rule_nobody_knows_is_wrong_usage_and_the_known_ones_are_named(
    check: Check, project: Path, server_url: str, tiny_bundle: Path, source: str
) -> None:
    where = ("--url", server_url) if source == "server" else ("--bundle", tiny_bundle)

    done = check(".", *where, "--rules", "no-such-rule")

    assert done.returncode == 2
    assert "unknown rules: no-such-rule" in done.stderr
    assert "bare-except" in done.stderr


@pytest.mark.parametrize("source", ["server", "bundle"])
def test_code_that_does_not_parse_makes_the_check_incomplete_but_the_rest_is_reported(
    check: Check, project: Path, server_url: str, tiny_bundle: Path, source: str
) -> None:
    where = ("--url", server_url) if source == "server" else ("--bundle", tiny_bundle)
    (project / "broken.py").write_text("x = 1\nif x = 2:\n    pass\n")

    strict = check("my project", *where, *NOTHING)
    lenient = check("my project", *where, *NOTHING, "--fail-open")

    assert (strict.returncode, lenient.returncode) == (3, 0)
    assert "not analysed: my project/broken.py:2:" in strict.stderr
    assert strict.stdout.startswith("No findings in 2 files ")
    assert strict.stdout.endswith("; 1 file not analysed.\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"# -*- coding: latin-1 -*-\nname = '\xe9'\n",
        b"\xef\xbb\xbfname = 1\n",
        b"\x0cname = 1\n",
        b"name = 1\rother = 2\r",
        "größe = '\N{GRINNING FACE}'\n".encode(),
    ],
    ids=["empty", "blank", "latin-1 cookie", "byte-order mark", "form feed", "lone CR", "beyond ASCII"],
)
def test_whatever_python_can_read_is_analysed(check: Check, tmp_path: Path, server_url: str, content: bytes) -> None:
    (tmp_path / "a.py").write_bytes(content)

    done = check("a.py", "--url", server_url, *NOTHING)

    assert (done.returncode, done.stderr) == (0, "")


def test_line_ends_do_not_move_findings(check: Check, project: Path, server_url: str) -> None:
    file = project / "rules.py"
    unix = document(check("my project/rules.py", "--url", server_url, "--format", "json", *EVERYTHING))
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    windows = document(check("my project/rules.py", "--url", server_url, "--format", "json", *EVERYTHING))

    assert unix["findings"]
    assert [[finding[key] for key in PLACE] for finding in windows["findings"]] == [
        [finding[key] for key in PLACE] for finding in unix["findings"]
    ]


def test_what_cannot_be_read_is_listed_and_the_rest_is_analysed(check: Check, project: Path, server_url: str) -> None:
    (project / "latin.py").write_bytes(b"name = '\xe9'\n")
    (project / "binary.py").write_bytes(b"\x7fELF\x00\x00")
    (project / "refused.py").symlink_to("/proc/self/mem")
    (project / "loop").symlink_to(project, target_is_directory=True)

    done = check("my project", "--url", server_url, *NOTHING)

    assert done.returncode == 3
    for name in ("latin.py", "binary.py", "refused.py"):
        assert f"not analysed: my project/{name}" in done.stderr
    assert "skipped: my project/loop: a symbolic link to a folder" in done.stdout
    assert "No findings in 2 files " in done.stdout


def test_a_bundle_with_a_changed_byte_is_refused_and_the_file_named(
    check: Check, project: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, damaged)
    rules = damaged / "rules.yaml"
    rules.write_bytes(rules.read_bytes().replace(b"a", b"b", 1))

    done = check("my project", "--bundle", damaged)

    assert done.returncode == 3
    assert f"{rules} is not the file the bundle was made with" in done.stderr
