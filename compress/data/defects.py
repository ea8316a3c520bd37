"""Defects planted in clean code, each with its rule, line and fix known.

Every planter looks at a parsed unit and proposes edits of one line. What it proposes is what people get
wrong: a name of the same scope, the neighbouring operator, the opposite test, arguments in the other
order, a number one off, the exception next to the right one. (Allamanis et al., "Self-Supervised Bug
Detection and Repair", NeurIPS 2021, use the same families.)
"""

import ast
import random
from collections.abc import Iterator

from bundle.units import FunctionNode
from compress.data.edits import Edit, Planter, Source, called_name

_COMPARISONS = {
    ast.Lt: ("<", ["<=", "<=", ">"]),
    ast.LtE: ("<=", ["<", "<", ">="]),
    ast.Gt: (">", [">=", ">=", "<"]),
    ast.GtE: (">=", [">", ">", "<="]),
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: ("is not", ["is"]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: ("not in", ["in"]),
}
_OPERATORS = {
    ast.Add: ("+", ["-"]),
    ast.Sub: ("-", ["+"]),
    ast.Mult: ("*", ["/", "+"]),
    ast.Div: ("/", ["*", "//"]),
    ast.FloorDiv: ("//", ["/", "%"]),
    ast.Mod: ("%", ["//"]),
    ast.BitAnd: ("&", ["|"]),
    ast.BitOr: ("|", ["&"]),
    ast.LShift: ("<<", [">>"]),
    ast.RShift: (">>", ["<<"]),
    ast.And: ("and", ["or"]),
    ast.Or: ("or", ["and"]),
}
_NEIGHBOUR_EXCEPTIONS = [
    ("KeyError", "IndexError"),
    ("KeyError", "AttributeError"),
    ("ValueError", "TypeError"),
    ("AttributeError", "TypeError"),
    ("OSError", "ValueError"),
    ("ImportError", "AttributeError"),
    ("StopIteration", "IndexError"),
    ("NotImplementedError", "StopIteration"),
    ("UnicodeDecodeError", "KeyError"),
    ("RuntimeError", "KeyError"),
]
# Calls that mean the same with their arguments in another order.
_COMMUTATIVE = frozenset(
    [
        "max",
        "min",
        "print",
        "zip",
        "set",
        "union",
        "intersection",
        "gcd",
        "lcm",
        "hypot",
        "debug",
        "info",
        "warning",
        "log",
    ]
)


def _wrong_comparison(source: Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            operator, others = _COMPARISONS[type(node.ops[0])]
            place = source.between(node.left, node.comparators[0], operator)
            if place is not None:
                yield Edit(*place, rng.choice(others))


def _wrong_operator(source: Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS and not _has_text(node):
            pairs = [(node.left, node.right)]
        elif isinstance(node, ast.BoolOp):
            pairs = list(zip(node.values, node.values[1:], strict=False))
        else:
            continue
        operator, others = _OPERATORS[type(node.op)]
        for left, right in pairs:
            place = source.between(left, right, operator)
            if place is not None:
                yield Edit(*place, rng.choice(others))


def _has_text(node: ast.BinOp) -> bool:
    """String formatting and joining have no wrong operator that would not fail at once."""
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    )


def _negated_condition(source: Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if not isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            continue
        test = node.test
        line = source.lines[test.lineno - 1]
        head = line[: test.col_offset].rstrip(" (")
        keyword = next((word for word in ("elif", "if", "while", "assert") if head.endswith(word)), None)
        if keyword is None or not source.on_one_line(test):
            continue
        start = len(head) - len(keyword)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            end = test.operand.end_col_offset
            kept = line[test.col_offset : end].removeprefix("not").lstrip()
        elif isinstance(test, ast.Name | ast.Attribute | ast.Call):
            end = test.end_col_offset
            kept = f"not {line[test.col_offset : end]}"
        else:
            continue
        if end is not None:
            yield Edit(test.lineno, start, end, line[start : test.col_offset] + kept)


def _swapped_arguments(source: Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if not isinstance(node, ast.Call) or called_name(node) in _COMMUTATIVE:
            continue
        for left, right in zip(node.args, node.args[1:], strict=False):
            simple = all(isinstance(arg, ast.Name | ast.Attribute | ast.Constant) for arg in (left, right))
            constants = isinstance(left, ast.Constant) and isinstance(right, ast.Constant)
            if not simple or constants or left.lineno != right.end_lineno or right.end_col_offset is None:
                continue
            first, second = source.text(left), source.text(right)
            gap = source.lines[left.lineno - 1][left.end_col_offset : right.col_offset]
            if first != second and gap.strip() == ",":
                yield Edit(left.lineno, left.col_offset, right.end_col_offset, f"{second}{gap}{first}")


def _off_by_one(source: Source, rng: random.Random) -> Iterator[Edit]:
    """Numbers that count or index: in subscripts, slices, range calls, comparisons and sums."""
    for node in source.nodes:
        if isinstance(node, ast.Subscript):
            inner = node.slice
            holders = [inner.lower, inner.upper] if isinstance(inner, ast.Slice) else [inner]
        elif isinstance(node, ast.Call) and called_name(node) == "range":
            holders = list(node.args)
        elif isinstance(node, ast.Compare):
            holders = [node.left, *node.comparators]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            holders = [node.left, node.right]
        else:
            continue
        for number in holders:
            if isinstance(number, ast.Constant) and type(number.value) is int and 0 <= number.value <= 16:
                changed = number.value + rng.choice([1, -1] if number.value > 0 else [1])
                if source.text(number).isdigit():
                    end = number.col_offset + len(source.text(number))
                    yield Edit(number.lineno, number.col_offset, end, str(changed))


def _wrong_exception(source: Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler):
            named = node.type
        elif isinstance(node, ast.Raise):
            named = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        else:
            continue
        if not isinstance(named, ast.Name):
            continue
        others = [b if a == named.id else a for a, b in _NEIGHBOUR_EXCEPTIONS if named.id in (a, b)]
        if others:
            end = named.col_offset + len(named.id)
            yield Edit(named.lineno, named.col_offset, end, rng.choice(others))


def _variable_misuse(source: Source, rng: random.Random) -> Iterator[Edit]:
    """A name read in place of another that is bound before it in the same function and read elsewhere too."""
    function = source.tree.body[0] if source.tree.body else None
    if not isinstance(function, FunctionNode):
        return
    arguments = function.args
    bound = {
        arg.arg: arg.lineno
        for arg in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        if arg.arg not in ("self", "cls")
    }
    reads: list[ast.Name] = []
    for node in source.nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound[node.id] = min(bound.get(node.id, node.lineno), node.lineno)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            reads.append(node)
    count: dict[str, int] = {}
    for read in reads:
        count[read.id] = count.get(read.id, 0) + 1
    body_start = function.body[0].lineno
    for read in reads:
        if read.id not in bound or count[read.id] < 2 or read.lineno < body_start:
            continue
        others = [name for name, line in bound.items() if name != read.id and line < read.lineno]
        if others:
            yield Edit(read.lineno, read.col_offset, read.col_offset + len(read.id), rng.choice(others))


DEFECTS: dict[str, Planter] = {
    "variable-misuse": _variable_misuse,
    "wrong-comparison": _wrong_comparison,
    "wrong-operator": _wrong_operator,
    "negated-condition": _negated_condition,
    "swapped-arguments": _swapped_arguments,
    "off-by-one": _off_by_one,
    "wrong-exception": _wrong_exception,
}
