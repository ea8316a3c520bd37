"""A file is cut into units: what each holds, and that every line of it is a true line of the file."""

import ast
import sysconfig
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.units import Unit, UnparsableCode, cut_units, first_sentence

STDLIB = Path(sysconfig.get_path("stdlib"))
# Real files: decorators, nested functions, odd indentation, form feeds, docstrings of every kind.
REAL_FILES = sorted(file for folder in (STDLIB, STDLIB / "json", STDLIB / "email") for file in folder.glob("*.py"))


def cut(source: str) -> dict[str, Unit]:
    units = cut_units(textwrap.dedent(source))
    assert len({unit.name for unit in units}) == len(units)
    return {unit.name: unit for unit in units}


def test_functions_methods_and_what_is_left_of_classes_and_modules_are_units() -> None:
    units = cut('''\
        """About this module."""
        import os

        LIMIT = 3

        def first(x):
            return x + LIMIT

        class Box:
            """Hold a single value."""
            size = 1

            def put(self, value):
                self.value = value

        async def last():
            await first(1)
        ''')

    assert [(unit.kind, unit.name) for unit in units.values()] == [
        ("module", "<module>"),
        ("function", "first"),
        ("class", "Box"),
        ("method", "Box.put"),
        ("function", "last"),
    ]
    assert units["<module>"].code == "import os\nLIMIT = 3"
    assert units["Box"].code == "class Box:\n    size = 1"
    assert units["Box"].summary == "Hold a single value."
    assert units["<module>"].summary == "About this module."


def test_nested_functions_and_classes_stay_inside_their_function() -> None:
    units = cut("""\
        def outer(x):
            def inner(y):
                return y
            class Local:
                def method(self):
                    return x
            return inner, Local
        """)

    assert list(units) == ["outer"]
    assert [line.number for line in units["outer"].lines] == [1, 2, 3, 4, 5, 6, 7]


def test_methods_of_nested_classes_carry_the_whole_name() -> None:
    units = cut("""\
        class Outer:
            class Inner:
                def method(self):
                    return 1
        """)

    assert list(units) == ["Outer.Inner.method"]


@pytest.mark.parametrize(
    "head",
    ["if FAST:", "for _ in range(2):", "while True:", "with lock:", "try:\n    import fast\nexcept ImportError:"],
)
def test_functions_inside_statements_of_a_module_are_units(head: str) -> None:
    tail = "\nfinally:\n    pass" if head.startswith("try") else ""
    units = cut_units(f"{head}\n    def f(x):\n        return x{tail}\n")

    assert [unit.code for unit in units if unit.kind == "function"] == ["def f(x):\n    return x"]


def test_functions_inside_match_cases_are_units() -> None:
    units = cut_units("match x:\n    case 1:\n        def f(x):\n            return x\n")
    assert [unit.name for unit in units if unit.kind == "function"] == ["f"]


def test_a_unit_starts_with_its_first_decorator() -> None:
    units = cut("""\
        class Box:
            @property
            @cache(
                size=3,
            )
            def value(self):
                return 1
        """)

    assert units["Box.value"].start_line == 2
    assert units["Box.value"].code.startswith("@property\n@cache(\n    size=3,\n)\ndef value(self):")


def test_the_docstring_becomes_the_summary_and_leaves_the_code() -> None:
    units = cut('''\
        def f(x):
            """
            Return the double of
            a number. And more
            that is not needed.

            Args: x.
            """

            return 2 * x
        ''')

    assert units["f"].summary == "Return the double of a number."
    assert units["f"].code == "def f(x):\n    return 2 * x"
    assert [line.number for line in units["f"].lines] == [1, 10]


def test_a_docstring_that_shares_its_lines_with_code_stays() -> None:
    units = cut('def f(x):\n    """Return the double."""; y = x\n    return 2 * y\n')
    assert units["f"].code.split("\n")[1] == '    """Return the double."""; y = x'


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return it now", "Return it now"),
        ("Return it. Twice.", "Return it."),
        ("Return it.\n\nSecond paragraph", "Return it."),
        ("  Spread   over\n   lines.", "Spread over lines."),
        ("Short", None),
        ("", None),
        ("x" * 121, None),
        ("x" * 120, "x" * 120),
    ],
)
def test_a_first_sentence_is_one_line_of_a_useful_length(docstring: str, sentence: str | None) -> None:
    assert first_sentence(docstring) == sentence


def test_lines_are_numbered_within_the_unit_and_know_their_place_in_the_file() -> None:
    unit = cut("""\
        X = 1

        class Box:

            def put(self):

                return 1
        """)["Box.put"]

    assert unit.numbered() == "1 def put(self):\n2     return 1"
    assert [(line.number, line.removed) for line in unit.lines] == [(5, 4), (7, 4)]
    assert (unit.start_line, unit.end_line) == (5, 7)


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return x\n",
        "class A: pass\n",
        "import os\n",
        '"""Only a docstring."""\n',
        "",
        "\n\n",
        "# a comment\n",
    ],
)
def test_code_there_is_nothing_to_say_about_is_no_unit(source: str) -> None:
    assert cut_units(source) == []


def test_a_one_line_function_is_no_part_of_its_module_either() -> None:
    units = cut("X = 1\ndef f(x): return x\nY = 2\n")
    assert units["<module>"].code == "X = 1\nY = 2"
    assert list(units) == ["<module>"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "byte-order mark"])
def test_every_kind_of_line_end_gives_the_lines_an_editor_shows(end: str, mark: str) -> None:
    source = mark + end.join(["X = 1", "", "def f(x):", "    y = x", "    return y", ""])
    numbers = {unit.name: [line.number for line in unit.lines] for unit in cut_units(source)}

    assert numbers == {"<module>": [1], "f": [3, 4, 5]}
    assert all("\r" not in unit.code and "\ufeff" not in unit.code for unit in cut_units(source))


@pytest.mark.parametrize("character", ["\f", "\v", "\x1c", "\x85", "\u2028", "\u2029"])
def test_what_only_str_splitlines_takes_for_a_line_end_is_none(character: str) -> None:
    source = f"X = '{character}'  # {character}\ndef f(x):\n    y = '{character}'\n    return y\n"
    units = {unit.name: unit for unit in cut_units(source)}

    assert [line.number for line in units["f"].lines] == [2, 3, 4]
    assert units["f"].lines[1].text == f"    y = '{character}'"


def test_a_form_feed_between_functions_moves_no_line() -> None:
    units = cut("def f(x):\n    return x\n\f\ndef g(x):\n    return x\n")
    assert [line.number for line in units["g"].lines] == [4, 5]


def test_tabs_count_as_one_removed_column_each() -> None:
    unit = cut("class A:\n\tdef f(self):\n\t\treturn 1\n")["A.f"]
    assert unit.code == "def f(self):\n\treturn 1"
    assert {line.removed for line in unit.lines} == {1}


def test_a_line_with_less_indentation_than_its_function_loses_only_what_it_has() -> None:
    unit = cut_units('class A:\n    def f(self):\n        x = """\n  two\nnone\n"""\n        return x\n')[0]
    assert [(line.text, line.removed) for line in unit.lines][2:5] == [("two", 2), ("none", 0), ('"""', 0)]


def test_code_that_is_not_ascii_is_cut_by_characters() -> None:
    unit = cut("class Größe:\n    def größer(self, maß):\n        return '→', maß\n")["Größe.größer"]
    assert unit.code == "def größer(self, maß):\n    return '→', maß"


def test_a_mistake_is_named_with_its_line_and_column() -> None:
    with pytest.raises(UnparsableCode) as refused:
        cut_units("x = 1\ny = (\n")
    assert (refused.value.line, refused.value.column) == (2, 5)
    assert "line 2, column 5" in str(refused.value)


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\0",
        "x = '\ud800'",
        "-" * 100_000 + "1",
        "a" + ".b" * 100_000,
        "x = " + "9" * 5_000,
        "(" * 1_000,
        "\x1a",
        "f'{'",
        "def f():\n\tx = 1\n        y = 2\n",
        "\ufeff\ufeffx = 1",
        "if x:\n    pass\n" + "elif x:\n    pass\n" * 10_000,
    ],
    ids=["NUL", "surrogate", "minus", "attributes", "int", "parens", "ctrl-z", "f-string", "tabs", "marks", "elifs"],
)
def test_hostile_code_is_unparsable_and_nothing_worse(source: str) -> None:
    with pytest.raises(UnparsableCode):
        cut_units(source)


@pytest.mark.parametrize("branches", [500, 1_500, 2_500])
def test_a_chain_of_elifs_that_parses_is_cut(branches: int) -> None:
    chain = "if x:\n    pass\n" + "elif x:\n    pass\n" * branches
    units = cut_units(f"{chain}else:\n    def f():\n        return 1\n")
    assert [unit.kind for unit in units] == ["module", "function"]


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("def f(x):\n\r\t\f \\'\"#@=é\0{}\ud800"), max_size=60))
def test_any_text_is_cut_or_unparsable(source: str) -> None:
    try:
        units = cut_units(source)
    except UnparsableCode:
        return
    assert all(unit.lines for unit in units)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(REAL_FILES), st.sampled_from(["\n", "\r\n", "\r"]))
def test_units_of_real_files_are_true_to_the_file(file: Path, end: str) -> None:
    source = file.read_text(encoding="utf-8")
    lines = source.split("\n")
    units = cut_units(source.replace("\n", end))

    numbers = [line.number for unit in units for line in unit.lines]
    assert len(numbers) == len(set(numbers)), "units never overlap"
    for unit in units:
        inside = [line.number for line in unit.lines]
        assert inside == sorted(inside)
        for line in unit.lines:
            true = lines[line.number - 1]
            assert line.text == true[line.removed :].rstrip() and line.text.strip()
            assert not true[: line.removed].strip(), "only indentation is removed"
        if unit.kind in ("function", "method"):
            ast.parse(unit.code)
    assert units == sorted(units, key=lambda unit: (unit.start_line, unit.end_line))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(REAL_FILES))
def test_every_function_of_a_real_file_with_a_body_of_its_own_is_one_unit(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    found = {unit.start_line for unit in cut_units(source) if unit.kind in ("function", "method")}

    def outer_functions(owner: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        children = list(ast.iter_child_nodes(owner))
        functions = [child for child in children if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]
        return functions + [f for child in children if child not in functions for f in outer_functions(child)]

    expected = {
        min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        for node in outer_functions(ast.parse(source))
        if node.body[0].lineno > node.lineno or node.decorator_list
    }
    assert expected - found == set()
