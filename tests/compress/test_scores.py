"""From answers and known truth to numbers, each worked out by hand beside it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.answer import Answer, AnswerFinding, write_answer
from bundle.rules import load_catalogue
from bundle.units import Unit, UnitLine
from compress.data.examples import Example
from compress.scores import (
    Detection,
    choose_thresholds,
    length_retention,
    read_answer,
    score,
    term_retention,
)

CATALOGUE = load_catalogue()
UNIT = Unit(
    kind="function",
    name="pick",
    lines=(
        UnitLine(10, "def pick(items, limit):", 0),
        UnitLine(11, "    if limit <= 1:", 0),
        UnitLine(12, "        return items[limit] + 1", 0),
    ),
    summary=None,
)
OFF_BY_ONE = AnswerFinding("off-by-one", 2, "1", "0")
COMPARISON = AnswerFinding("wrong-comparison", 2, "<=", "<")
OPERATOR = AnswerFinding("wrong-operator", 3, "+", "-")
BARE = AnswerFinding("bare-except", 1, "def", None)


def example(*findings: AnswerFinding) -> Example:
    return Example("project", "m.py", UNIT, findings, None)


def answer(*findings: AnswerFinding, summary: str = "") -> str:
    return write_answer(Answer(findings, summary))


def test_precision_recall_and_f1_by_hand() -> None:
    detection = Detection(found=3, missed=1, false=2)
    assert detection.precision == pytest.approx(3 / 5)
    assert detection.recall == pytest.approx(3 / 4)
    assert detection.f1 == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))


def test_nothing_to_find_and_nothing_said_is_zero_and_no_error() -> None:
    nothing = Detection(0, 0, 0)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)


def test_one_set_of_answers_by_hand() -> None:
    examples = [example(OFF_BY_ONE), example(COMPARISON), example(OPERATOR), example(BARE), example(), example()]
    wrong_line = AnswerFinding("wrong-operator", 2, "<=", None)
    wrong_fix = AnswerFinding("wrong-comparison", 2, "<=", ">")
    texts = [
        answer(OFF_BY_ONE),  # found, fix exact
        answer(wrong_fix),  # found, fix not exact
        answer(wrong_line),  # rule named, line wrong: one missed, one false
        answer(BARE, OPERATOR),  # hygiene found, one false injected
        answer(OPERATOR),  # false on clean code
        answer(),
    ]
    scores = score(examples, texts, CATALOGUE)

    assert scores.injected == Detection(found=2, missed=1, false=3)
    assert scores.hygiene == Detection(found=1, missed=0, false=0)
    assert scores.by_rule["wrong-operator"] == Detection(found=0, missed=1, false=3)
    assert scores.rule_recall == pytest.approx(3 / 3)
    assert scores.fix_exact == pytest.approx(1 / 2)
    assert scores.false_per_100_clean == pytest.approx(100 * 1 / 2)
    assert scores.validity == 1.0


def test_a_truth_is_matched_once_and_a_repeated_finding_is_false() -> None:
    scores = score([example(OFF_BY_ONE)], [answer(OFF_BY_ONE, OFF_BY_ONE)], CATALOGUE)
    assert scores.injected == Detection(found=1, missed=0, false=1)


def test_two_truths_of_one_rule_and_line_need_two_findings() -> None:
    truths = example(OFF_BY_ONE, OFF_BY_ONE)
    assert score([truths], [answer(OFF_BY_ONE)], CATALOGUE).injected == Detection(1, 1, 0)
    assert score([truths], [answer(OFF_BY_ONE, OFF_BY_ONE)], CATALOGUE).injected == Detection(2, 0, 0)


def test_the_right_line_with_another_rule_is_missed_and_false() -> None:
    scores = score([example(OFF_BY_ONE)], [answer(COMPARISON)], CATALOGUE)
    assert scores.injected == Detection(found=0, missed=1, false=1)
    assert scores.rule_recall == 0.0


INVALID = {
    "cut off": answer(OFF_BY_ONE)[:-3],
    "empty": "",
    "unknown rule": answer(OFF_BY_ONE, AnswerFinding("off-by-two", 2, "1", None)),
    "line past the end": answer(OFF_BY_ONE, AnswerFinding("off-by-one", 4, "1", None)),
    "line zero": answer(OFF_BY_ONE, AnswerFinding("off-by-one", 0, "1", None)),
}


def test_a_finding_that_contradicts_itself_is_left_out_as_it_is_when_served() -> None:
    misplaced = AnswerFinding("off-by-one", 1, "nowhere", None)
    scores = score([example(OFF_BY_ONE)], [answer(OFF_BY_ONE, misplaced)], CATALOGUE)
    assert scores.injected == Detection(found=1, missed=0, false=0)
    assert scores.validity == 1.0


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_an_invalid_answer_finds_nothing_even_where_part_of_it_was_right(text: str) -> None:
    scores = score([example(OFF_BY_ONE), example()], [text, text], CATALOGUE)
    assert read_answer(text, example(), CATALOGUE) is None
    assert scores.injected == Detection(found=0, missed=1, false=0)
    assert (scores.validity, scores.false_per_100_clean) == (0.0, 0.0)


def test_false_findings_are_counted_a_hundred_clean_units() -> None:
    clean, said = [example()] * 8, [answer(OFF_BY_ONE, OPERATOR), answer(BARE), *[answer()] * 6]
    flawed, too_much = example(COMPARISON), answer(COMPARISON, OPERATOR)
    scores = score([*clean, flawed], [*said, too_much], CATALOGUE)
    assert scores.false_per_100_clean == pytest.approx(100 * 3 / 8), "what is false on flawed code is apart"


def test_no_units_give_zeros_and_no_error() -> None:
    scores = score([], [], CATALOGUE)
    assert (scores.validity, scores.rule_recall, scores.fix_exact, scores.false_per_100_clean) == (0, 0, 0, 0)


def test_as_many_answers_as_units_are_needed() -> None:
    with pytest.raises(ValueError):
        score([example()], [], CATALOGUE)


def test_the_truth_itself_scores_one() -> None:
    examples = [example(OFF_BY_ONE), example(COMPARISON, OPERATOR), example(BARE), example()]
    scores = score(examples, [each.answer_text for each in examples], CATALOGUE)
    assert (scores.injected.f1, scores.hygiene.f1, scores.fix_exact, scores.validity) == (1.0, 1.0, 1.0, 1.0)


def test_always_clean_finds_nothing_and_says_nothing_false() -> None:
    scores = score([example(OFF_BY_ONE), example()], [answer(), answer()], CATALOGUE)
    assert (scores.injected.f1, scores.false_per_100_clean, scores.validity) == (0.0, 0.0, 1.0)


def test_length_retention_by_hand() -> None:
    assert length_retention(["aaaa", "aaaa", "aa"], ["aa", "aaaaaaaa", "aa"]) == pytest.approx((0.5 + 1 + 1) / 3)
    assert length_retention(["aaaa", ""], ["", "aa"]) == 0.0
    assert length_retention([], []) == 0.0


def test_term_retention_by_hand() -> None:
    # Terms of the code are words of three letters on: def, pick, items, limit, return.
    taught = answer(OFF_BY_ONE, summary="Return items below the limit")  # items, limit and the rule
    learnt = answer(OFF_BY_ONE, summary="Give items back")  # items and the rule
    assert term_retention([example()], [taught], [learnt]) == pytest.approx(2 / 3)
    assert term_retention([example()], [taught], [taught]) == 1.0
    assert term_retention([example()], [taught], [answer(COMPARISON, summary="Nothing alike")]) == 0.0


def thresholds(points: list[tuple[float, bool]], precision: float) -> float:
    """The threshold of off-by-one for findings of these confidences, right or not."""
    examples = [example(OFF_BY_ONE) if right else example() for _, right in points]
    texts = [answer(OFF_BY_ONE)] * len(points)
    chosen = choose_thresholds(examples, texts, [[sure] for sure, _ in points], CATALOGUE, precision)
    return chosen["off-by-one"]


def test_a_threshold_lets_in_as_much_as_the_precision_allows() -> None:
    points = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False), (0.4, False)]
    # Right among those shown from each confidence on: 1, 1, 2/3, 3/4, 3/5, 3/6.
    assert thresholds(points, 0.99) == pytest.approx(0.8, abs=1e-3)
    assert thresholds(points, 0.75) == pytest.approx(0.6, abs=1e-3)
    assert thresholds(points, 0.6) == pytest.approx(0.5, abs=1e-3)
    assert thresholds(points, 0.5) == pytest.approx(0.4, abs=1e-3)


def test_findings_of_one_confidence_stand_or_fall_together() -> None:
    assert thresholds([(0.6, True), (0.6, False), (0.6, False)], 0.7) == pytest.approx(0.9, abs=1e-3)
    assert thresholds([(0.6, True), (0.6, True), (0.6, False)], 0.6) == pytest.approx(0.6, abs=1e-3)


def test_a_rule_that_is_never_right_and_one_never_seen_have_set_thresholds() -> None:
    chosen = choose_thresholds([example()], [answer(OFF_BY_ONE)], [[0.99]], CATALOGUE, 0.7)
    assert chosen["off-by-one"] == pytest.approx(0.9, abs=1e-3)
    assert chosen["wrong-operator"] == 0.5
    assert set(chosen) == set(CATALOGUE.ids)


def test_answers_that_are_invalid_or_have_no_confidences_are_left_out() -> None:
    spaced = answer(OFF_BY_ONE).replace(":", ": ")  # readable, but not the form whose tokens have confidences
    assert read_answer(spaced, example(), CATALOGUE) is not None
    chosen = choose_thresholds([example(), example()], [spaced, "no answer"], [[], []], CATALOGUE, 0.7)
    assert set(chosen.values()) == {0.5}


@given(
    st.lists(st.tuples(st.floats(0.06, 0.94), st.booleans()), min_size=1, max_size=30),
    st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)).map(sorted),
)
def test_a_higher_precision_never_lowers_a_reachable_threshold(points, precisions: list[float]) -> None:
    def reachable(precision: float) -> bool:
        return any(share_right(points, sure) >= precision for sure, _ in points)

    lower, higher = precisions
    if reachable(higher):
        assert thresholds(points, lower) <= thresholds(points, higher)


@given(st.lists(st.tuples(st.sampled_from([n / 10 for n in range(1, 10)]), st.booleans()), min_size=1), st.randoms())
def test_what_a_reachable_threshold_shows_is_right_often_enough(points, rng: random.Random) -> None:
    chosen = thresholds(points, 0.7)
    if any(share_right(points, sure) >= 0.7 for sure, _ in points):
        assert share_right(points, chosen) >= 0.7
    rng.shuffle(points)
    assert thresholds(points, 0.7) == chosen, "the order of the units does not matter"


def share_right(points: list[tuple[float, bool]], threshold: float) -> float:
    shown = [right for sure, right in points if sure >= threshold]
    return sum(shown) / len(shown)
