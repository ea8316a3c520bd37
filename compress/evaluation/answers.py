"""What a model said about each unit, read as it would be served: placed, with a confidence, or dropped."""

from collections.abc import Mapping, Sequence

import msgspec
from tokenizers import Tokenizer

from bundle.answer import Answer, AnswerFinding, parse_answer, placed_line
from bundle.confidence import Calibration, calibrated, finding_confidences
from bundle.evidence import Evidence
from bundle.rules import Catalogue
from compress.data.examples import Example
from compress.evaluation.generated import Generated


class Said(msgspec.Struct, frozen=True):
    """The findings of one answer, on the lines they stand on, each with its confidence.

    A confidence is None where the answer is not in the compact form that confidences are read from; the
    grammar allows no other. `valid` is False for text that is no answer, as one cut off at the longest length:
    then nothing was said. `aided`: the grammar once forbade what the model would have written. `contradicted`:
    how many more findings there were, which the syntax of the unit contradicts.
    """

    valid: bool
    findings: tuple[AnswerFinding, ...] = ()
    confidences: tuple[float | None, ...] = ()
    aided: bool = False
    contradicted: int = 0


NOTHING = Said(valid=True)


def read_answer(text: str, example: Example, catalogue: Catalogue) -> Answer | None:
    """The answer, when it is well formed and speaks of known rules and of this unit's own lines."""
    try:
        answer = parse_answer(text)
    except ValueError:
        return None
    for finding in answer.findings:
        if finding.rule not in catalogue.ids or not 1 <= finding.line <= len(example.unit.lines):
            return None
    return answer


def read_said(
    text: str, confidences: Sequence[float], example: Example, catalogue: Catalogue, aided: bool = False
) -> Said:
    """One answer as it would be served.

    A finding is on the line its text stands on; one that contradicts itself or the syntax of its unit, or
    whose fix changes nothing, is dropped.

    Args:
        confidences: of the answer's findings, in the order in which it was written.
        aided: whether the grammar once forbade what the model would have written.
    """
    answer = read_answer(text, example, catalogue)
    if answer is None:
        return Said(valid=False, aided=aided)
    known = confidences if len(confidences) == len(answer.findings) else [None] * len(answer.findings)
    placed = [
        (msgspec.structs.replace(finding, line=line), confidence)
        for finding, confidence in zip(answer.findings, known, strict=True)
        if confidence != 0.0
        and (line := placed_line(finding, example.unit.texts)) is not None
        and finding.fix != finding.at
    ]
    evidence = Evidence(example.unit.texts)
    kept = [(finding, confidence) for finding, confidence in placed if not evidence.contradicts(finding)]
    return Said(
        valid=True,
        findings=tuple(finding for finding, _ in kept),
        confidences=tuple(confidence for _, confidence in kept),
        aided=aided,
        contradicted=len(placed) - len(kept),
    )


def answer_text(answer: Generated, tokenizer: Tokenizer, eos_token_id: int) -> str:
    """The text of an answer, without its EOS."""
    ids = answer.ids[:-1] if answer.ids[-1:] == [eos_token_id] else answer.ids
    return tokenizer.decode(ids, skip_special_tokens=False)


def answer_confidences(answer: Generated, tokenizer: Tokenizer) -> list[float]:
    """The raw confidence of each finding of an answer."""
    return finding_confidences(
        (tokenizer.decode([token], skip_special_tokens=False).encode(), logprob)
        for token, logprob in zip(answer.ids, answer.logprobs, strict=True)
    )


def with_calibration(said: Sequence[Said], curves: Mapping[str, Calibration]) -> list[Said]:
    """The same findings with calibrated confidences; those of a rule without a curve stay raw."""
    return [
        msgspec.structs.replace(
            each,
            confidences=tuple(
                raw if raw is None else calibrated(raw, curves.get(finding.rule, ()))
                for finding, raw in zip(each.findings, each.confidences, strict=True)
            ),
        )
        for each in said
    ]


def shown(said: Sequence[Said], thresholds: dict[str, float]) -> list[Said]:
    """The findings whose confidence is at or above their rule's threshold."""
    kept = []
    for each in said:
        pairs = [
            (finding, confidence)
            for finding, confidence in zip(each.findings, each.confidences, strict=True)
            if confidence is not None and confidence >= thresholds[finding.rule]
        ]
        findings, sures = tuple(finding for finding, _ in pairs), tuple(sure for _, sure in pairs)
        kept.append(msgspec.structs.replace(each, findings=findings, confidences=sures))
    return kept
