"""Hostile code costs a worker its time; it is never more than an UnparsableCode."""

import ast
import inspect

import psutil
import pytest

from bundle.answer import Answer, AnswerFinding
from bundle.rules import load_catalogue
from bundle.units import UnparsableCode
from serve.analysis import syntax
from serve.analysis.findings import locate
from serve.analysis.syntax import WORKERS, SyntaxWorkers

pytestmark = pytest.mark.usefixtures("patient_parser")

SHORT = "def f(a):\n    return a[1]\n"
HOSTILE = {
    "unary operators": ("-" * 100_000 + "1", "nested too deeply"),
    "attributes": ("a" + ".b" * 100_000, "nested too deeply"),
    "brackets": ("(" * 1_000 + ")" * 1_000, "too many nested parentheses"),
    "elif chain": ("if a: pass\n" + "elif a: pass\n" * 3_000, "nested too deeply"),
    "long number": ("x = " + "9" * 5_000, "4300 digits"),
    "lone surrogate": ("x = '\ud800'", "lone surrogate"),
    "null character": ("x = 1\0", "null bytes"),
    "unfinished": ("def f(", "never closed"),
}


@pytest.mark.parametrize(("source", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_code_is_unparsable_and_the_next_file_is_cut(source: str, reason: str) -> None:
    workers = SyntaxWorkers()
    with pytest.raises(UnparsableCode, match=reason):
        await workers.cut(source)
    assert (await workers.cut("x = 1\n")).metrics.code_lines == 1


async def test_code_that_takes_too_long_is_unparsable(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = SyntaxWorkers()
    await workers.start()
    with monkeypatch.context() as hurried:
        hurried.setattr(syntax, "PARSE_SECONDS", 0.05)
        with pytest.raises(UnparsableCode, match="too large or too deeply nested"):
            await workers.cut("x = [1, 2, 3]\n" * 200_000)
    assert (await workers.cut("x = 1\n")).metrics.code_lines == 1


async def test_findings_that_can_not_be_checked_in_time_have_no_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = SyntaxWorkers()
    await workers.start()
    (unit,) = (await workers.cut(SHORT)).units
    (sure,) = locate(unit, Answer((AnswerFinding("off-by-one", 2, "1", "0"),), ""), [0.9], load_catalogue())
    assert await workers.check(unit, [sure], SHORT.split("\n")) == [sure]
    endless = [*SHORT.split("\n"), *["x = [1, 2, 3]"] * 200_000]
    monkeypatch.setattr(syntax, "PARSE_SECONDS", 0.05)
    (unchecked,) = await workers.check(unit, [sure], endless)
    assert (unchecked.confidence, unchecked.fix) == (0.0, None)


async def test_every_worker_is_started_before_the_first_file() -> None:
    before = set(psutil.Process().children())
    await SyntaxWorkers().start()
    assert len(set(psutil.Process().children()) - before) == WORKERS


async def test_an_error_names_line_and_column() -> None:
    with pytest.raises(UnparsableCode) as caught:
        await SyntaxWorkers().cut("x = 1\ny = = 2\n")
    assert (caught.value.line, caught.value.column) == (2, 5)


async def test_metrics_are_counted() -> None:
    source = '''\
"""A module."""

# a comment


class A:
    def f(self, x):  # one path, two more for the conditions
        if x and x > 1:
            return 1

        def inner():
            return [i for i in x if i]
        return inner
'''
    metrics = (await SyntaxWorkers().cut(source)).metrics
    assert (metrics.lines, metrics.code_lines, metrics.functions, metrics.classes) == (13, 8, 2, 1)
    complexity = metrics.cyclomatic_complexity
    assert {function.name: function.complexity for function in complexity.functions} == {"A.f": 3, "A.f.inner": 3}
    assert (complexity.total, complexity.max) == (6, 3)


async def test_metrics_agree_with_the_syntax_tree_on_a_real_file() -> None:
    source = inspect.getsource(inspect)
    metrics = (await SyntaxWorkers().cut(source)).metrics
    definitions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert metrics.functions == len(definitions)
    assert metrics.lines == len(source.splitlines())


@pytest.mark.parametrize(("source", "lines"), [("", 0), ("x = 1", 1), ("x = 1\n", 1), ("x = 1\n\f\ny = '\u2028'", 3)])
async def test_lines_are_counted_as_an_editor_numbers_them(source: str, lines: int) -> None:
    assert (await SyntaxWorkers().cut(source)).metrics.lines == lines


async def test_windows_line_ends_and_a_byte_order_mark_do_not_move_lines() -> None:
    file = await SyntaxWorkers().cut("\ufeffimport os\r\n\r\ndef f():\r\n    return os\r\n")
    assert [(unit.name, unit.start_line) for unit in file.units] == [("f", 3)]
