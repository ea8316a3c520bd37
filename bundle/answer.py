"""What a student writes: its text form, its JSON schema, and the parser.

An answer is compact JSON with the findings first, so that the decision "clean, or which rule" is the
very first token after the prompt, and a caller that wants no summary can stop early:

    {"findings":[{"rule":"wrong-comparison","line":4,"at":"<=","fix":"<"}],"summary":"Return the first hit."}

`line` counts the unit's own lines from 1. `at` is text on that line, occurring there exactly once;
`fix` replaces it, or is null when the repair needs more than one line.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

MAX_SPAN_CHARS = 60
MAX_SUMMARY_CHARS = 120
MAX_FINDINGS = 8

# Where every answer starts and where its two parts meet. A tokenizer may hold these as single tokens.
OPENING = '{"findings":['
BETWEEN_FINDINGS = "},"
CLOSING_FINDINGS = '],"summary":"'
CLOSING = '"}'


class AnswerFinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One finding as the student writes it, in the unit's own line numbers."""

    rule: str
    line: int
    at: str
    fix: str | None


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a student says about one unit."""

    findings: tuple[AnswerFinding, ...]
    summary: str


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Answer)


def write_answer(answer: Answer) -> str:
    """The answer's one compact text form; `parse_answer` reads it back."""
    return _ENCODER.encode(answer).decode()


def parse_answer(text: str) -> Answer:
    """Read an answer back.

    Raises:
        ValueError: the text is not an answer (msgspec's errors are ValueErrors).
    """
    return _DECODER.decode(text)


def answer_schema(rules: Iterable[str], lines: int) -> dict[str, Any]:
    """JSON schema of every answer about a unit of `lines` lines that may name only `rules`.

    `x-guidance` keeps constrained decoding to the compact form the student was trained on.
    """
    finding = {
        "type": "object",
        "additionalProperties": False,
        "required": ["rule", "line", "at", "fix"],
        "properties": {
            "rule": {"enum": list(rules)},
            "line": {"type": "integer", "minimum": 1, "maximum": lines},
            "at": {"type": "string", "minLength": 1, "maxLength": MAX_SPAN_CHARS},
            "fix": {"anyOf": [{"type": "string", "maxLength": MAX_SPAN_CHARS}, {"type": "null"}]},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "x-guidance": {"whitespace_flexible": False},
        "type": "object",
        "additionalProperties": False,
        "required": ["findings", "summary"],
        "properties": {
            "findings": {"type": "array", "maxItems": MAX_FINDINGS, "items": finding},
            "summary": {"type": "string", "maxLength": MAX_SUMMARY_CHARS},
        },
    }


def placed_line(finding: AnswerFinding, texts: Sequence[str]) -> int | None:
    """The line (from 1) a finding is about, or None when it contradicts itself.

    A student may name the wrong line and still quote the right text. Where `at` does not occur exactly once
    on the line it names, but exactly once in the whole unit, the text decides. A name does not
    occur in a longer one: `dir` is not in `dirname`.

    Args:
        texts: the unit's lines.
    """
    if not finding.at or not 1 <= finding.line <= len(texts):
        return None
    if _once(finding.at, texts[finding.line - 1]):
        return finding.line
    holding = [number for number, text in enumerate(texts, start=1) if finding.at in text]
    return holding[0] if len(holding) == 1 and _once(finding.at, texts[holding[0] - 1]) else None


def _once(at: str, text: str) -> bool:
    """Whether `at` occurs exactly once, overlaps counted: "--" stands twice in "---". A name must stand alone."""
    first = text.find(at)
    if first < 0 or text.find(at, first + 1) >= 0:
        return False
    around = text[:first][-1:] + text[first + len(at) :][:1]
    return not (at.isidentifier() and any(character == "_" or character.isalnum() for character in around))
