"""A check as SARIF 2.1.0, for GitHub code scanning and whatever else reads it.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import msgspec

from serve.analysis.report import Edit, Finding
from serve.client.check import Outcome, RuleText
from serve.client.files import FailedPath

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
# Where the check was run; code scanning takes it for the root of the repository.
ROOT = "SRCROOT"
FINGERPRINT = "deepcode/v1"


def encode_sarif(outcome: Outcome, rules: Sequence[RuleText]) -> bytes:
    """One SARIF log with one run, as indented UTF-8 JSON.

    Columns count code points from 1 and an end column is the one after the last, as in a report. A check that
    is incomplete has `executionSuccessful: false` and a notification for each file that was not analysed.

    Args:
        outcome: what to tell.
        rules: what is known of the rules; a rule that has findings and is not among them gets an entry of its
            name alone.
    """
    described = {rule.id: rule for rule in rules}
    found = {finding.rule: finding.severity for file in outcome.checked for finding in file.report.findings}
    ids = sorted(described.keys() | found.keys())
    index = {rule: position for position, rule in enumerate(ids)}
    model = outcome.checked[0].report.model if outcome.checked else None
    driver: dict[str, Any] = {
        "name": "deepcode-check",
        "semanticVersion": version("deepcode-analyst"),
        "rules": [_rule(described[rule]) if rule in described else _bare_rule(rule, found[rule]) for rule in ids],
    }
    if model is not None:
        driver["properties"] = {"model": msgspec.to_builtins(model)}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": not outcome.failed,
                "toolExecutionNotifications": [_notification(failure) for failure in outcome.failed],
            }
        ],
        "results": [_result(finding, index) for file in outcome.checked for finding in file.report.findings],
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return msgspec.json.format(msgspec.json.encode(log), indent=2) + b"\n"


def _rule(rule: RuleText) -> dict[str, Any]:
    return _bare_rule(rule.id, rule.severity) | {
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.title}."},
        "help": {"text": f"{rule.message} {rule.hint}".replace("{at}", "…").replace("{fix}", "…")},
    }


def _bare_rule(rule: str, severity: str) -> dict[str, Any]:
    return {"id": rule, "name": rule, "defaultConfiguration": {"level": severity}}


def _result(finding: Finding, index: dict[str, int]) -> dict[str, Any]:
    region = _region(finding) | {"snippet": {"text": finding.snippet}}
    location = {"artifactLocation": _artifact(finding.path), "region": region}
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index[finding.rule],
        "level": finding.severity,
        "message": {"text": finding.message},
        "locations": [{"physicalLocation": location}],
        "partialFingerprints": {FINGERPRINT: finding.fingerprint},
        "rank": round(100 * finding.confidence, 2),
        "properties": {"confidence": finding.confidence},
    }
    if finding.fix is not None and finding.fix.verified:
        replacements = [
            {"deletedRegion": _region(edit), "insertedContent": {"text": edit.text}} for edit in finding.fix.edits
        ]
        change = {"artifactLocation": _artifact(finding.path), "replacements": replacements}
        result["fixes"] = [{"description": {"text": finding.message}, "artifactChanges": [change]}]
    return result


def _region(place: Finding | Edit) -> dict[str, Any]:
    return {
        "startLine": place.start_line,
        "startColumn": place.start_column,
        "endLine": place.end_line,
        "endColumn": place.end_column,
    }


def _artifact(path: str) -> dict[str, str]:
    if PurePosixPath(path).is_absolute():
        return {"uri": f"file://{quote(path)}"}
    return {"uri": quote(path), "uriBaseId": ROOT}


def _notification(failure: FailedPath) -> dict[str, Any]:
    location: dict[str, Any] = {"artifactLocation": _artifact(failure.path)}
    if failure.line is not None:
        location["region"] = {"startLine": failure.line}
        if failure.column is not None:
            location["region"]["startColumn"] = failure.column
    return {
        "level": "error",
        "message": {"text": f"not analysed: {failure.message}"},
        "locations": [{"physicalLocation": location}],
    }
