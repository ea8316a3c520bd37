"""Units with known truth: natural code as linted, and the same code with a defect planted."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from bundle.answer import MAX_FINDINGS, MAX_SPAN_CHARS, Answer, AnswerFinding, write_answer
from bundle.rules import Catalogue
from bundle.units import Unit, UnitLine
from compress.data.defects import DEFECTS
from compress.data.hygiene import Label
from compress.data.inject import plant
from compress.data.planted_hygiene import HYGIENE_WEIGHTS, PLANTED_HYGIENE
from compress.data.spans import unique_window

Split = Literal["train", "validation", "test"]

# Rules whose evidence is spread over the unit need more examples than those a line gives away.
_DEFECT_WEIGHTS = {
    "variable-misuse": 3.0,
    "swapped-arguments": 2.0,
    "off-by-one": 1.5,
    "wrong-exception": 0.7,
}


class Example(msgspec.Struct, frozen=True):
    """A unit, everything that is wrong with it, and what was planted (None: natural code)."""

    project: str
    path: str
    unit: Unit
    findings: tuple[AnswerFinding, ...]
    planted: str | None

    @property
    def answer_text(self) -> str:
        """The whole answer; a unit without a docstring has no known summary, see `has_summary`."""
        return write_answer(Answer(findings=self.findings, summary=self.unit.summary or ""))

    @property
    def has_summary(self) -> bool:
        return self.unit.summary is not None


def natural_example(project: str, path: str, unit: Unit, labels: list[Label]) -> Example:
    """The unit as it was written, with the linter's findings in the unit's own line numbers."""
    place = {line.number: index for index, line in enumerate(unit.lines, start=1)}
    findings = []
    for label in labels:
        if label.line in place:
            number = place[label.line]
            findings.append(_as_finding(label, number, unit.lines[number - 1]))
    return Example(project, path, unit, tuple(findings[:MAX_FINDINGS]), None)


def _as_finding(label: Label, number: int, line: UnitLine) -> AnswerFinding:
    start = max(label.start - line.removed, 0)
    end = label.end - line.removed if label.end > label.start else len(line.text)
    window = unique_window(line.text, start, min(end, len(line.text))) if start < len(line.text) else None
    if window is None:
        words = line.text.strip()[:40].rstrip()
        return AnswerFinding(label.rule, number, words, None)
    at = line.text[window[0] : window[1]]
    fix = None
    if label.fix is not None:
        repaired = line.text[window[0] : start] + label.fix + line.text[end : window[1]]
        fix = repaired if len(repaired) <= MAX_SPAN_CHARS else None
    return AnswerFinding(label.rule, number, at, fix)


def planted_example(natural: Example, origin: Literal["injected", "hygiene"], rng: random.Random) -> Example | None:
    """The unit with one defect planted; None when it offers no place for one."""
    planters, weights = (DEFECTS, _DEFECT_WEIGHTS) if origin == "injected" else (PLANTED_HYGIENE, HYGIENE_WEIGHTS)
    planted = plant(natural.unit.code, planters, weights, rng)
    if planted is None or len(natural.findings) >= MAX_FINDINGS:
        return None
    code, defect = planted
    texts = code.split("\n")
    for finding in natural.findings:
        changed = texts[finding.line - 1] != natural.unit.lines[finding.line - 1].text
        if changed and (origin == "hygiene" or texts[finding.line - 1].count(finding.at) != 1):
            return None  # the edit spoils another finding of the same line
    lines = tuple(
        UnitLine(line.number, text, line.removed) for line, text in zip(natural.unit.lines, texts, strict=True)
    )
    findings = tuple(sorted([*natural.findings, defect], key=lambda finding: finding.line))
    unit = msgspec.structs.replace(natural.unit, lines=lines)
    return msgspec.structs.replace(natural, unit=unit, findings=findings, planted=defect.rule)


def draw_example(natural: Example, planted_share: float, rng: random.Random) -> Example:
    """One draw for training: the natural unit, or the unit with one defect planted, now and then two or three.

    A third of what is planted is hygiene that natural code shows too rarely. Kinds are mixed, so that a
    student learns to go on after a first finding.
    """
    if rng.random() >= planted_share:
        return natural
    drawn = natural
    for _ in range(1 + (rng.random() < 0.3) + (rng.random() < 0.1)):
        drawn = planted_example(drawn, "hygiene" if rng.random() < 0.35 else "injected", rng) or drawn
    return drawn


def write_examples(file: Path, examples: Sequence[msgspec.Struct]) -> None:
    """One JSON line an example, written whole or not at all."""
    staged = file.with_suffix(".partial")
    encoder = msgspec.json.Encoder()
    staged.write_bytes(encoder.encode_lines(examples))
    staged.replace(file)


def read_examples(file: Path) -> list[Example]:
    """The examples of one split, in the order they were written."""
    return msgspec.json.Decoder(Example).decode_lines(file.read_bytes())


def rule_counts(examples: list[Example], catalogue: Catalogue) -> dict[str, int]:
    """How many findings of each rule a split holds."""
    counts = dict.fromkeys(catalogue.ids, 0)
    for example in examples:
        for finding in example.findings:
            counts[finding.rule] += 1
    return counts
