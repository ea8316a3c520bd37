"""Defects planted in clean code, each with its rule, line and fix known.

Every planter looks at a parsed unit and proposes edits of one line. What it proposes is what people get
wrong: a name of the same scope, the neighbouring operator, the opposite test, arguments in the other
order, a number one off, the exception next to the right one. (Allamanis et al., "Self-Supervised Bug
Detection and Repair", NeurIPS 2021, use the same families.)
"""

import ast
import random
from collections.abc import Callable, Iterator

import msgspec

from bundle.answer import MAX_SPAN_CHARS, AnswerFinding
from bundle.units import FunctionNode
from compress.data.spans import unique_window


class Edit(msgspec.Struct, frozen=True):
    """Replace columns [start, end) of a 1-based line of the unit by `text`."""

    line: int
    start: int
    end: int
    text: str


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


class _Source:
    """A unit's code beside its tree, with the places of nodes in characters."""

    def __init__(self, code: str) -> None:
        self.lines = code.split("\n")
        self.tree = ast.parse(code)
        self.nodes = list(ast.walk(self.tree))

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


def _wrong_comparison(source: _Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            operator, others = _COMPARISONS[type(node.ops[0])]
            place = source.between(node.left, node.comparators[0], operator)
            if place is not None:
                yield Edit(*place, rng.choice(others))


def _wrong_operator(source: _Source, rng: random.Random) -> Iterator[Edit]:
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


def _negated_condition(source: _Source, rng: random.Random) -> Iterator[Edit]:
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


def _swapped_arguments(source: _Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if not isinstance(node, ast.Call) or _called_name(node) in _COMMUTATIVE:
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


def _called_name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _off_by_one(source: _Source, rng: random.Random) -> Iterator[Edit]:
    """Numbers that count or index: in subscripts, slices, range calls, comparisons and sums."""
    for node in source.nodes:
        if isinstance(node, ast.Subscript):
            inner = node.slice
            holders = [inner.lower, inner.upper] if isinstance(inner, ast.Slice) else [inner]
        elif isinstance(node, ast.Call) and _called_name(node) == "range":
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


def _wrong_exception(source: _Source, rng: random.Random) -> Iterator[Edit]:
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


def _variable_misuse(source: _Source, rng: random.Random) -> Iterator[Edit]:
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


def _none_comparison(source: _Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Is | ast.IsNot):
            right = node.comparators[0]
            operator = "is" if isinstance(node.ops[0], ast.Is) else "is not"
            place = source.between(node.left, right, operator)
            if place is not None and isinstance(right, ast.Constant) and right.value is None:
                # The whole comparison, as ruff's own fix has it.
                text = source.text(node)
                changed = text[: place[1] - node.col_offset] + ("== None" if operator == "is" else "!= None")
                if source.on_one_line(node) and node.end_col_offset is not None:
                    yield Edit(node.lineno, node.col_offset, node.end_col_offset, changed)


def _bool_comparison(source: _Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.If | ast.While) and isinstance(node.test, ast.Name | ast.Attribute):
            test = node.test
            if source.on_one_line(test) and test.end_col_offset is not None:
                yield Edit(test.lineno, test.col_offset, test.end_col_offset, f"{source.text(test)} == True")


def _bare_except(source: _Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.name is None:
            if any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                continue  # a handler that raises on may be bare
            line = source.lines[node.lineno - 1]
            if line[node.col_offset :] == f"except {node.type.id}:":
                yield Edit(node.lineno, node.col_offset, len(line) - 1, "except")


def _mutable_default(source: _Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, FunctionNode):
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                if isinstance(default, ast.Constant) and default.value in (None, ()):
                    end = default.col_offset + len(source.text(default))
                    yield Edit(default.lineno, default.col_offset, end, rng.choice(["[]", "{}"]))


Planter = Callable[[_Source, random.Random], Iterator[Edit]]
DEFECTS: dict[str, Planter] = {
    "variable-misuse": _variable_misuse,
    "wrong-comparison": _wrong_comparison,
    "wrong-operator": _wrong_operator,
    "negated-condition": _negated_condition,
    "swapped-arguments": _swapped_arguments,
    "off-by-one": _off_by_one,
    "wrong-exception": _wrong_exception,
}
# Linter rules that natural code breaks too rarely to learn from, so some are planted as well.
# Their repair is the one that the linter would offer, not the text that happened to stand there.
HYGIENE_FIXES: dict[str, str | None] = {"bare-except": "except Exception", "mutable-default": None}
PLANTED_HYGIENE: dict[str, Planter] = {
    "none-comparison": _none_comparison,
    "bool-comparison": _bool_comparison,
    "bare-except": _bare_except,
    "mutable-default": _mutable_default,
}


def plant(
    code: str, planters: dict[str, Planter], weights: dict[str, float], rng: random.Random
) -> tuple[str, AnswerFinding] | None:
    """Plant one defect in a unit's code.

    A rule is drawn by weight among those with a place in this code, then a place among the rule's places.

    Args:
        weights: how often a rule is drawn relative to the others; 1 where absent.

    Returns:
        The changed code and what a perfect answer says of it; None when the code offers no place, or
        does not parse by itself.
    """
    if not code.isascii():
        return None  # ast counts bytes; the few units with other text are left as they are
    try:
        source = _Source(code)
    except SyntaxError:
        return None  # a class or module remainder whose only content was cut out of a block
    choices = [(rule, list(planter(source, rng))) for rule, planter in planters.items()]
    choices = [(rule, edits) for rule, edits in choices if edits]
    while choices:
        index = rng.choices(range(len(choices)), [weights.get(rule, 1.0) for rule, _ in choices])[0]
        rule, edits = choices[index]
        edit = edits.pop(rng.randrange(len(edits)))
        planted = _apply(source.lines, rule, edit)
        if planted is not None:
            return planted
        if not edits:
            choices.pop(index)
    return None


def _apply(lines: list[str], rule: str, edit: Edit) -> tuple[str, AnswerFinding] | None:
    """The code with one edit made, when the result parses and its place can be named."""
    before = lines[edit.line - 1]
    after = before[: edit.start] + edit.text + before[edit.end :]
    window = unique_window(after, edit.start, edit.start + len(edit.text))
    if window is None or after == before:
        return None
    changed = "\n".join([*lines[: edit.line - 1], after, *lines[edit.line :]])
    try:
        ast.parse(changed)
    except SyntaxError:
        return None
    start, end = window
    original = before[start : end - len(after) + len(before)]
    fix = HYGIENE_FIXES.get(rule, original)
    if fix is not None and len(fix) > MAX_SPAN_CHARS:
        return None  # no answer may say it
    return changed, AnswerFinding(rule=rule, line=edit.line, at=after[start:end], fix=fix)
