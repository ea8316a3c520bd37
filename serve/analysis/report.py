"""What an analysis returns, as JSON and in Python. It imports msgspec alone, so that the CI client can."""

from typing import Literal

import msgspec

SCHEMA_VERSION = 1

Severity = Literal["error", "warning", "note"]


class ReportModel(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly which student answered, and through which engine."""

    name: str
    revision: str
    weights_sha256: str
    quantization: str
    engine: str


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """Replace a span of the file by `text`. Lines and columns count from 1; the end column is exclusive."""

    start_line: int
    start_column: int
    end_line: int
    end_column: int
    text: str


class Fix(msgspec.Struct, frozen=True, kw_only=True):
    """Edits that belong together. `verified`: they were applied to the file and the result was parsed."""

    edits: tuple[Edit, ...]
    verified: bool


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to look at.

    Lines and columns count from 1 and the end column is exclusive. `confidence` is the probability the
    student gave to reporting this rule on this line, calibrated where its bundle says how. `fingerprint` names
    the finding without its line number, so that it survives edits elsewhere in the file.
    """

    rule: str
    severity: Severity
    confidence: float
    message: str
    path: str
    start_line: int
    end_line: int
    start_column: int
    end_column: int
    snippet: str
    fingerprint: str
    fix: Fix | None


class FunctionComplexity(msgspec.Struct, frozen=True, kw_only=True):
    """One function or method and its cyclomatic complexity."""

    name: str
    start_line: int
    end_line: int
    complexity: int


class CyclomaticComplexity(msgspec.Struct, frozen=True, kw_only=True):
    """The complexity of every function of a file: their sum, the largest, and each of them."""

    total: int
    max: int
    functions: tuple[FunctionComplexity, ...]


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers computed from the file. `code_lines` are lines that hold more than blanks and comments."""

    lines: int
    code_lines: int
    functions: int
    classes: int
    cyclomatic_complexity: CyclomaticComplexity


class UnitReport(msgspec.Struct, frozen=True, kw_only=True):
    """One unit of a file has been dealt with, as the `done`th of `total`."""

    name: str
    start_line: int
    end_line: int
    done: int
    total: int


class SkippedUnit(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the file that was not analysed, and why."""

    name: str
    start_line: int
    end_line: int
    reason: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens over all units. `cached_tokens` is the part of `prompt_tokens` that was not computed again."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def from_cache(self) -> "Usage":
        """The same tokens, none of the prompts computed."""
        return msgspec.structs.replace(self, cached_tokens=self.prompt_tokens)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything said about one file; `findings` are sorted by where they start."""

    schema_version: int
    model: ReportModel
    summary: str
    findings: tuple[Finding, ...]
    metrics: Metrics
    skipped: tuple[SkippedUnit, ...]
    usage: Usage
