"""The text format: what a person reads on a terminal or in a log."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from serve.analysis.report import Edit, Fix, SkippedUnit
from serve.client.check import CheckedFile, Outcome
from serve.client.edits import apply_edits
from serve.client.files import FailedPath, SkippedPath
from serve.client.text import print_failures, print_findings
from tests.client.reports import make_finding, make_outcome, make_report


def printed(outcome: Outcome, *, terminal: bool = False) -> str:
    console = Console(file=StringIO(), force_terminal=terminal or None, width=80, _environ={"TERM": "xterm"})
    print_findings(outcome, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def printed_failures(*failed: FailedPath) -> str:
    console = Console(file=StringIO())
    print_failures(failed, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def edit(line: int, start: int, end: int, text: str) -> Edit:
    return Edit(start_line=line, start_column=start, end_line=line, end_column=end, text=text)


def test_a_finding_shows_its_place_its_code_and_its_fix() -> None:
    fix = Fix(edits=(edit(1, 10, 12, "is"),), verified=True)

    assert printed(make_outcome("if value == None:\n    pass\n", make_finding(fix=fix))) == (
        "a.py:1:10: warning none-comparison (88% sure)\n"
        "  `== None` asks the object.\n"
        "  1 | if value == None:\n"
        "    |          ^^\n"
        "  fix:\n"
        "  - if value == None:\n"
        "  + if value is None:\n"
        "\n"
        "1 warning in 1 file (by nano 0123456789ab, int4 on onnx).\n"
    )


def test_carets_stand_under_the_columns_they_are_about_behind_tabs_and_wide_characters() -> None:
    source = "\tif 名前 == None:\n"
    start = source.index("==") + 1

    lines = printed(make_outcome(source, make_finding(start_column=start, end_column=start + 2))).splitlines()

    # Each of the two characters takes two columns on a terminal; the tab takes four.
    assert lines[2] == "  1 |     if 名前 == None:"
    assert lines[3] == "    |             ^^"


def test_a_finding_over_several_lines_is_underlined_on_each() -> None:
    finding = make_finding(start_line=1, end_line=2, start_column=5, end_column=7)

    assert printed(make_outcome("f = g(\n    1)\n", finding)).splitlines()[2:6] == [
        "  1 | f = g(",
        "    |     ^^",
        "  2 |     1)",
        "    |     ^^",
    ]


def test_a_fix_that_was_not_parsed_says_so() -> None:
    fix = Fix(edits=(edit(1, 10, 12, "is"),), verified=False)

    assert "  fix (the result was not parsed):\n" in printed(make_outcome("if value == None:\n", make_finding(fix=fix)))


def test_severities_are_coloured_on_a_terminal_and_plain_elsewhere() -> None:
    outcome = make_outcome("if value == None:\n", make_finding(severity="error"))

    assert "\x1b[1;31merror\x1b[0m" in printed(outcome, terminal=True)
    assert "\x1b" not in printed(outcome)


def test_long_lines_are_not_broken() -> None:
    source = f"if value == None: {'x' * 300}"

    assert f"  1 | {source}\n" in printed(make_outcome(source, make_finding()))


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x9b", "\N{RIGHT-TO-LEFT OVERRIDE}", "\r"])
def test_analysed_code_cannot_steer_the_terminal(character: str) -> None:
    finding = make_finding(message=f"`{character}[31m`", rule=f"r{character}", path=f"{character}.py")

    text = printed(make_outcome(f"if value == None: {character}[2J", finding))

    assert character not in text
    assert text.count("\N{REPLACEMENT CHARACTER}") == 4


def test_what_was_left_out_is_listed() -> None:
    unit = SkippedUnit(name="parse", start_line=3, end_line=900, reason="too long")
    outcome = Outcome(
        checked=(CheckedFile("a.py", "", make_report("a.py", skipped=(unit,))),),
        skipped=(SkippedPath("notes.txt", "not a .py file"),),
        failed=(FailedPath("b.py", "is binary"),),
    )

    assert printed(outcome) == (
        "skipped: notes.txt: not a .py file\n"
        "skipped: a.py:3-900 parse: too long\n"
        "No findings in 1 file (by nano 0123456789ab, int4 on onnx); 1 file not analysed.\n"
    )


def test_failures_name_their_place_and_share_a_reason() -> None:
    unreachable = [FailedPath(f"{number}.py", "no server") for number in range(7)]

    assert printed_failures(FailedPath("a.py", "does not parse", 3, 7), *unreachable) == (
        "not analysed: a.py:3:7\n  does not parse\nnot analysed: 0.py, 1.py, 2.py, 3.py, 4.py and 2 more\n  no server\n"
    )


def test_nothing_to_analyse_is_said() -> None:
    assert printed(Outcome((), (), ())) == "There are no Python files among these paths.\n"


def test_edits_apply_from_the_end_so_that_columns_stay_true() -> None:
    edits = [edit(1, 1, 2, "longer"), edit(1, 5, 6, "")]

    assert apply_edits(["a = b", "c"], edits) == ["longer = ", "c"]


def test_an_edit_may_join_and_split_lines() -> None:
    joined = Edit(start_line=1, start_column=2, end_line=2, end_column=1, text="")

    assert apply_edits(["a", "b", "c"], [joined]) == ["ab", "c"]
    assert apply_edits(["ab", "c"], [edit(1, 2, 2, "\n")]) == ["a", "b", "c"]


@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=20), min_size=1, max_size=9), st.data())
def test_any_span_of_any_text_can_be_shown(lines: list[str], data: st.DataObject) -> None:
    start_line = data.draw(st.integers(1, len(lines)))
    end_line = data.draw(st.integers(start_line, len(lines)))
    start_column = data.draw(st.integers(1, len(lines[start_line - 1]) + 1))
    finding = make_finding(
        start_line=start_line,
        end_line=end_line,
        start_column=start_column,
        end_column=data.draw(st.integers(start_column if start_line == end_line else 1, len(lines[end_line - 1]) + 1)),
    )

    frame = printed(make_outcome("\n".join(lines), finding)).splitlines()[2:-2]

    shown = min(end_line - start_line + 1, 6)
    assert len(frame) == 2 * shown
    assert all("^" in carets for carets in frame[1::2])
