"""From answers and known truth to numbers, each worked out by hand beside it."""

import pytest

from bundle.answer import Answer, AnswerFinding, write_answer
from bundle.rules import load_catalogue
from bundle.units import Unit, UnitLine
from compress.data.examples import Example
from compress.evaluation.answers import read_answer, read_said, shown
from compress.evaluation.scores import Detection, Scores, length_retention, score, term_retention

CATALOGUE = load_catalogue()
UNIT = Unit(
    kind="function",
    name="pick",
    lines=(
        UnitLine(10, "def pick(items, limit=[]):", 0),
        UnitLine(11, "    if limit + items <= 1:", 0),
        UnitLine(12, "        return items[limit] + 1", 0),
    ),
    summary=None,
)
OFF_BY_ONE = AnswerFinding("off-by-one", 2, "1", "0")
COMPARISON = AnswerFinding("wrong-comparison", 2, "<=", "<")
OPERATOR = AnswerFinding("wrong-operator", 3, "+", "-")
DEFAULT = AnswerFinding("mutable-default", 1, "[]", None)


def example(*findings: AnswerFinding, planted: str | None = None) -> Example:
    return Example("project", "m.py", UNIT, findings, planted)


def answer(*findings: AnswerFinding, summary: str = "") -> str:
    return write_answer(Answer(findings, summary))


def scored(examples: list[Example], texts: list[str]) -> Scores:
    """The scores of answers as they were written."""
    said = [read_said(text, [], each, CATALOGUE) for text, each in zip(texts, examples, strict=True)]
    return score(examples, said, CATALOGUE)


def test_precision_recall_and_f1_by_hand() -> None:
    detection = Detection(found=3, missed=1, false=2)
    assert detection.precision == pytest.approx(3 / 5)
    assert detection.recall == pytest.approx(3 / 4)
    assert detection.f1 == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))


def test_nothing_to_find_and_nothing_said_is_zero_and_no_error() -> None:
    nothing = Detection(0, 0, 0)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)


def test_one_set_of_answers_by_hand() -> None:
    examples = [example(OFF_BY_ONE), example(COMPARISON), example(OPERATOR), example(DEFAULT), example(), example()]
    wrong_line = AnswerFinding("wrong-operator", 2, "+", None)
    wrong_fix = AnswerFinding("wrong-comparison", 2, "<=", ">")
    texts = [
        answer(OFF_BY_ONE),  # found, fix exact
        answer(wrong_fix),  # found, fix not exact
        answer(wrong_line),  # rule named, line wrong: one missed, one false
        answer(DEFAULT, OPERATOR),  # hygiene found, one false injected
        answer(OPERATOR),  # false on clean code
        answer(),
    ]
    scores = scored(examples, texts)

    assert scores.injected == Detection(found=2, missed=1, false=3)
    assert scores.hygiene == Detection(found=1, missed=0, false=0)
    assert scores.by_rule["wrong-operator"] == Detection(found=0, missed=1, false=3)
    assert scores.rule_recall.value == pytest.approx(3 / 3)
    assert scores.fix_exact.value == pytest.approx(1 / 2)
    assert scores.false_per_100_clean.value == pytest.approx(100 * 1 / 2)
    assert scores.validity.value == 1.0


def test_a_truth_is_matched_once_and_a_repeated_finding_is_false() -> None:
    scores = scored([example(OFF_BY_ONE)], [answer(OFF_BY_ONE, OFF_BY_ONE)])
    assert scores.injected == Detection(found=1, missed=0, false=1)


def test_two_truths_of_one_rule_and_line_need_two_findings() -> None:
    truths = example(OFF_BY_ONE, OFF_BY_ONE)
    assert scored([truths], [answer(OFF_BY_ONE)]).injected == Detection(1, 1, 0)
    assert scored([truths], [answer(OFF_BY_ONE, OFF_BY_ONE)]).injected == Detection(2, 0, 0)


def test_the_right_line_with_another_rule_is_missed_and_false() -> None:
    scores = scored([example(OFF_BY_ONE)], [answer(COMPARISON)])
    assert scores.injected == Detection(found=0, missed=1, false=1)
    assert scores.rule_recall.value == 0.0


INVALID = {
    "cut off": answer(OFF_BY_ONE)[:-3],
    "empty": "",
    "unknown rule": answer(OFF_BY_ONE, AnswerFinding("off-by-two", 2, "1", None)),
    "line past the end": answer(OFF_BY_ONE, AnswerFinding("off-by-one", 4, "1", None)),
    "line zero": answer(OFF_BY_ONE, AnswerFinding("off-by-one", 0, "1", None)),
}


def test_a_finding_that_contradicts_itself_is_left_out_as_it_is_when_served() -> None:
    misplaced = AnswerFinding("off-by-one", 1, "nowhere", None)
    scores = scored([example(OFF_BY_ONE)], [answer(OFF_BY_ONE, misplaced)])
    assert scores.injected == Detection(found=1, missed=0, false=0)
    assert scores.validity.value == 1.0


def test_a_finding_that_the_syntax_contradicts_is_left_out_and_counted() -> None:
    nothing_there = AnswerFinding("bare-except", 1, "def", None)
    scores = scored([example(), example(OFF_BY_ONE)], [answer(nothing_there), answer(OFF_BY_ONE, OPERATOR)])
    assert scores.hygiene == Detection(found=0, missed=0, false=0)
    assert scores.contradicted.value == pytest.approx(1 / 3), "of all three findings"


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_an_invalid_answer_finds_nothing_even_where_part_of_it_was_right(text: str) -> None:
    scores = scored([example(OFF_BY_ONE), example()], [text, text])
    assert read_answer(text, example(), CATALOGUE) is None
    assert scores.injected == Detection(found=0, missed=1, false=0)
    assert (scores.validity.value, scores.false_per_100_clean.value) == (0.0, 0.0)


def test_false_findings_are_counted_a_hundred_clean_units() -> None:
    clean, said = [example()] * 8, [answer(OFF_BY_ONE, OPERATOR), answer(DEFAULT), *[answer()] * 6]
    flawed, too_much = example(COMPARISON), answer(COMPARISON, OPERATOR)
    scores = scored([*clean, flawed], [*said, too_much])
    assert scores.false_per_100_clean.value == pytest.approx(100 * 3 / 8), "what is false on flawed code is apart"


def test_no_units_give_zeros_and_no_error() -> None:
    scores = scored([], [])
    assert (
        scores.validity.value,
        scores.rule_recall.value,
        scores.fix_exact.value,
        scores.false_per_100_clean.value,
    ) == (0, 0, 0, 0)


def test_as_many_answers_as_units_are_needed() -> None:
    with pytest.raises(ValueError):
        score([example()], [], CATALOGUE)


def test_the_truth_itself_scores_one() -> None:
    examples = [example(OFF_BY_ONE), example(COMPARISON, OPERATOR), example(DEFAULT), example()]
    scores = scored(examples, [each.answer_text for each in examples])
    assert (scores.injected.f1, scores.hygiene.f1, scores.fix_exact.value, scores.validity.value) == (
        1.0,
        1.0,
        1.0,
        1.0,
    )


def test_always_clean_finds_nothing_and_says_nothing_false() -> None:
    scores = scored([example(OFF_BY_ONE), example()], [answer(), answer()])
    assert (scores.injected.f1, scores.false_per_100_clean.value, scores.validity.value) == (0.0, 0.0, 1.0)


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


def test_a_fix_that_changes_nothing_drops_its_finding_as_it_does_when_served() -> None:
    idle = AnswerFinding("off-by-one", 2, "1", "1")
    assert scored([example()], [answer(idle)]).injected == Detection(0, 0, 0)


def test_planted_and_natural_units_are_told_apart() -> None:
    examples = [
        example(DEFAULT),  # as written
        example(),
        example(OFF_BY_ONE, DEFAULT, planted="off-by-one"),
        example(COMPARISON, planted="wrong-comparison"),
        example(DEFAULT, planted="mutable-default"),
    ]
    texts = [answer(), answer(OPERATOR), answer(OFF_BY_ONE), answer(OPERATOR), answer(DEFAULT)]
    scores = scored(examples, texts)
    assert scores.joint.value == pytest.approx(1 / 2)
    assert scores.joint_hygiene.value == 1.0
    assert scores.hygiene_natural == Detection(found=0, missed=1, false=0)
    assert scores.hygiene_planted == Detection(found=1, missed=0, false=0)
    assert scores.injected_per_100_natural.value == pytest.approx(100 * 1 / 2)


def test_planted_hygiene_is_found_when_every_finding_of_its_rule_is() -> None:
    twice = example(DEFAULT, AnswerFinding("mutable-default", 1, "limit=[]", None), planted="mutable-default")
    assert scored([twice], [answer(DEFAULT)]).joint_hygiene.value == 0.0
    assert scored([twice], [twice.answer_text]).joint_hygiene.value == 1.0


def test_macro_f1_is_the_mean_over_the_rules_that_occur() -> None:
    examples = [example(OFF_BY_ONE)] * 3 + [example(OPERATOR)]
    texts = [answer(OFF_BY_ONE), answer(OFF_BY_ONE), answer(OFF_BY_ONE), answer(COMPARISON)]
    scores = scored(examples, texts)
    assert scores.macro_f1.value == pytest.approx((1.0 + 0.0) / 2), "what was only said falsely does not occur"
    assert scores.injected.f1 == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))


def test_precision_at_one_defect_in_a_hundred_units_by_hand() -> None:
    planted = [example(OFF_BY_ONE, planted="off-by-one")] * 4
    natural = [example()] * 50
    texts = [answer(OFF_BY_ONE)] * 3 + [answer()] + [answer(OPERATOR)] + [answer()] * 49
    # Of 100 units one is flawed and found 3 times in 4; every unit has 1/50 false findings.
    expected = 0.01 * 3 / 4 / (0.01 * 3 / 4 + 1 / 50)
    assert scored(planted + natural, texts).realistic_precision.value == pytest.approx(expected)


def test_only_what_is_sure_enough_for_its_rule_is_shown() -> None:
    text = answer(OFF_BY_ONE, COMPARISON, OPERATOR)
    said = [read_said(text, [0.9, 0.5, 0.4], example(), CATALOGUE)]
    thresholds = dict.fromkeys(CATALOGUE.ids, 0.5) | {"off-by-one": 0.95}
    assert [finding.rule for finding in shown(said, thresholds)[0].findings] == ["wrong-comparison"]
    assert shown(said, dict.fromkeys(CATALOGUE.ids, 0.0)) == said


def test_a_finding_without_a_confidence_counts_and_is_never_shown() -> None:
    spaced = answer(OFF_BY_ONE).replace(":", ": ")  # readable, but not the form whose tokens have confidences
    said = [read_said(spaced, [], example(OFF_BY_ONE), CATALOGUE)]
    assert score([example(OFF_BY_ONE)], said, CATALOGUE).injected.found == 1
    assert shown(said, dict.fromkeys(CATALOGUE.ids, 0.0))[0].findings == ()
