"""A source file cut into units: the pieces of code a student is asked about, one at a time.

Compress trains on these units and serve asks about them, so both must cut in the same way.
A unit is a function or method; or what is left of a class or module once its functions are taken out.
Blank lines and docstrings are left out of a unit's view, and its indentation is removed;
every line remembers where it stands in the file.
"""

import ast
import warnings
from collections.abc import Iterator
from typing import Literal

import msgspec

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DefinitionNode = FunctionNode | ast.ClassDef


class UnparsableCode(ValueError):
    """The source is not Python that this interpreter can parse."""

    def __init__(self, reason: str, line: int | None, column: int | None) -> None:
        where = f" at line {line}, column {column}" if line is not None else ""
        super().__init__(f"cannot parse the code{where}: {reason}")
        self.reason, self.line, self.column = reason, line, column


class UnitLine(msgspec.Struct, frozen=True):
    """One line of a unit: its 1-based number in the file, its text, and how many columns were removed."""

    number: int
    text: str
    removed: int


class Unit(msgspec.Struct, frozen=True):
    """A piece of code a student is asked about. `summary` is its docstring's first sentence, when it has one."""

    kind: Literal["function", "method", "class", "module"]
    name: str
    lines: tuple[UnitLine, ...]
    summary: str | None

    @property
    def start_line(self) -> int:
        return self.lines[0].number

    @property
    def end_line(self) -> int:
        return self.lines[-1].number

    @property
    def code(self) -> str:
        """The unit's own text, as a student sees it but for the line numbers."""
        return "\n".join(line.text for line in self.lines)

    @property
    def texts(self) -> tuple[str, ...]:
        """The lines as a student sees them: what its findings may quote."""
        return tuple(line.text for line in self.lines)

    def numbered(self) -> str:
        """The unit as a student sees it: every line after its number within the unit, from 1."""
        return "\n".join(f"{number} {line.text}" for number, line in enumerate(self.lines, start=1))


def normalise(source: str) -> str:
    """The source with `\\n` line ends and no byte-order mark, so that line numbers mean one thing."""
    return source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def parse(source: str) -> ast.Module:
    """Parse normalised source.

    Raises:
        UnparsableCode: whatever the parser trips over, with its place where the parser names one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the analysed code are not our warnings
            return ast.parse(source)
    except SyntaxError as error:
        raise UnparsableCode(error.msg, error.lineno, error.offset) from error
    except UnicodeError as error:
        raise UnparsableCode("the text holds a lone surrogate", None, None) from error
    except ValueError as error:
        raise UnparsableCode(str(error), None, None) from error
    except (RecursionError, MemoryError) as error:
        raise UnparsableCode("the code is nested too deeply", None, None) from error


def cut_units(source: str) -> list[Unit]:
    """Every unit of a file, in the order in which they start.

    Args:
        source: the file's text; line ends are normalised here.

    Raises:
        UnparsableCode: the source does not parse.
    """
    source = normalise(source)
    return units_in(parse(source), source)


def units_in(tree: ast.Module, source: str) -> list[Unit]:
    """What `cut_units` gives for a file that was parsed already.

    Args:
        tree: the parsed file.
        source: the normalised source that it was parsed from.
    """
    units = list(_units_of(tree, "", source.split("\n")))
    return sorted(units, key=lambda unit: (unit.start_line, unit.end_line))


def _units_of(owner: ast.Module | ast.ClassDef, prefix: str, lines: list[str]) -> Iterator[Unit]:
    definitions = list(definitions_in(owner))
    for node in definitions:
        name = f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _units_of(node, f"{name}.", lines)
        else:
            kind: Literal["function", "method"] = "method" if isinstance(owner, ast.ClassDef) else "function"
            unit = _make_unit(kind, name, node, set(), lines)
            if unit is not None:
                yield unit
    remainder = _remainder(owner, prefix, definitions, lines)
    if remainder is not None:
        yield remainder


def definitions_in(owner: ast.AST) -> Iterator[DefinitionNode]:
    """The functions and classes directly under `owner`, also those inside its ifs, tries and withs, in no order."""
    inside: list[ast.AST] = [owner]  # and no recursion: every `elif` is one level deeper than the last
    while inside:
        for child in ast.iter_child_nodes(inside.pop()):
            if isinstance(child, DefinitionNode):
                yield child
            elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                inside.append(child)


def _remainder(
    owner: ast.Module | ast.ClassDef, prefix: str, definitions: list[DefinitionNode], lines: list[str]
) -> Unit | None:
    """What is left of a class or module; None when nothing but imports, a docstring or a header is left."""
    trivial = (ast.Import, ast.ImportFrom, ast.Pass)
    own = [node for node in owner.body if not isinstance(node, (*trivial, *DefinitionNode.__args__))]
    if _docstring(owner) is not None:
        own = own[1:]
    if not own:
        return None
    taken = {number for node in definitions for number in range(_first_line(node), _last_line(node) + 1)}
    kind: Literal["class", "module"] = "class" if isinstance(owner, ast.ClassDef) else "module"
    return _make_unit(kind, prefix.rstrip(".") or "<module>", owner, taken, lines)


def _make_unit(
    kind: Literal["function", "method", "class", "module"],
    name: str,
    node: DefinitionNode | ast.Module,
    taken: set[int],
    lines: list[str],
) -> Unit | None:
    first, last = (1, len(lines)) if isinstance(node, ast.Module) else (_first_line(node), _last_line(node))
    docstring = _docstring(node)
    if docstring is not None and len(node.body) > 1:
        taken = taken | set(range(docstring.lineno, _last_line(docstring) + 1))
    numbers = [n for n in range(first, last + 1) if n not in taken and lines[n - 1].strip()]
    if len(numbers) < 2 and kind != "module":
        return None  # a header alone, or `def f(): ...`: there is nothing to say about it
    if not numbers:
        return None
    indent = len(lines[first - 1]) - len(lines[first - 1].lstrip()) if kind != "module" else 0
    return Unit(
        kind=kind,
        name=name,
        lines=tuple(_unit_line(number, lines[number - 1], indent) for number in numbers),
        summary=first_sentence(ast.get_docstring(node) or ""),
    )


def _unit_line(number: int, text: str, indent: int) -> UnitLine:
    removed = min(indent, len(text) - len(text.lstrip()))
    return UnitLine(number=number, text=text[removed:].rstrip(), removed=removed)


def _first_line(node: DefinitionNode) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _last_line(node: ast.stmt) -> int:
    assert node.end_lineno is not None, "ast.parse always sets end_lineno"
    return node.end_lineno


def _docstring(node: DefinitionNode | ast.Module) -> ast.stmt | None:
    """The docstring's statement, when it stands on lines of its own."""
    if not node.body or ast.get_docstring(node, clean=False) is None:
        return None
    statement = node.body[0]
    shares_a_line = not isinstance(node, ast.Module) and statement.lineno == node.lineno
    followed = len(node.body) > 1 and node.body[1].lineno == statement.end_lineno
    return None if shares_a_line or followed else statement


def first_sentence(docstring: str, limit: int = 120) -> str | None:
    """A docstring's first sentence on one line; None when there is none of a useful length (characters)."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    end = paragraph.find(". ")
    sentence = paragraph if end < 0 else paragraph[: end + 1]
    return sentence if 8 <= len(sentence) <= limit else None
