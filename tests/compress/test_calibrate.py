"""Calibrated confidences and the thresholds chosen on them."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.confidence import calibrated, check_calibration
from bundle.rules import load_catalogue
from compress.evaluation.answers import read_said
from compress.evaluation.calibrate import (
    LEAST_FINDINGS,
    LEAST_OF_A_RULE,
    LEAST_OF_OWN,
    NEVER,
    Judged,
    choose_thresholds,
    expected_calibration_error,
    fit_calibration,
    fit_calibrations,
    judge,
)
from tests.compress.test_scores import COMPARISON, OFF_BY_ONE, answer, example

CATALOGUE = load_catalogue()
RULE = "off-by-one"


def judged(points: list[tuple[float, bool]], rule: str = RULE, clean: bool = False) -> list[Judged]:
    return [Judged(rule, confidence, right, clean) for confidence, right in points]


def drawn(count: int, seed: int) -> list[Judged]:
    """Findings of a student that is too sure: right as often as the square of what it says."""
    rng = random.Random(seed)
    confidences = [rng.random() for _ in range(count)]
    return judged([(confidence, rng.random() < confidence**2) for confidence in confidences])


confidences = st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 1.0])
many = st.lists(st.tuples(confidences, st.booleans()), min_size=LEAST_FINDINGS, max_size=120)


@given(many)
def test_any_findings_give_a_calibration_that_keeps_their_order(points: list[tuple[float, bool]]) -> None:
    knots = fit_calibration(judged(points))
    check_calibration(knots)
    assert 2 <= len(knots) <= 12
    ranked = sorted({confidence for confidence, _ in points})
    shares = [calibrated(confidence, knots) for confidence in ranked]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


def test_fewer_findings_give_none() -> None:
    assert fit_calibration(drawn(LEAST_FINDINGS - 1, seed=1)) == ()
    assert fit_calibration(drawn(LEAST_FINDINGS, seed=1)) != ()


def test_a_rule_has_a_curve_of_its_own_or_that_of_its_kind() -> None:
    sure = judged([(0.5, True)] * LEAST_FINDINGS, rule="bare-except")
    unsure = judged([(0.5, False)] * LEAST_OF_OWN)
    few = judged([(0.5, True)] * (LEAST_OF_OWN // 2), rule="wrong-operator")
    curves = fit_calibrations([*sure, *unsure, *few], CATALOGUE)
    assert set(curves) == set(CATALOGUE.ids)
    shares = {rule: calibrated(0.5, curves[rule]) for rule in curves}
    assert shares["bare-except"] == shares["mutable-default"] == pytest.approx(1.0, abs=0.01)
    assert shares[RULE] == pytest.approx(0.0, abs=0.01)
    assert shares["wrong-operator"] == shares["swapped-arguments"] == pytest.approx(1 / 3, abs=0.01)
    assert "bare-except" not in fit_calibrations(unsure, CATALOGUE), "no curve of another kind"


def test_what_is_learnt_on_some_findings_holds_on_others() -> None:
    knots = fit_calibration(drawn(2000, seed=1))
    fresh = drawn(2000, seed=2)
    for confidence in (0.3, 0.5, 0.7, 0.9):
        assert calibrated(confidence, knots) == pytest.approx(confidence**2, abs=0.08)
    after = [Judged(f.rule, calibrated(f.confidence, knots), f.right, f.clean) for f in fresh]
    before_error, after_error = expected_calibration_error(fresh), expected_calibration_error(after)
    assert before_error == pytest.approx(1 / 6, abs=0.03)  # the mean of x - x²
    assert after_error < 0.04


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_error_is_what_a_loop_over_ten_bins_gives(points: list[tuple[float, bool]]) -> None:
    ranked = sorted(points)
    bins = min(10, len(ranked))
    sizes = [len(ranked) // bins + (number < len(ranked) % bins) for number in range(bins)]
    total, start = 0.0, 0
    for size in sizes:
        own = ranked[start : start + size]
        gap = sum(confidence for confidence, _ in own) / size - sum(right for _, right in own) / size
        total += size / len(ranked) * abs(gap)
        start += size
    assert expected_calibration_error(judged(points)) == pytest.approx(total)


def test_no_findings_have_no_error() -> None:
    assert expected_calibration_error([]) is None


def test_findings_are_judged_as_they_are_scored() -> None:
    flawed, clean = example(OFF_BY_ONE), example()
    twice = read_said(answer(OFF_BY_ONE, OFF_BY_ONE, COMPARISON), [0.9, 0.8, 0.7], flawed, CATALOGUE)
    false = read_said(answer(COMPARISON), [0.6], clean, CATALOGUE)
    no_form = read_said(answer(OFF_BY_ONE).replace(":", ": "), [], flawed, CATALOGUE)
    assert judge([flawed, clean, flawed], [twice, false, no_form]) == [
        Judged("off-by-one", 0.9, True, False),
        Judged("off-by-one", 0.8, False, False),
        Judged("wrong-comparison", 0.7, False, False),
        Judged("wrong-comparison", 0.6, False, True),
    ]


def threshold(points: list[tuple[float, bool]], precision: float) -> float:
    """Of off-by-one, for findings on flawed units."""
    return choose_thresholds(judged(points), CATALOGUE, precision, clean_units=0, false_per_100_clean=1.0)[RULE]


def test_a_threshold_lets_in_as_much_as_the_precision_allows() -> None:
    points = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False), (0.4, False)]
    # Right among those shown from each confidence on: 1, 1, 2/3, 3/4, 3/5, 3/6.
    assert [threshold(points, precision) for precision in (0.99, 0.75, 0.6, 0.5)] == [0.8, 0.6, 0.5, 0.4]


def test_findings_of_one_confidence_stand_or_fall_together() -> None:
    assert threshold([(0.6, True), (0.6, False), (0.6, False)], 0.7) == NEVER
    assert threshold([(0.6, True), (0.6, True), (0.6, False)], 0.6) == 0.6


def test_a_rule_that_is_never_right_is_not_shown() -> None:
    right = judged([(0.5, True)] * 20, rule="bare-except")
    wrong = judged([(0.9, False)] * LEAST_OF_A_RULE)
    chosen = choose_thresholds(right + wrong, CATALOGUE, 0.7, clean_units=10, false_per_100_clean=1.0)
    assert (chosen[RULE], chosen["bare-except"]) == (NEVER, 0.5)


def test_a_rule_hardly_ever_reported_takes_the_threshold_of_all() -> None:
    points = judged(
        [(0.8, True), (0.7, True), (0.6, True), (0.3, True), (0.2, False), (0.1, False)], rule="bare-except"
    )
    few = judged([(0.4, False)] * (LEAST_OF_A_RULE - 1))
    chosen = choose_thresholds(points + few, CATALOGUE, 0.9, clean_units=10, false_per_100_clean=1.0)
    assert set(chosen) == set(CATALOGUE.ids)
    assert chosen["bare-except"] == 0.3
    assert chosen[RULE] == chosen["wrong-operator"] == 0.6, "four false findings at 0.4 spoil what is below"


@given(
    st.lists(st.tuples(st.sampled_from(["off-by-one", "bare-except"]), st.floats(0, 0.99), st.booleans()), max_size=60),
    st.integers(1, 400),
    st.sampled_from([0.0, 1.0, 5.0, 20.0]),
)
def test_clean_units_show_no_more_than_is_allowed(points, clean_units: int, allowed: float) -> None:
    """The right ones are on flawed units, the false ones on clean ones."""
    findings = [Judged(rule, confidence, right, not right) for rule, confidence, right in points]
    chosen = choose_thresholds(findings, CATALOGUE, 0.1, clean_units, allowed)
    false = [each for each in findings if each.clean and each.confidence >= chosen[each.rule]]
    assert len(false) <= allowed * clean_units / 100


def test_the_floor_is_no_higher_than_it_must_be() -> None:
    findings = judged([(0.9, True)] * 30 + [(0.5, True)] * 30)
    findings += judged([(0.8, False), (0.7, False)], clean=True)
    chosen = choose_thresholds(findings, CATALOGUE, 0.5, clean_units=100, false_per_100_clean=1.0)
    assert 0.7 < chosen[RULE] < 0.7 + 1e-9
    assert choose_thresholds(findings, CATALOGUE, 0.5, 100, false_per_100_clean=2.0)[RULE] == 0.5


def test_knots_are_few_and_weighted_by_findings() -> None:
    findings = judged([(0.2, False)] * 50 + [(0.8, True)] * 40 + [(0.8, False)] * 10)
    knots = np.array(fit_calibration(findings))
    assert knots[:, 0].tolist() == pytest.approx([0.0, 0.2, 0.8, 1.0])
    assert knots[:, 1].tolist() == pytest.approx([0.0, 0.002, 0.99 * 0.8 + 0.008, 0.99 * 0.8 + 0.01])
