"""From findings and known truth to numbers; every measure is defined in docs/evaluation.md."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from bundle.answer import AnswerFinding
from bundle.rules import Catalogue
from compress.data.examples import Example
from compress.evaluation.answers import Said
from compress.evaluation.measures import Tallies, bootstrap_intervals, measures


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


class Estimate(msgspec.Struct, frozen=True):
    """A measure and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What one model's findings on the held-out units are worth. Shares are 0..1.

    The estimates are the measures of `compress.evaluation.measures`, by their names there.
    """

    injected: Detection
    hygiene: Detection
    hygiene_natural: Detection  # on units as written
    hygiene_planted: Detection  # on units with planted hygiene
    by_rule: dict[str, Detection]
    precision: Estimate
    recall: Estimate
    f1: Estimate
    macro_f1: Estimate
    joint: Estimate
    rule_recall: Estimate
    fix_exact: Estimate
    hygiene_precision: Estimate
    hygiene_recall: Estimate
    hygiene_f1: Estimate
    macro_hygiene_f1: Estimate
    joint_hygiene: Estimate
    hygiene_natural_f1: Estimate
    false_per_100_clean: Estimate
    injected_per_100_natural: Estimate
    realistic_precision: Estimate
    validity: Estimate
    unaided: Estimate
    contradicted: Estimate


class Outcome(msgspec.Struct):
    """Truth and findings of one unit, paired."""

    found: list[tuple[AnswerFinding, AnswerFinding]]
    missed: list[AnswerFinding]
    false: list[AnswerFinding]


def match(truths: Sequence[AnswerFinding], said: Sequence[AnswerFinding]) -> Outcome:
    """Pair each truth with at most one finding of the same rule and line: the first that was said."""
    outcome = Outcome([], [], list(said))
    for truth in truths:
        same = next((f for f in outcome.false if (f.rule, f.line) == (truth.rule, truth.line)), None)
        if same is None:
            outcome.missed.append(truth)
        else:
            outcome.false = [finding for finding in outcome.false if finding is not same]
            outcome.found.append((truth, same))
    return outcome


def score(examples: Sequence[Example], said: Sequence[Said], catalogue: Catalogue, seed: int = 0) -> Scores:
    """Score what one model said. Findings of an answer that is not valid do not count as found.

    Args:
        seed: of the bootstrap.
    """
    tallies = tally(examples, said, catalogue)
    intervals = bootstrap_intervals(tallies, seed)
    estimates: dict[str, Any] = {
        name: Estimate(float(values[0]), *intervals[name])
        for name, values in measures(tallies, np.ones((1, len(examples)))).items()
    }
    everywhere = np.ones(len(examples), dtype=bool)
    hygiene = tallies.origin == "hygiene"
    return Scores(
        injected=_detection(tallies, everywhere, tallies.origin == "injected"),
        hygiene=_detection(tallies, everywhere, hygiene),
        hygiene_natural=_detection(tallies, tallies.planted == "", hygiene),
        hygiene_planted=_detection(tallies, tallies.planted == "hygiene", hygiene),
        by_rule={
            rule: _detection(tallies, everywhere, np.array([rule == each for each in catalogue.ids]))
            for rule in catalogue.ids
        },
        **estimates,
    )


def tally(examples: Sequence[Example], said: Sequence[Said], catalogue: Catalogue) -> Tallies:
    """Count each unit by itself."""
    place = {rule: index for index, rule in enumerate(catalogue.ids)}
    tallies = Tallies.empty([rule.origin for rule in catalogue.rules], len(examples))
    for unit, (example, each) in enumerate(zip(examples, said, strict=True)):
        outcome = match(example.findings, each.findings)
        for truth, finding in outcome.found:
            tallies.found[unit, place[truth.rule]] += 1
            exact = (truth.at, truth.fix) == (finding.at, finding.fix)
            tallies.exact[unit] += exact and catalogue[truth.rule].origin == "injected"
        for finding in outcome.missed:
            tallies.missed[unit, place[finding.rule]] += 1
        for finding in outcome.false:
            tallies.false[unit, place[finding.rule]] += 1
        named = {finding.rule for finding in each.findings}
        tallies.named[unit] = sum(
            truth.rule in named for truth in example.findings if catalogue[truth.rule].origin == "injected"
        )
        tallies.clean[unit] = not example.findings
        tallies.valid[unit] = each.valid
        tallies.unaided[unit] = each.valid and not each.aided
        tallies.contradicted[unit] = each.contradicted
        if example.planted is not None:
            tallies.planted[unit] = catalogue[example.planted].origin
            # Natural code may break the planted hygiene rule too: then all of them must be found.
            tallies.joint[unit] = all(finding.rule != example.planted for finding in outcome.missed)
    return tallies


def _detection(tallies: Tallies, units: np.ndarray, rules: np.ndarray) -> Detection:
    chosen = np.ix_(units, rules)
    return Detection(*(int(counts[chosen].sum()) for counts in (tallies.found, tallies.missed, tallies.false)))


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
