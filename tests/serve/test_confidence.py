"""A finding's confidence: the decisions that made it, however the tokenizer cuts them; and how it is calibrated."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.confidence import calibrated, check_calibration, finding_confidences

P = math.log(0.5)
Q = math.log(0.1)


def test_one_token_for_the_rule_and_one_for_the_line() -> None:
    tokens = [
        (b'{"findings":[', 0.0),
        (b'{"rule":"off-by-one","line":', P),
        (b"4", P),
        (b',"at":"', P),
        (b"<=", Q),
        (b'","fix":"<"}', Q),
        (b'],"summary":"Find."}', Q),
    ]
    assert finding_confidences(tokens) == pytest.approx([0.125])


def test_every_finding_has_its_own_and_it_begins_at_the_separator() -> None:
    tokens = [
        (b'{"findings":[', 0.0),
        (b'{"rule":"a","line":', P),
        (b"4,", 0.0),
        (b'"at":"x","fix":null', Q),
        (b"},", P),
        (b'{"rule":"b","line":', 0.0),
        (b"1", P),
        (b"2", P),
        (b',"at":"y","fix":"z"}', 0.0),
        (b'],"summary":""}', Q),
    ]
    assert finding_confidences(tokens) == pytest.approx([0.5, 0.125])


@pytest.mark.parametrize(
    ("quote", "sure"),
    [
        ([(b'"at":"', 0.0), (b"na", math.log(0.09)), (b"me", 0.0)], 0.0),
        ([(b'"at":"na', math.log(0.09)), (b"me", 0.0)], 0.0),
        ([(b'"at":"', 0.0), (b"\\", math.log(0.09)), (b'"me', 0.0)], 0.0),
        ([(b'"at":"', 0.0), (b"na", math.log(0.11)), (b"me", math.log(0.001))], 0.5),
        ([(b'"at":"', math.log(0.01)), (b"name", 0.0)], 0.5),
    ],
)
def test_who_meant_to_quote_something_else_contradicts_itself(quote: list[tuple[bytes, float]], sure: float) -> None:
    tokens = [(b'{"findings":[{"rule":"a","line":4,', P), *quote, (b'","fix":null}],"summary":""}', 0.0)]
    assert finding_confidences(tokens) == pytest.approx([sure])


def test_text_that_looks_like_a_finding_inside_a_string_is_not_one() -> None:
    tokens = [(b'{"findings":[],"summary":"', P), (rb",{\"rule\":\"a\",\"line\":1,\"at\":\"", P), (b'"}', P)]
    assert finding_confidences(tokens) == []


def test_a_finding_that_was_not_finished_does_not_count() -> None:
    assert finding_confidences([(b'{"findings":[{"rule":"a","line":1,"at":"x', P)]) == []


@given(cuts=st.sets(st.integers(1, 200)))
def test_bytes_may_be_cut_anywhere(cuts: set[int]) -> None:
    """One certain token for each byte gives 1.0; a doubtful one counts only if it holds a deciding byte."""
    text = '{"findings":[{"rule":"a","line":12,"at":"é\\"],","fix":null}],"summary":"Say, {\\"rule\\"."}'.encode()
    edges = sorted({0, len(text)} | {cut for cut in cuts if cut < len(text)})
    pieces = list(pairwise(edges))
    first, last = text.index(b'{"rule"'), text.index(b',"at"') + 1
    for doubtful in range(len(pieces)):
        tokens = [(text[a:b], P if index == doubtful else 0.0) for index, (a, b) in enumerate(pieces)]
        start, end = pieces[doubtful]
        decides = start < last and end > first
        assert finding_confidences(tokens) == pytest.approx([0.5 if decides else 1.0])


KNOTS = ((0.0, 0.0), (0.5, 0.2), (0.9, 0.7), (1.0, 0.95))


def test_between_two_knots_the_calibrated_confidence_lies_on_a_line() -> None:
    for raw, expected in ((0.0, 0.0), (0.25, 0.1), (0.5, 0.2), (0.7, 0.45), (0.9, 0.7), (0.95, 0.825), (1.0, 0.95)):
        assert calibrated(raw, KNOTS) == pytest.approx(expected)


def test_without_knots_a_confidence_stays_as_it_is() -> None:
    check_calibration(())
    assert calibrated(0.3, ()) == 0.3


@given(
    knots=st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)), max_size=8),
    raw=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_calibration_that_passes_the_check_never_changes_an_order(knots, raw: tuple[float, float]) -> None:
    curve = ((0.0, 0.0), *zip(sorted(x for x, _ in knots), sorted(y for _, y in knots), strict=True), (1.0, 1.0))
    if len({x for x, _ in curve}) < len(curve) or len({y for _, y in curve}) < len(curve):
        return
    check_calibration(curve)
    lower, higher = sorted(raw)
    assert 0 <= calibrated(lower, curve) <= calibrated(higher, curve) <= 1
    if higher - lower > 1e-6 and min(b[1] - a[1] for a, b in pairwise(curve)) > 1e-3:
        assert calibrated(lower, curve) < calibrated(higher, curve)


@pytest.mark.parametrize(
    ("knots", "said"),
    [
        (((0.1, 0.0), (1.0, 1.0)), "does not lead from raw confidence 0 to 1"),
        (((0.0, 0.0), (0.9, 1.0)), "does not lead from raw confidence 0 to 1"),
        (((0.0, -0.1), (1.0, 1.0)), "leaves 0..1"),
        (((0.0, 0.0), (1.0, 1.1)), "leaves 0..1"),
        (((0.0, 0.5), (0.5, 0.5), (1.0, 1.0)), r"does not rise from \[0.0, 0.5\] to \[0.5, 0.5\]"),
        (((0.0, 0.0), (0.5, 0.2), (0.5, 0.3), (1.0, 1.0)), r"does not rise from \[0.5, 0.2\] to \[0.5, 0.3\]"),
    ],
)
def test_a_calibration_that_could_change_an_order_is_refused(knots, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_calibration(knots)
