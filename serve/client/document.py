"""A check as one JSON document."""

import msgspec

from serve.analysis.report import Finding, Metrics, ReportModel, Severity, Usage
from serve.client.check import Hidden, Outcome
from serve.client.files import FailedPath

SCHEMA_VERSION = 1


class AnalysedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was analysed; its findings are in the document's own list."""

    path: str
    summary: str
    metrics: Metrics


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A file, or with a name and lines a unit of one, that was left out, and why."""

    path: str
    reason: str
    name: str | None = None
    start_line: int | None = None
    end_line: int | None = None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The document in numbers.

    `findings` counts each severity, `hidden` what was found and is not listed, `unchanged_files` what was not
    analysed because it did not change.
    """

    files: int
    unchanged_files: int
    findings: dict[Severity, int]
    hidden: dict[Hidden, int]
    skipped: int
    errors: int
    usage: Usage


class CheckDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a check. `model` is null when no file was analysed; with `errors` it is incomplete."""

    schema_version: int
    model: ReportModel | None
    files: tuple[AnalysedFile, ...]
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    errors: tuple[FailedPath, ...]
    totals: Totals


def build_document(outcome: Outcome) -> CheckDocument:
    """The document of an outcome."""
    reports = [file.report for file in outcome.checked]
    findings = tuple(finding for report in reports for finding in report.findings)
    skipped = (
        *(Skipped(path=item.path, reason=item.reason) for item in outcome.skipped),
        *(
            Skipped(
                path=file.path,
                reason=unit.reason,
                name=unit.name,
                start_line=unit.start_line,
                end_line=unit.end_line,
            )
            for file in outcome.checked
            for unit in file.report.skipped
        ),
    )
    totals = Totals(
        files=len(outcome.checked),
        unchanged_files=outcome.unchanged_files,
        hidden=outcome.hidden,
        findings=count_by_severity(outcome),
        skipped=len(skipped),
        errors=len(outcome.failed),
        usage=Usage(
            prompt_tokens=sum(report.usage.prompt_tokens for report in reports),
            cached_tokens=sum(report.usage.cached_tokens for report in reports),
            completion_tokens=sum(report.usage.completion_tokens for report in reports),
        ),
    )
    return CheckDocument(
        schema_version=SCHEMA_VERSION,
        model=reports[0].model if reports else None,
        files=tuple(
            AnalysedFile(path=file.path, summary=file.report.summary, metrics=file.report.metrics)
            for file in outcome.checked
        ),
        findings=findings,
        skipped=skipped,
        errors=outcome.failed,
        totals=totals,
    )


def encode_document(outcome: Outcome) -> bytes:
    """The document as indented UTF-8 JSON with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(build_document(outcome)), indent=2) + b"\n"


def count_by_severity(outcome: Outcome) -> dict[Severity, int]:
    """How many findings there are of each severity, the worst first."""
    counts: dict[Severity, int] = {"error": 0, "warning": 0, "note": 0}
    for file in outcome.checked:
        for finding in file.report.findings:
            counts[finding.severity] += 1
    return counts
