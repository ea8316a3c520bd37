"""A check in the Reviewdog Diagnostic Format, which reviewdog posts as review comments with suggestions.

https://github.com/reviewdog/reviewdog/tree/master/proto/rdf
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from serve.analysis.report import Edit, Finding, Severity
from serve.client.check import Outcome
from serve.client.files import FailedPath

SEVERITIES: dict[Severity, str] = {"error": "ERROR", "warning": "WARNING", "note": "INFO"}


def encode_rdjson(outcome: Outcome) -> bytes:
    """One DiagnosticResult as indented UTF-8 JSON. Columns count bytes of UTF-8, and the end is exclusive."""
    diagnostics = [
        _diagnostic(finding, lines)
        for file in outcome.checked
        for lines in [file.source.split("\n")]
        for finding in file.report.findings
    ]
    diagnostics += [_failure(failure) for failure in outcome.failed]
    result = {"source": {"name": "deepcode-check"}, "diagnostics": diagnostics}
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"


def _diagnostic(finding: Finding, lines: Sequence[str]) -> dict[str, Any]:
    diagnostic: dict[str, Any] = {
        "message": finding.message,
        "location": {"path": finding.path, "range": _range(finding, lines)},
        "severity": SEVERITIES[finding.severity],
        "code": {"value": finding.rule},
    }
    # Suggestions are alternatives to each other: a fix of several edits can not be told as one.
    if finding.fix is not None and finding.fix.verified and len(finding.fix.edits) == 1:
        [edit] = finding.fix.edits
        diagnostic["suggestions"] = [{"range": _range(edit, lines), "text": edit.text}]
    return diagnostic


def _range(place: Finding | Edit, lines: Sequence[str]) -> dict[str, Any]:
    return {
        "start": {"line": place.start_line, "column": _bytes(lines, place.start_line, place.start_column)},
        "end": {"line": place.end_line, "column": _bytes(lines, place.end_line, place.end_column)},
    }


def _bytes(lines: Sequence[str], line: int, column: int) -> int:
    return len(lines[line - 1][: column - 1].encode()) + 1


def _failure(failure: FailedPath) -> dict[str, Any]:
    location: dict[str, Any] = {"path": failure.path}
    if failure.line is not None:
        location["range"] = {"start": {"line": failure.line}}
    return {"message": f"not analysed: {failure.message}", "location": location, "severity": "ERROR"}
