"""From raw confidences to shares of right findings, and to the thresholds of what is shown by default."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy.optimize import isotonic_regression

from bundle.confidence import Calibration
from bundle.rules import Catalogue
from compress.data.examples import Example
from compress.evaluation.answers import Said
from compress.evaluation.scores import match

LEAST_FINDINGS = 30  # fewer are no ground for a curve
LEAST_OF_OWN = 100  # findings of one rule, for a curve of its own
LEAST_OF_A_RULE = 5  # a rule reported less often takes the threshold of all rules together
NEVER = 1.0  # a threshold that no doubtful finding reaches
_KNOTS = 10
_FINDINGS_A_KNOT = 15
_ECE_BINS = 10
# This much of the raw confidence stays in the calibrated one, so that no two confidences become equal.
_RAW_PART = 0.01
_APART = 1e-6  # of two knots, at least: a hundredth of it still rises


class Judged(msgspec.Struct, frozen=True):
    """One finding on held-out code: its confidence, whether it was right, and whether its unit is clean."""

    rule: str
    confidence: float
    right: bool
    clean: bool


def judge(examples: Sequence[Example], said: Sequence[Said]) -> list[Judged]:
    """Every finding that has a confidence, as `compress.evaluation.scores` would count it."""
    judged = []
    for example, each in zip(examples, said, strict=True):
        right = {id(finding) for _, finding in match(example.findings, each.findings).found}
        judged += [
            Judged(finding.rule, confidence, id(finding) in right, not example.findings)
            for finding, confidence in zip(each.findings, each.confidences, strict=True)
            if confidence is not None
        ]
    return judged


def fit_calibrations(judged: Sequence[Judged], catalogue: Catalogue) -> dict[str, Calibration]:
    """A curve for each rule: how sure a student must be to be right differs from rule to rule.

    A rule with fewer than `LEAST_OF_OWN` findings shares the curve of all rules of its origin; where those
    are fewer than `LEAST_FINDINGS`, it has none.
    """
    curves = {}
    for rule in catalogue.rules:
        own = [finding for finding in judged if finding.rule == rule.id]
        alike = [finding for finding in judged if catalogue[finding.rule].origin == rule.origin]
        curve = fit_calibration(own if len(own) >= LEAST_OF_OWN else alike)
        if curve:
            curves[rule.id] = curve
    return curves


def fit_calibration(judged: Sequence[Judged]) -> Calibration:
    """Knots (raw, calibrated) of a rising curve through the shares of right findings.

    Isotonic regression (Zadrozny and Elkan, KDD 2002), averaged over at most ten groups of findings of like
    confidence, from (0, 0) to 1. Fewer than `LEAST_FINDINGS` findings give no knots.
    """
    if len(judged) < LEAST_FINDINGS:
        return ()
    confidences = np.array([finding.confidence for finding in judged])
    right = np.array([finding.right for finding in judged], dtype=float)
    raw, group, count = np.unique(confidences, return_inverse=True, return_counts=True)
    shares = np.bincount(group, weights=right) / count
    fitted = isotonic_regression(shares, weights=count).x
    knots = min(_KNOTS, len(judged) // _FINDINGS_A_KNOT)
    # Equal confidences fall into one group, by where the middle of them is among all findings.
    middle = np.cumsum(count) - count / 2
    bins = np.minimum((middle * knots / len(judged)).astype(int), knots - 1)
    points = [(0.0, 0.0)]
    for number in np.unique(bins):
        chosen = bins == number
        at = float(np.average(raw[chosen], weights=count[chosen]))
        share = float(np.average(fitted[chosen], weights=count[chosen]))
        if points[-1][0] + _APART < at < 1.0 - _APART:
            points.append((at, share))
    points.append((1.0, float(fitted[-1])))
    return tuple((at, (1 - _RAW_PART) * share + _RAW_PART * at) for at, share in points)


def expected_calibration_error(judged: Sequence[Judged]) -> float | None:
    """The gap between mean confidence and share of right findings, averaged over ten bins of equal mass.

    None without findings. Guo et al., 1706.04599, equation 3, with bins of equal mass instead of equal width.
    """
    if not judged:
        return None
    ranked = sorted((finding.confidence, finding.right) for finding in judged)
    bins = np.array_split(np.array(ranked, dtype=float), min(_ECE_BINS, len(ranked)))
    return float(sum(len(each) * abs(each[:, 0].mean() - each[:, 1].mean()) for each in bins) / len(ranked))


def choose_thresholds(
    judged: Sequence[Judged], catalogue: Catalogue, precision: float, clean_units: int, false_per_100_clean: float
) -> dict[str, float]:
    """For each rule, the confidence from which on a finding is shown.

    It is the lowest from which on the rule's findings on validation code are right often enough; `NEVER`
    where there is none. A rule that was hardly reported takes the threshold of all rules together. All of
    them are then raised to one floor, the lowest at which clean units show few enough findings.

    Args:
        judged: findings on validation code, with the confidences that thresholds are compared with.
        precision: the share of shown findings that must be right.
        clean_units: how many of the validation units have nothing to find.
        false_per_100_clean: findings shown on a hundred of those, at most.
    """
    together = _lowest_precise(judged, precision)
    thresholds = {}
    for rule in catalogue.ids:
        own = [finding for finding in judged if finding.rule == rule]
        thresholds[rule] = _lowest_precise(own, precision) if len(own) >= LEAST_OF_A_RULE else together
    false = sorted(
        (each.confidence for each in judged if each.clean and each.confidence >= thresholds[each.rule]), reverse=True
    )
    allowed = math.floor(false_per_100_clean * clean_units / 100)
    floor = math.nextafter(false[allowed], math.inf) if len(false) > allowed else 0.0
    return {rule: min(max(threshold, floor), NEVER) for rule, threshold in thresholds.items()}


def _lowest_precise(judged: Sequence[Judged], precision: float) -> float:
    ranked = sorted(((finding.confidence, finding.right) for finding in judged), reverse=True)
    right, lowest = 0, NEVER
    for count, (confidence, correct) in enumerate(ranked, start=1):
        right += correct
        # Findings of equal confidence are shown together or not at all.
        last = count == len(ranked) or ranked[count][0] < confidence
        if last and right / count >= precision:
            lowest = confidence
    return lowest
