"""A check as GitHub Actions workflow commands, which become annotations of the lines they name.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
"""

from serve.analysis.report import Finding, Severity
from serve.client.check import Outcome
from serve.client.files import FailedPath

COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "note": "notice"}


def encode_github(outcome: Outcome) -> bytes:
    """One command a line: for every finding, then for every file that was not analysed."""
    lines = [_annotation(finding) for file in outcome.checked for finding in file.report.findings]
    lines += [_failure(failure) for failure in outcome.failed]
    return "".join(f"{line}\n" for line in lines).encode()


def _annotation(finding: Finding) -> str:
    place: dict[str, str | int] = {"file": finding.path, "line": finding.start_line, "endLine": finding.end_line}
    if finding.start_line == finding.end_line:  # columns of two lines can not be compared, and are refused
        place |= {"col": finding.start_column, "endColumn": finding.end_column}
    title = f"{finding.rule} ({finding.confidence:.0%} sure)"
    return _command(COMMANDS[finding.severity], place | {"title": title}, finding.message)


def _failure(failure: FailedPath) -> str:
    place = {"file": failure.path, "line": failure.line, "col": failure.column, "title": "not analysed"}
    return _command("error", {name: value for name, value in place.items() if value is not None}, failure.message)


def _command(name: str, properties: dict[str, str | int], message: str) -> str:
    told = ",".join(f"{key}={_escape_property(str(value))}" for key, value in properties.items())
    return f"::{name} {told}::{_escape(message)}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape(text).replace(":", "%3A").replace(",", "%2C")
