"""What came of each unit of a file, on its way into the file's report."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from bundle.answer import parse_answer
from bundle.units import Unit
from serve.analysis import report
from serve.analysis.asking import UnitAnswer

NO_TOKENS = report.Usage(prompt_tokens=0, cached_tokens=0, completion_tokens=0)


class UnitResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one unit: its findings and its sentence, or why there are none.

    `lasting`: asking again would give the same.
    """

    unit: report.UnitReport
    findings: tuple[report.Finding, ...] = ()
    sentence: str = ""
    skipped: report.SkippedUnit | None = None
    lasting: bool = True
    usage: report.Usage = NO_TOKENS


def unit_result(
    unit: Unit, answer: UnitAnswer | str, findings: tuple[report.Finding, ...], done: int, total: int
) -> UnitResult:
    """A unit's result as the `done`th of `total`.

    Args:
        unit: which one.
        answer: what the student wrote about it, or why it wrote nothing this time.
        findings: what can be shown of it.
        done: how many units have a result, this one included.
        total: how many units the file has.
    """
    done_unit = report.UnitReport(
        name=unit.name, start_line=unit.start_line, end_line=unit.end_line, done=done, total=total
    )

    def skipped(reason: str) -> report.SkippedUnit:
        return report.SkippedUnit(name=unit.name, start_line=unit.start_line, end_line=unit.end_line, reason=reason)

    if isinstance(answer, str):
        return UnitResult(unit=done_unit, skipped=skipped(answer), lasting=False)
    if answer.unfinished is not None:
        return UnitResult(unit=done_unit, skipped=skipped(answer.unfinished), usage=answer.usage)
    sentence = parse_answer(answer.text).summary.strip()
    return UnitResult(unit=done_unit, findings=findings, sentence=sentence, usage=answer.usage)


def distinct_names(units: Sequence[Unit]) -> list[str]:
    """The units' names; a name's second unit is `name#2`, so that its findings have fingerprints of their own."""
    seen: Counter[str] = Counter()
    labels = []
    for unit in units:
        seen[unit.name] += 1
        labels.append(unit.name if seen[unit.name] == 1 else f"{unit.name}#{seen[unit.name]}")
    return labels
