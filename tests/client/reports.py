"""Reports as a server makes them, with only what a test is about spelled out."""

from typing import Any

from serve.analysis.report import (
    SCHEMA_VERSION,
    CyclomaticComplexity,
    Finding,
    Metrics,
    Report,
    ReportModel,
    SkippedUnit,
    Usage,
)
from serve.client.check import CheckedFile, Outcome


def make_finding(**fields: Any) -> Finding:
    """A finding about `==` in the first line `if value == None:`."""
    defaults: dict[str, Any] = dict(
        rule="none-comparison",
        severity="warning",
        confidence=0.875,
        message="`== None` asks the object.",
        path="a.py",
        start_line=1,
        end_line=1,
        start_column=10,
        end_column=12,
        snippet="if value == None:",
        fingerprint="f" * 16,
        fix=None,
    )
    return Finding(**defaults | fields)


def make_report(path: str, *findings: Finding, skipped: tuple[SkippedUnit, ...] = ()) -> Report:
    """A report of `findings` by a student named nano."""
    return Report(
        schema_version=SCHEMA_VERSION,
        model=ReportModel(
            name="nano", revision="0123456789ab", weights_sha256="0" * 64, quantization="int4", engine="onnx"
        ),
        summary=f"What {path} does.",
        findings=findings,
        metrics=Metrics(
            lines=2,
            code_lines=2,
            functions=0,
            classes=0,
            cyclomatic_complexity=CyclomaticComplexity(total=0, max=0, functions=()),
        ),
        skipped=skipped,
        usage=Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=3),
    )


def make_outcome(source: str, *findings: Finding, **others: Any) -> Outcome:
    """One analysed file a.py, and whatever else `others` names."""
    file = CheckedFile("a.py", source, make_report("a.py", *findings))
    return Outcome(**{"checked": (file,), "skipped": (), "failed": ()} | others)
