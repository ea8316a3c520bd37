"""Edits that plant something in a unit: what a planter looks at, what it proposes, and how it is made."""

import ast
import keyword
import random
import re
from collections.abc import Callable, Iterator
from functools import cached_property

import msgspec

from compress.data.spans import unique_window


class Edit(msgspec.Struct, frozen=True):
    """Replace columns [start, end) of a 1-based line of the unit by `text`.

    `also` are further replacements that belong to the same edit. The finding is reported at this one's
    text; or, where it covers something else, at columns `marked` of this one's line once it is changed.
    """

    line: int
    start: int
    end: int
    text: str
    also: tuple["Edit", ...] = ()
    marked: tuple[int, int] | None = None


class Applied(msgspec.Struct, frozen=True):
    """The code with an edit made, the finding's place in it, and what stood in that place before."""

    code: str
    line: int
    at: str
    original: str


class Source:
    """A unit's code beside its tree, with the places of nodes in characters."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.lines = code.split("\n")
        self.tree = ast.parse(code)
        self.nodes = list(ast.walk(self.tree))

    @cached_property
    def words(self) -> frozenset[str]:
        """Every word of the code, and so every name it reads or binds."""
        return frozenset(re.findall(r"\w+", self.code))

    def between(self, left: ast.expr, right: ast.expr, operator: str) -> tuple[int, int, int] | None:
        """Line and columns of the operator between two operands of one line."""
        line, start = left.end_lineno, left.end_col_offset
        if line != right.lineno or line is None or start is None:
            return None
        gap = self.lines[line - 1][start : right.col_offset]
        if gap.strip(" ()") != operator:
            return None
        at = start + gap.index(operator)
        return line, at, at + len(operator)

    def on_one_line(self, node: ast.expr) -> bool:
        return node.lineno == node.end_lineno

    def text(self, node: ast.expr) -> str:
        return self.lines[node.lineno - 1][node.col_offset : node.end_col_offset]


Planter = Callable[[Source, random.Random], Iterator[Edit]]


def apply_edit(lines: list[str], edit: Edit) -> Applied | None:
    """The code with one edit made, when the result parses and its place can be named."""
    changed = list(lines)
    # From right to left, so that the columns of what is still to come stay true.
    for each in sorted((edit, *edit.also), key=lambda each: (each.line, each.start), reverse=True):
        text = changed[each.line - 1]
        changed[each.line - 1] = text[: each.start] + each.text + text[each.end :]
    before, after = lines[edit.line - 1], changed[edit.line - 1]
    window = unique_window(after, *_marked_columns(edit))
    if window is None or changed == lines:
        return None
    code = "\n".join(changed)
    try:
        ast.parse(code)
    except SyntaxError:
        return None
    start, end = window
    return Applied(code, edit.line, after[start:end], before[start : end - len(after) + len(before)])


def _marked_columns(edit: Edit) -> tuple[int, int]:
    if edit.marked is not None:
        return edit.marked
    left = [each for each in edit.also if each.line == edit.line and each.start < edit.start]
    start = edit.start + sum(len(each.text) - (each.end - each.start) for each in left)
    return start, start + len(edit.text)


def called_name(call: ast.Call) -> str:
    """The last name of what a call calls; empty where that is no name."""
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def free_name(source: Source, names: list[str], rng: random.Random) -> str | None:
    """One of the names that the code does not use yet."""
    free = [name for name in names if name.isidentifier() and not keyword.iskeyword(name) and name not in source.words]
    return rng.choice(free) if free else None
