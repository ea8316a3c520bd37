"""The measurement on real projects: its edits are small and valid, and the page about it adds up."""

import ast
import re
from itertools import chain
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.projects import PAGE, change
from bench.verdicts import KINDS, UNJUDGED, read_tables, read_verdicts, section
from tests.client.reports import make_finding

AWKWARD = """\
def outer():
    def inner():
        if outer:
            return 1
def single(): return 1
def two(a):
    a = 1; return a
class A:
\tasync def tabs(self):
\t\tpass  # the end

def last():
    return '''
no line after this''' """


def functions(source: str) -> dict[str, int]:
    """How many statements each function has."""
    tree = ast.walk(ast.parse(source))
    return {node.name: len(node.body) for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_function_that_can_be_changed_gets_one_more_statement(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(AWKWARD)

    before = change([file], every=1)

    grown = {name: count - functions(AWKWARD)[name] for name, count in functions(file.read_text()).items()}
    assert grown == {"outer": 1, "inner": 1, "single": 0, "two": 0, "tabs": 1, "last": 0}
    assert before == {file: AWKWARD.encode()}


def test_one_function_in_so_many_is_changed_counted_over_all_files(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.py" for number in range(4)]
    for file in files:
        file.write_text("".join(f"def f{number}():\n    return {number}\n\n\n" for number in range(10)))

    before = change(files, every=20)

    assert list(before) == [files[1], files[3]]
    assert [sum(functions(file.read_text()).values()) for file in files] == [10, 11, 10, 11]


@pytest.mark.parametrize("part", ["At the default thresholds", "The surest of the rest"])
def test_every_finding_on_the_page_is_judged_and_the_sums_are_right(part: str) -> None:
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {part}\n")[1].split("\n## ")[0]
    projects = dict(read_tables(text))
    told = re.findall(r"^\| ([\w.-]+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    kinds = {name: [row[-1].partition(":")[0] for row in rows] for name, rows in projects.items()}
    kinds["together"] = list(chain.from_iterable(kinds.values()))

    assert len(projects) == 4
    assert set(kinds["together"]) <= set(KINDS)
    assert {name: [int(count) for count in counts] for name, *counts in told} == {
        name: [found.count(kind) for kind in KINDS] for name, found in kinds.items()
    }


def test_the_page_begins_with_the_sums_of_what_it_judges() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = re.search(r"\*\*Of (\d+) findings .* (\d+) are true, (\d+) debatable and (\d+) false\.\*\*", text)
    together = re.search(r"^\| together \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)

    assert told and together
    assert told.groups()[1:] == together.groups()
    assert int(told[1]) == sum(map(int, together.groups()))


@settings(deadline=None)
@given(
    code=st.text("ab|`\\ #'", min_size=1).filter(str.strip),
    path=st.text("ab/:| ", min_size=1).filter(lambda path: path == path.strip()),
)
def test_a_verdict_stays_with_a_finding_whose_line_has_moved(
    tmp_path_factory: pytest.TempPathFactory, code: str, path: str
) -> None:
    snippet = f"    {code}"
    finding = make_finding(path=path, snippet=snippet, start_column=5, end_column=len(snippet) + 1, start_line=3)
    moved = msgspec.structs.replace(finding, start_line=400, end_line=400)
    page = tmp_path_factory.mktemp("page") / "page.md"
    page.write_text(section("Found", {"shop": [finding]}, {}).replace(f"| {UNJUDGED} |", "| false: it is used |"))

    assert "| false: it is used |" in section("Found", {"shop": [moved]}, read_verdicts(page))
    assert "| together | 0 | 0 | 1 |" in section("Found", {"shop": [moved]}, read_verdicts(page))
