"""The formats other tools read, checked by those tools' own schemas and rules."""

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as etree

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle import answer
from serve.analysis.report import Edit, Finding, Fix
from serve.client.check import CheckedFile, Outcome, RuleText
from serve.client.files import FailedPath, SkippedPath
from serve.client.github import encode_github
from serve.client.gitlab import encode_gitlab
from serve.client.junit import encode_junit
from serve.client.rdjson import encode_rdjson
from serve.client.sarif import encode_sarif
from tests.client.conftest import Check
from tests.client.reports import make_finding, make_outcome, make_report
from tests.client.scripted_server import reporting, scripted_server

SARIF = jsonschema.Draft4Validator(
    json.loads((Path(__file__).parent / "schemas" / "sarif-2.1.0-rtm.5.json").read_text(encoding="utf-8")),
    format_checker=jsonschema.FormatChecker(),
)
# https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
GITLAB = jsonschema.Draft202012Validator(
    {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["description", "check_name", "fingerprint", "severity", "location"],
            "properties": {
                "description": {"type": "string"},
                "check_name": {"type": "string"},
                "fingerprint": {"type": "string", "minLength": 1},
                "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
                "location": {
                    "type": "object",
                    "required": ["path", "lines"],
                    "properties": {
                        "path": {"type": "string", "pattern": "^(?!\\./)"},
                        "lines": {
                            "type": "object",
                            "required": ["begin"],
                            "properties": {"begin": {"type": "integer", "minimum": 1}},
                        },
                    },
                },
            },
        },
    }
)
IS_FIX = Fix(
    edits=(Edit(start_line=1, start_column=10, end_line=1, end_column=12, text="is"),),
    verified=True,
)
RULE = RuleText("none-comparison", "warning", "Comparison with None", "`{at}` asks the object.", "Write `{fix}`.")
FAILURE = FailedPath("b c.py", "cannot parse", 3, 7)


def sarif(outcome: Outcome, *rules: RuleText) -> dict[str, Any]:
    """The only run of a log, which is valid."""
    log = json.loads(encode_sarif(outcome, rules))
    SARIF.validate(log)
    [run] = log["runs"]
    return run


def findings(**fixed: Any) -> st.SearchStrategy[Finding]:
    """Findings with any text that UTF-8 can carry."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    return st.builds(
        make_finding,
        rule=text.filter(bool),
        severity=st.sampled_from(["error", "warning", "note"]),
        confidence=st.floats(0, 1),
        message=text,
        path=text.filter(bool),
        snippet=text,
        fingerprint=text.filter(bool),
        fix=st.sampled_from([None, IS_FIX]),
        **fixed,
    )


def test_a_sarif_result_has_a_stable_rule_a_place_a_fingerprint_and_a_replacement() -> None:
    run = sarif(make_outcome("if value == None:\n", make_finding(fix=IS_FIX)), RULE)

    [rule] = run["tool"]["driver"]["rules"]
    assert rule["id"] == "none-comparison"
    assert rule["shortDescription"]["text"] == "Comparison with None"
    assert rule["help"]["text"] == "`…` asks the object. Write `…`."
    assert rule["defaultConfiguration"] == {"level": "warning"}
    [result] = run["results"]
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "none-comparison"
    assert result["partialFingerprints"] == {"deepcode/v1": "f" * 16}
    assert result["rank"] == 87.5
    place = {"startLine": 1, "startColumn": 10, "endLine": 1, "endColumn": 12}
    [location] = result["locations"]
    assert location["physicalLocation"]["artifactLocation"] == {"uri": "a.py", "uriBaseId": "SRCROOT"}
    assert location["physicalLocation"]["region"] == place | {"snippet": {"text": "if value == None:"}}
    [change] = result["fixes"][0]["artifactChanges"]
    assert change["replacements"] == [{"deletedRegion": place, "insertedContent": {"text": "is"}}]
    assert run["invocations"] == [{"executionSuccessful": True, "toolExecutionNotifications": []}]


def test_sarif_says_that_a_check_is_incomplete() -> None:
    run = sarif(make_outcome("x = 1\n", failed=(FAILURE,)))

    [invocation] = run["invocations"]
    assert invocation["executionSuccessful"] is False
    [notification] = invocation["toolExecutionNotifications"]
    assert notification["message"]["text"] == "not analysed: cannot parse"
    location = notification["locations"][0]["physicalLocation"]
    assert location["artifactLocation"]["uri"] == "b%20c.py"
    assert location["region"] == {"startLine": 3, "startColumn": 7}


def test_a_fix_that_was_not_verified_is_not_offered() -> None:
    unverified = Fix(edits=IS_FIX.edits, verified=False)
    outcome = make_outcome("if value == None:\n", make_finding(fix=unverified))

    assert "fixes" not in sarif(outcome)["results"][0]
    assert "suggestions" not in json.loads(encode_rdjson(outcome))["diagnostics"][0]


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("my dir/ä.py", {"uri": "my%20dir/%C3%A4.py", "uriBaseId": "SRCROOT"}),
        ("100%/#1?.py", {"uri": "100%25/%231%3F.py", "uriBaseId": "SRCROOT"}),
        ("line\nbreak.py", {"uri": "line%0Abreak.py", "uriBaseId": "SRCROOT"}),
        ("../other.py", {"uri": "../other.py", "uriBaseId": "SRCROOT"}),
        ("/else where/a.py", {"uri": "file:///else%20where/a.py"}),
    ],
)
def test_any_path_becomes_a_uri(path: str, uri: dict[str, str]) -> None:
    run = sarif(make_outcome("x\n", make_finding(path=path)))

    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"] == uri
    assert unquote(uri["uri"]).removeprefix("file://") == path


@given(st.lists(findings(), max_size=3))
def test_whatever_a_finding_says_sarif_is_valid(found: list[Finding]) -> None:
    run = sarif(make_outcome("if value == None:\n", *found), RULE)

    assert [result["message"]["text"] for result in run["results"]] == [finding.message for finding in found]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(rules) == len(set(rules))
    assert [rules[result["ruleIndex"]] for result in run["results"]] == [finding.rule for finding in found]


def test_a_gitlab_report_of_each_severity() -> None:
    found = [
        make_finding(severity=severity, fingerprint=severity, start_line=2, end_line=3)
        for severity in ("error", "warning", "note")
    ]
    report = json.loads(encode_gitlab(make_outcome("if value == None:\n", *found, failed=(FAILURE,))))

    GITLAB.validate(report)
    assert [entry["severity"] for entry in report] == ["major", "minor", "info"]
    assert report[0] == {
        "description": "`== None` asks the object.",
        "check_name": "none-comparison",
        "fingerprint": "error",
        "severity": "major",
        "location": {"path": "a.py", "lines": {"begin": 2, "end": 3}},
    }
    assert encode_gitlab(make_outcome("x\n")) == b"[]\n"


def test_github_annotations() -> None:
    outcome = make_outcome(
        "if value == None:\n",
        make_finding(),
        make_finding(severity="note", end_line=2),
        failed=(FAILURE,),
    )

    assert encode_github(outcome).decode().splitlines() == [
        "::warning file=a.py,line=1,endLine=1,col=10,endColumn=12,title=none-comparison (88%25 sure)"
        "::`== None` asks the object.",
        "::notice file=a.py,line=1,endLine=2,title=none-comparison (88%25 sure)::`== None` asks the object.",
        "::error file=b c.py,line=3,col=7,title=not analysed::cannot parse",
    ]


def unescaped(text: str) -> str:
    """As the runner reads it back."""
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


@given(findings())
def test_nothing_in_a_finding_can_end_or_forge_a_github_command(finding: Finding) -> None:
    outcome = make_outcome("if value == None:\n", finding)

    [line, rest] = encode_github(outcome).decode().split("\n")

    assert rest == "" and "\r" not in line
    _, properties, message = line.split("::", 2)
    assert unescaped(message) == finding.message
    told = dict(pair.split("=", 1) for pair in properties.split(" ", 1)[1].split(","))
    assert unescaped(told["file"]) == finding.path
    assert unescaped(told["title"]).startswith(finding.rule)


def test_a_junit_report_agrees_with_the_exit_code() -> None:
    outcome = Outcome(
        checked=(
            CheckedFile("a.py", "", make_report("a.py", make_finding(), make_finding(severity="note"))),
            CheckedFile("clean.py", "", make_report("clean.py")),
            CheckedFile("noted.py", "", make_report("noted.py", make_finding(severity="note", path="noted.py"))),
        ),
        skipped=(SkippedPath("notes.txt", "not a .py file"),),
        failed=(FAILURE,),
    )

    suite = etree.fromstring(encode_junit(outcome, ("error", "warning"))).find("testsuite")

    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    cases = {case.get("name"): [child.tag for child in case] for case in suite}
    assert cases == {
        "a.py": ["failure", "system-out"],
        "clean.py": [],
        "noted.py": ["system-out"],
        "b c.py": ["error"],
        "notes.txt": ["skipped"],
    }
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.text == "a.py:1:10: warning none-comparison (88% sure): `== None` asks the object."


@given(findings())
def test_whatever_a_finding_says_junit_is_xml(finding: Finding) -> None:
    root = etree.fromstring(encode_junit(make_outcome("x\n", finding), ("error", "warning", "note")))

    assert root.find("testsuite/testcase/failure") is not None


def test_rdjson_counts_columns_in_bytes_of_utf_8() -> None:
    source = "if 名前 == None:\n"
    start = source.index("==") + 1
    edit = Edit(start_line=1, start_column=start, end_line=1, end_column=start + 2, text="is")
    finding = make_finding(start_column=start, end_column=start + 2, fix=Fix(edits=(edit,), verified=True))

    [diagnostic] = json.loads(encode_rdjson(make_outcome(source, finding)))["diagnostics"]

    place = {"start": {"line": 1, "column": 11}, "end": {"line": 1, "column": 13}}
    assert source.encode()[10:12] == b"=="
    assert diagnostic == {
        "message": "`== None` asks the object.",
        "location": {"path": "a.py", "range": place},
        "severity": "WARNING",
        "code": {"value": "none-comparison"},
        "suggestions": [{"range": place, "text": "is"}],
    }


def test_rdjson_tells_what_was_not_analysed() -> None:
    [diagnostic] = json.loads(encode_rdjson(make_outcome("x\n", failed=(FAILURE,))))["diagnostics"]

    assert diagnostic["message"] == "not analysed: cannot parse"
    assert diagnostic["location"] == {"path": "b c.py", "range": {"start": {"line": 3}}}


@pytest.mark.parametrize("form", ["json", "sarif", "gitlab", "github", "junit", "rdjson"])
def test_a_file_gets_the_format_and_standard_output_the_text(check: Check, tmp_path: Path, form: str) -> None:
    (tmp_path / "a.py").write_text("if value == None:\n    pass\n")
    with scripted_server(reporting(make_finding())) as server:
        printed = check("a.py", "--url", server.url, "--format", form)
        written = check("a.py", "--url", server.url, "--format", form, "--output", "report")

    assert printed.returncode == written.returncode == 1
    assert (tmp_path / "report").read_text(encoding="utf-8") == printed.stdout
    assert written.stdout.startswith("a.py:1:10: warning none-comparison (88% sure)\n")


def test_text_in_a_file_has_no_colours(check: Check, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("if value == None:\n    pass\n")
    with scripted_server(reporting(make_finding())) as server:
        done = check("a.py", "--url", server.url, "--output", "report.txt")

    assert (tmp_path / "report.txt").read_text() == done.stdout


@pytest.mark.parametrize("output", ["missing/report", "."])
def test_an_output_that_cannot_be_written_is_known_before_anything_is_asked(
    check: Check, tmp_path: Path, dead_url: str, output: str
) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")

    done = check("a.py", "--url", dead_url, "--output", output)

    assert done.returncode == 2
    assert f"--output {output} is not a file in a folder that exists" in done.stderr


def test_sarif_describes_the_rules_of_a_real_server(check: Check, tmp_path: Path, server_url: str) -> None:
    shutil.copy(answer.__file__, tmp_path / "a.py")

    done = check("a.py", "--url", server_url, "--format", "sarif", "--min-confidence", "0", "--fail-on", "never")

    assert done.returncode == 0, done.stderr
    log = json.loads(done.stdout)
    SARIF.validate(log)
    [run] = log["runs"]
    assert run["results"]
    assert "bare-except" in {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert all(rule["help"]["text"] for rule in run["tool"]["driver"]["rules"])


def test_sarif_of_a_server_that_does_not_tell_its_rules_names_those_that_were_found(
    check: Check, tmp_path: Path
) -> None:
    (tmp_path / "a.py").write_text("if value == None:\n    pass\n")
    with scripted_server(reporting(make_finding())) as server:
        done = check("a.py", "--url", server.url, "--format", "sarif")

    [run] = json.loads(done.stdout)["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["none-comparison"]


def test_a_terminal_that_wants_no_colours_gets_none(check: Check, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("if value == None:\n    pass\n")
    colours = {"PATH": "/usr/bin:/bin", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    with scripted_server(reporting(make_finding())) as server:
        coloured = check("a.py", "--url", server.url, env=colours)
        plain = check("a.py", "--url", server.url, env=colours | {"NO_COLOR": "1"})

    assert "\x1b[1;33mwarning" in coloured.stdout
    assert "\x1b[1;33m" not in plain.stdout
