"""A finding's confidence: the decisions that made it, however the tokenizer cuts them."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.confidence import finding_confidences

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
