"""From answers and known truth to numbers."""

import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from bundle.answer import Answer, AnswerFinding, parse_answer, placed_line
from bundle.rules import Catalogue
from compress.data.examples import Example


class Detection(msgspec.Struct, frozen=True):
    """How well findings match the truth, a finding being right when rule and line are."""

    found: int
    missed: int
    false: int

    @property
    def precision(self) -> float:
        reported = self.found + self.false
        return self.found / reported if reported else 0.0

    @property
    def recall(self) -> float:
        true = self.found + self.missed
        return self.found / true if true else 0.0

    @property
    def f1(self) -> float:
        total = 2 * self.found + self.false + self.missed
        return 2 * self.found / total if total else 0.0


class Scores(msgspec.Struct, frozen=True):
    """What one model's answers to the held-out units are worth. Shares are 0..1."""

    injected: Detection
    hygiene: Detection
    by_rule: dict[str, Detection]
    rule_recall: float  # injected defects whose rule was named, on whatever line
    fix_exact: float  # of the injected defects found: at and fix right to the character
    false_per_100_clean: float
    validity: float


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


def placed_findings(answer: Answer, example: Example) -> list[AnswerFinding]:
    """The findings of an answer as they are served: on the line their text stands on, or dropped."""
    texts = [line.text for line in example.unit.lines]
    placed = ((finding, placed_line(finding, texts)) for finding in answer.findings)
    return [msgspec.structs.replace(finding, line=line) for finding, line in placed if line is not None]


def score(examples: Sequence[Example], texts: Sequence[str], catalogue: Catalogue) -> Scores:
    """Score one model's answers. Findings of an answer that is not valid do not count as found."""
    found: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    false: Counter[str] = Counter()
    valid = clean = false_on_clean = named = exact = planted_found = planted = 0
    for example, text in zip(examples, texts, strict=True):
        answer = read_answer(text, example, catalogue)
        valid += answer is not None
        said = placed_findings(answer, example) if answer is not None else []
        outcome = _match(list(example.findings), said)
        for finding in outcome.missed:
            missed[finding.rule] += 1
        for finding in outcome.false:
            false[finding.rule] += 1
        for truth, finding in outcome.found:
            found[truth.rule] += 1
            if catalogue[truth.rule].origin == "injected":
                planted_found += 1
                exact += (truth.at, truth.fix) == (finding.at, finding.fix)
        if not example.findings:
            clean += 1
            false_on_clean += len(said)
        injected = [truth for truth in example.findings if catalogue[truth.rule].origin == "injected"]
        planted += len(injected)
        named += sum(any(finding.rule == truth.rule for finding in said) for truth in injected)
    by_rule = {rule: Detection(found[rule], missed[rule], false[rule]) for rule in catalogue.ids}
    return Scores(
        injected=_total(by_rule, "injected", catalogue),
        hygiene=_total(by_rule, "hygiene", catalogue),
        by_rule=by_rule,
        rule_recall=named / max(planted, 1),
        fix_exact=exact / max(planted_found, 1),
        false_per_100_clean=100 * false_on_clean / max(clean, 1),
        validity=valid / max(len(examples), 1),
    )


class Outcome(msgspec.Struct):
    """Truth and findings of one unit, paired."""

    found: list[tuple[AnswerFinding, AnswerFinding]]
    missed: list[AnswerFinding]
    false: list[AnswerFinding]


def _match(truths: list[AnswerFinding], said: list[AnswerFinding]) -> Outcome:
    """Pair each truth with at most one finding of the same rule and line."""
    outcome = Outcome([], [], list(said))
    for truth in truths:
        same = next((f for f in outcome.false if (f.rule, f.line) == (truth.rule, truth.line)), None)
        if same is None:
            outcome.missed.append(truth)
        else:
            outcome.false.remove(same)
            outcome.found.append((truth, same))
    return outcome


def _total(by_rule: dict[str, Detection], origin: str, catalogue: Catalogue) -> Detection:
    rules = [by_rule[rule.id] for rule in catalogue.rules if rule.origin == origin]
    return Detection(
        sum(rule.found for rule in rules),
        sum(rule.missed for rule in rules),
        sum(rule.false for rule in rules),
    )


_WORD = re.compile(r"[A-Za-z_]\w{2,}")


def length_retention(teacher: Sequence[str], student: Sequence[str]) -> float:
    """The student's answer length beside the teacher's on the same units (characters), at most 1 a unit."""
    shares = [min(len(s) / len(t), 1.0) for t, s in zip(teacher, student, strict=True) if t]
    return sum(shares) / max(len(shares), 1)


def term_retention(examples: Sequence[Example], teacher: Sequence[str], student: Sequence[str]) -> float:
    """Of the technical terms in the teacher's answers, the share the student uses for the same unit.

    A term is a word of the unit's own code, or the name of a rule that the answer reports.
    """
    kept = total = 0
    for example, taught, learnt in zip(examples, teacher, student, strict=True):
        code = set(_WORD.findall(example.unit.code))
        terms = {word for word in _WORD.findall(taught) if word in code}
        terms |= set(re.findall(r'"rule":"([a-z-]+)"', taught))
        own = set(_WORD.findall(learnt)) | set(re.findall(r'"rule":"([a-z-]+)"', learnt))
        kept += len(terms & own)
        total += len(terms)
    return kept / max(total, 1)


def choose_thresholds(
    examples: Sequence[Example],
    texts: Sequence[str],
    confidences: Sequence[Sequence[float]],
    catalogue: Catalogue,
    precision: float,
) -> dict[str, float]:
    """For each rule the lowest confidence from which on its findings on held-out code are right often enough.

    Args:
        confidences: of each answer's findings, in order. precision: the share that must be right.

    Returns:
        A threshold for every rule; 0.9 where no confidence reaches the precision, 0.5 for a rule that was
        never reported.
    """
    seen: dict[str, list[tuple[float, bool]]] = {rule: [] for rule in catalogue.ids}
    for example, text, sure in zip(examples, texts, confidences, strict=True):
        answer = read_answer(text, example, catalogue)
        # Only answers in the compact form have confidences; a grammar allows no other when serving.
        if answer is None or len(sure) != len(answer.findings):
            continue
        true = {(finding.rule, finding.line) for finding in example.findings}
        texts_of_unit = [line.text for line in example.unit.lines]
        for finding, confidence in zip(answer.findings, sure, strict=True):
            line = placed_line(finding, texts_of_unit)
            if line is not None:
                seen[finding.rule].append((confidence, (finding.rule, line) in true))
    return {rule: _threshold(points, precision) for rule, points in seen.items()}


def _threshold(points: list[tuple[float, bool]], precision: float) -> float:
    if not points:
        return 0.5
    ranked = sorted(points, reverse=True)
    right, best = 0, 0.9
    for count, (confidence, correct) in enumerate(ranked, start=1):
        right += correct
        # Findings of equal confidence are shown together or not at all.
        last = count == len(ranked) or ranked[count][0] < confidence
        if last and right / count >= precision:
            best = confidence
    return round(min(max(best - 1e-4, 0.05), 0.95), 4)
