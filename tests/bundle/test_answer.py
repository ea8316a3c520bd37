"""What a student writes: one text form, its schema, and its reader."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.answer import (
    BETWEEN_FINDINGS,
    CLOSING,
    CLOSING_FINDINGS,
    MAX_FINDINGS,
    MAX_SPAN_CHARS,
    MAX_SUMMARY_CHARS,
    OPENING,
    Answer,
    AnswerFinding,
    answer_schema,
    parse_answer,
    placed_line,
    write_answer,
)
from bundle.rules import load_catalogue

RULES = load_catalogue().ids
LINES = 12

findings = st.builds(
    AnswerFinding,
    rule=st.sampled_from(RULES),
    line=st.integers(1, LINES),
    at=st.text(min_size=1, max_size=MAX_SPAN_CHARS),
    fix=st.none() | st.text(max_size=MAX_SPAN_CHARS),
)
answers = st.builds(
    Answer,
    findings=st.lists(findings, max_size=MAX_FINDINGS).map(tuple),
    summary=st.text(max_size=MAX_SUMMARY_CHARS),
)


def schema() -> jsonschema.Draft202012Validator:
    described = answer_schema(RULES, LINES)
    jsonschema.Draft202012Validator.check_schema(described)
    return jsonschema.Draft202012Validator(described)


def finding(**changes: Any) -> dict[str, Any]:
    return {"rule": "off-by-one", "line": 3, "at": "1", "fix": "0"} | changes


@given(answers)
def test_what_is_written_is_read_back(answer: Answer) -> None:
    assert parse_answer(write_answer(answer)) == answer


@given(answers)
def test_the_schema_accepts_what_is_written(answer: Answer) -> None:
    schema().validate(json.loads(write_answer(answer)))


@given(answers)
def test_an_answer_is_built_of_the_parts_a_tokenizer_may_hold(answer: Answer) -> None:
    text = write_answer(answer)
    assert text.startswith(OPENING) and text.endswith(CLOSING)
    assert CLOSING_FINDINGS in text
    assert text.count(BETWEEN_FINDINGS) >= len(answer.findings) - 1


def test_the_text_form_is_compact_with_findings_first() -> None:
    answer = Answer((AnswerFinding("wrong-comparison", 4, "<=", "<"),), "Return the first hit.")
    assert write_answer(answer) == (
        '{"findings":[{"rule":"wrong-comparison","line":4,"at":"<=","fix":"<"}],"summary":"Return the first hit."}'
    )


@pytest.mark.parametrize(
    "wrong",
    [
        finding(rule="no-such-rule"),
        finding(line=0),
        finding(line=LINES + 1),
        finding(line=-1),
        finding(line=1.5),
        finding(line="3"),
        finding(at=""),
        finding(at="x" * (MAX_SPAN_CHARS + 1)),
        finding(fix="x" * (MAX_SPAN_CHARS + 1)),
        finding(fix=3),
        finding(severity="error"),
        {"rule": "off-by-one", "line": 3, "at": "1"},
    ],
)
def test_the_schema_refuses_a_wrong_finding(wrong: dict[str, Any]) -> None:
    assert schema().is_valid({"findings": [finding()], "summary": ""})
    assert not schema().is_valid({"findings": [wrong], "summary": ""})


@pytest.mark.parametrize(
    "wrong",
    [
        {"findings": []},
        {"summary": ""},
        {"findings": [], "summary": None},
        {"findings": [], "summary": "x" * (MAX_SUMMARY_CHARS + 1)},
        {"findings": [], "summary": "", "score": 1},
        {"findings": [finding()] * (MAX_FINDINGS + 1), "summary": ""},
        [],
    ],
)
def test_the_schema_refuses_a_wrong_answer(wrong: Any) -> None:
    assert not schema().is_valid(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"findings":[],"summary":"cut off',
        '{"findings":[]}',
        '{"findings":[],"summary":"","more":1}',
        '{"findings":[{"rule":"off-by-one","line":"3","at":"1","fix":null}],"summary":""}',
        '{"findings":[{"rule":"off-by-one","line":3,"at":"1"}],"summary":""}',
        '{"findings":[],"summary":"\ud800"}',
        '{"findings":[],"summary":""} and more',
        "[" * 100_000,
    ],
)
def test_a_malformed_answer_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_answer(text)


@pytest.mark.parametrize(
    ("at", "line", "placed"),
    [
        ("!=", 1, 1),
        ("!=", 2, 1),  # the text decides, where it stands once in the unit
        ("dir", 3, None),  # a part of a longer name
        ("dirname", 2, 3),
        ("a", 3, None),  # twice on its line
        ("absent", 1, None),
        ("", 1, None),
        ("!=", 4, None),  # no such line
    ],
)
def test_a_finding_is_placed_where_its_text_stands(at: str, line: int, placed: int | None) -> None:
    texts = ["if a != b:", "    pass", "def cd(dirname, a=a):"]
    assert placed_line(AnswerFinding("wrong-comparison", line, at, None), texts) == placed
