"""From what a student wrote about a unit to findings about the file, each of them checked.

A finding is believed only as far as it can be checked: its rule is in the catalogue and its line in the
unit, else it is dropped; `at` stands exactly once on that line, or on just one other line of the unit, and
marks what its rule can be about, else its confidence is 0, so that it is shown only to who asks for
everything; a fix that changes nothing drops the finding; a fix is offered only if the file parses with it
(`syntax`) and has every name in it already.
"""

import builtins
import hashlib
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from bundle.answer import Answer, AnswerFinding, placed_line
from bundle.evidence import keeps_meaning
from bundle.rules import Catalogue
from bundle.units import Unit
from serve.analysis.report import Edit, Finding, Fix

LINE_BREAKS = ("\n", "\r", "\f", "\v")
_NAME = re.compile(r"[^\W\d]\w*")
_BUILTINS = frozenset(dir(builtins))


class Candidate(msgspec.Struct, frozen=True):
    """A finding whose place in the file is known, and which the code's syntax was not asked about yet.

    Columns count from 1; the end column is exclusive. `at` is the marked text. `unit_line` counts the unit's own lines;
    None where the student's quote stands on none of them, so that a whole line is marked without confidence.
    """

    rule: str
    confidence: float
    unit: str
    line: int
    unit_line: int | None
    start_column: int
    end_column: int
    at: str
    fix: str | None

    @property
    def edit(self) -> Edit | None:
        """The fix as an edit of the file."""
        if self.fix is None:
            return None
        return Edit(
            start_line=self.line,
            start_column=self.start_column,
            end_line=self.line,
            end_column=self.end_column,
            text=self.fix,
        )


def locate(unit: Unit, answer: Answer, confidences: Sequence[float], catalogue: Catalogue) -> list[Candidate]:
    """The findings of one answer that can be placed in the file.

    Args:
        unit: what the student was asked about.
        answer: what it said.
        confidences: one for each finding of the answer.
        catalogue: the rules that exist.
    """
    return [
        _place(unit, finding, confidence)
        for finding, confidence in zip(answer.findings, confidences, strict=True)
        if finding.rule in catalogue.ids and 1 <= finding.line <= len(unit.lines) and finding.fix != finding.at
    ]


def _place(unit: Unit, finding: AnswerFinding, confidence: float) -> Candidate:
    number = placed_line(finding, unit.texts)
    line = unit.lines[(number or finding.line) - 1]
    at = finding.at if number is not None else line.text.strip()
    start = line.text.index(at)
    one_line = finding.fix is not None and not any(mark in finding.fix for mark in LINE_BREAKS)
    return Candidate(
        rule=finding.rule,
        confidence=confidence if number is not None else 0.0,
        unit=unit.name,
        line=line.number,
        unit_line=number,
        start_column=line.removed + start + 1,
        end_column=line.removed + start + len(at) + 1,
        at=at,
        fix=finding.fix if number is not None and one_line and keeps_meaning(finding) else None,
    )


def merge(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Sorted by place; of findings that say the same about the same place, the surest."""
    best: dict[tuple[str, int, int, int, str | None], Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: -candidate.confidence):
        key = (
            candidate.rule,
            candidate.line,
            candidate.start_column,
            candidate.end_column,
            candidate.fix,
        )
        best.setdefault(key, candidate)
    return sorted(best.values(), key=lambda candidate: (candidate.line, candidate.start_column, candidate.rule))


def as_findings(
    candidates: Sequence[Candidate], lines: Sequence[str], path: str, catalogue: Catalogue
) -> tuple[Finding, ...]:
    """The findings of a report.

    Args:
        candidates: merged, sorted, and checked (`SyntaxWorkers.check`).
        lines: the file's lines.
        path: what the file is called in the report.
        catalogue: the rules' severities and messages.
    """
    seen: Counter[tuple[str, str, str]] = Counter()
    known = _BUILTINS.union(*(_names(line) for line in lines)) if candidates else _BUILTINS
    findings = []
    for candidate in candidates:
        snippet = lines[candidate.line - 1]
        key = (candidate.rule, candidate.unit, snippet.strip())
        edit = candidate.edit if _names(candidate.fix or "") <= known else None
        rule = catalogue[candidate.rule]
        findings.append(
            Finding(
                rule=rule.id,
                severity=rule.severity,
                confidence=round(candidate.confidence, 4),
                message=rule.explain(candidate.at, None if edit is None else edit.text),
                path=path,
                start_line=candidate.line,
                end_line=candidate.line,
                start_column=candidate.start_column,
                end_column=candidate.end_column,
                snippet=snippet,
                fingerprint=_fingerprint(path, *key, seen[key]),
                fix=None if edit is None else Fix(edits=(edit,), verified=True),
            )
        )
        seen[key] += 1
    return tuple(findings)


def _names(text: str) -> set[str]:
    return {name for name in _NAME.findall(text) if not keyword.iskeyword(name)}


def _fingerprint(path: str, rule: str, unit: str, text: str, occurrence: int) -> str:
    """Names a finding by what it says, not by its line number, so that it survives edits elsewhere."""
    parts = (rule, path, unit, text, str(occurrence))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
