"""From a student's words to findings: what can be checked is checked, what fails is dropped or softened."""

import pytest

from bundle.answer import Answer, AnswerFinding
from bundle.rules import load_catalogue
from bundle.units import Unit, cut_units
from serve.analysis.findings import as_findings, locate, merge
from serve.analysis.report import Edit, Finding
from serve.analysis.syntax import SyntaxWorkers

pytestmark = pytest.mark.usefixtures("patient_parser")

CATALOGUE = load_catalogue()
SOURCE = '''\
import math


class Shelf:
    def first(self, books, limit):
        """Return the first one."""

        for book in books:
            if book.size <= limit and limit <= 9:
                return book
        return None
'''
LINES = SOURCE.split("\n")


def method() -> Unit:
    (unit,) = cut_units(SOURCE)
    return unit


async def findings_of(*said: AnswerFinding, confidences: tuple[float, ...] | None = None) -> tuple[Finding, ...]:
    """The report's findings when the student says this about `Shelf.first`."""
    answer = Answer(findings=said, summary="")
    candidates = merge(locate(method(), answer, confidences or (0.9,) * len(said), CATALOGUE))
    return as_findings(await SyntaxWorkers().check(method(), candidates, LINES), LINES, "shelf.py", CATALOGUE)


async def test_unit_lines_become_lines_and_columns_of_the_file() -> None:
    (finding,) = await findings_of(AnswerFinding("wrong-comparison", 3, "book.size <= limit", "book.size < limit"))
    assert (finding.start_line, finding.end_line) == (9, 9)
    assert finding.snippet == LINES[8]
    marked = finding.snippet[finding.start_column - 1 : finding.end_column - 1]
    assert marked == "book.size <= limit"
    assert finding.severity == "error"
    assert finding.message == CATALOGUE["wrong-comparison"].explain("book.size <= limit", "book.size < limit")


async def test_a_fix_that_parses_is_offered_as_an_edit() -> None:
    (finding,) = await findings_of(AnswerFinding("off-by-one", 3, "9", "10"))
    assert finding.fix is not None
    assert finding.fix.verified
    column = LINES[8].index("9") + 1
    assert finding.fix.edits == (Edit(start_line=9, start_column=column, end_line=9, end_column=column + 1, text="10"),)


async def test_a_fix_that_does_not_parse_is_not_offered_nor_named_in_the_message() -> None:
    (finding,) = await findings_of(AnswerFinding("off-by-one", 3, "9", "9)"))
    assert finding.fix is None
    assert "9)" not in finding.message


async def test_a_fix_that_invents_a_name_is_not_offered() -> None:
    (finding,) = await findings_of(AnswerFinding("wrong-comparison", 3, "book.size <= limit", "book.sise < limit"))
    assert finding.fix is None
    (finding,) = await findings_of(AnswerFinding("variable-misuse", 3, "limit <= 9", "len(Shelf) <= 9"))
    assert finding.fix is not None, "names of the file and of Python are known"


async def test_text_that_stands_twice_on_its_line_marks_the_line_without_confidence_or_fix() -> None:
    (finding,) = await findings_of(AnswerFinding("wrong-comparison", 3, "<=", "<"))
    assert finding.snippet[finding.start_column - 1 : finding.end_column - 1] == LINES[8].strip()
    assert (finding.confidence, finding.fix) == (0.0, None)


async def test_text_that_stands_nowhere_marks_the_line_without_confidence_or_fix() -> None:
    (finding,) = await findings_of(AnswerFinding("variable-misuse", 4, "nowhere_at_all", "book"))
    assert finding.snippet[finding.start_column - 1 : finding.end_column - 1] == "return book"
    assert (finding.confidence, finding.fix) == (0.0, None)


async def test_text_that_stands_on_just_one_other_line_moves_the_finding_there() -> None:
    (finding,) = await findings_of(AnswerFinding("off-by-one", 4, "9", "10"))
    assert finding.start_line == 9
    assert finding.snippet[finding.start_column - 1 : finding.end_column - 1] == "9"


async def test_what_the_syntax_contradicts_is_marked_without_confidence() -> None:
    """`limit` is read on the line below, and the loop variable in the loop."""
    said = (AnswerFinding("unused-loop-variable", 2, "book", None), AnswerFinding("bool-comparison", 3, "<= 9", None))
    assert [finding.confidence for finding in await findings_of(*said)] == [0.0, 0.0]


async def test_text_that_overlaps_itself_stands_there_more_than_once() -> None:
    unit = cut_units("def f():\n    return '---'\n")[0]
    (candidate,) = locate(unit, Answer((AnswerFinding("off-by-one", 2, "--", "-"),), ""), [0.9], CATALOGUE)
    assert (candidate.confidence, candidate.fix) == (0.0, None)


async def test_what_names_no_rule_or_no_line_of_the_unit_or_changes_nothing_is_dropped() -> None:
    assert not await findings_of(
        AnswerFinding("no-such-rule", 3, "9", "10"),
        AnswerFinding("off-by-one", 0, "9", "10"),
        AnswerFinding("off-by-one", 7, "9", "10"),
        AnswerFinding("off-by-one", 3, "9", "9"),
    )


async def test_a_fix_over_several_lines_is_not_offered() -> None:
    (finding,) = await findings_of(AnswerFinding("off-by-one", 4, "return book", "return book\n                pass"))
    assert finding.fix is None


async def test_the_same_finding_said_twice_is_one_with_the_higher_confidence() -> None:
    said = AnswerFinding("off-by-one", 3, "9", "10")
    (finding,) = await findings_of(said, said, confidences=(0.61239, 0.7))
    assert finding.confidence == 0.7


async def test_findings_are_sorted_by_place_and_confidences_rounded() -> None:
    later, earlier = AnswerFinding("off-by-one", 3, "9", "10"), AnswerFinding("variable-misuse", 2, "books", "book")
    findings = await findings_of(later, earlier, confidences=(0.123456, 0.9))
    assert [(finding.rule, finding.confidence) for finding in findings] == [
        ("variable-misuse", 0.9),
        ("off-by-one", 0.1235),
    ]


async def test_fingerprints_survive_moved_lines_and_tell_repetitions_apart() -> None:
    said = AnswerFinding("off-by-one", 2, "a[1]", "a[0]")

    def fingerprints(source: str) -> list[str]:
        units = cut_units(source)
        answer = Answer((said, AnswerFinding("off-by-one", 3, "a[1]", "a[0]")), "")
        candidates = merge(locate(units[0], answer, [0.9, 0.9], CATALOGUE))
        found = as_findings(candidates, source.split("\n"), "f.py", CATALOGUE)
        return [finding.fingerprint for finding in found]

    before = fingerprints("def f(a):\n    a[1]\n    a[1]\n")
    after = fingerprints("import os\n\n\ndef f(a):\n    a[1]\n\n    a[1]\n")
    assert before == after
    assert len(set(before)) == 2


async def test_columns_count_characters_after_a_tab_and_beyond_ascii() -> None:
    source = "class A:\n\tdef f(self):\n\t\treturn 'é', 1\n"
    (unit,) = cut_units(source)
    (candidate,) = locate(unit, Answer((AnswerFinding("off-by-one", 2, "1", "0"),), ""), [0.9], CATALOGUE)
    line = source.split("\n")[candidate.line - 1]
    assert line[candidate.start_column - 1 : candidate.end_column - 1] == "1"
