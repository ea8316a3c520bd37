"""Whether a unit's own syntax bears a finding out.

A rule is about something: a shadowed builtin about a name that is bound, an unused variable about one that is never
read, a bare except about a handler without a type. Where what a finding marks holds nothing of that kind, the syntax
tree contradicts it, whatever the student thought. This is no linter: it says what can not be so, and never what is.
A rule that is not known here, and a unit that does not parse by itself, contradict nothing.
"""

import ast
import builtins
import functools
from collections.abc import Callable, Iterator, Sequence

from bundle.answer import AnswerFinding
from bundle.units import FunctionNode, UnparsableCode, parse

_BUILTINS = frozenset(dir(builtins))
_MUTABLE = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp | ast.Call
_LOOPS = ast.For | ast.AsyncFor
_TESTED = ast.If | ast.While | ast.IfExp | ast.Assert

# Where something stands: first line and column, last line and column; columns in bytes, the last one exclusive.
_Span = tuple[int, int, int, int]


class Evidence:
    """What one unit's syntax tree says about findings in it."""

    def __init__(self, texts: Sequence[str]) -> None:
        """
        Args:
            texts: the unit's lines.
        """
        self._texts = texts

    def contradicts(self, finding: AnswerFinding) -> bool:
        """Whether there is nothing at the place of a finding that its rule could be about.

        Args:
            finding: placed, so that `at` stands on its line exactly once (`bundle.answer.placed_line`).
        """
        subjects = _SUBJECTS.get(finding.rule)
        if subjects is None or self._nodes is None:
            return False
        text = self._texts[finding.line - 1]
        start = len(text[: text.index(finding.at)].encode())
        marked = (finding.line, start, finding.line, start + len(finding.at.encode()))
        return not any(_overlap(span, marked) for span in subjects(self._nodes))

    @functools.cached_property
    def _nodes(self) -> list[ast.AST] | None:
        try:
            return list(ast.walk(parse("\n".join(self._texts))))
        except UnparsableCode:
            return None


def keeps_meaning(finding: AnswerFinding) -> bool:
    """Whether the fix of a comparison to None, True or False asks what the comparison asked.

    `x == False` is `not x`, and a student may write `x`: that parses as well. Fixes of other rules are meant to
    change what the code does, and are not judged here.
    """
    if finding.fix is None or finding.rule not in ("none-comparison", "bool-comparison"):
        return True
    try:
        before, after = (ast.parse(text, mode="eval").body for text in (finding.at.strip(), finding.fix.strip()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # a part of an expression may mean anything
    if not isinstance(before, ast.Compare) or len(before.ops) != 1:
        return False
    is_equal = isinstance(before.ops[0], ast.Eq)
    by_identity = ast.Is() if is_equal else ast.IsNot()
    same: list[ast.expr] = [ast.Compare(before.left, [by_identity], before.comparators)]
    if finding.rule == "bool-comparison":
        sides = [before.left, before.comparators[0]]
        for value, constant in zip(sides, reversed(sides), strict=True):
            if isinstance(constant, ast.Constant) and isinstance(constant.value, bool):
                same.append(value if constant.value == is_equal else ast.UnaryOp(ast.Not(), value))
    return ast.dump(after) in map(ast.dump, same)


def _overlap(one: _Span, other: _Span) -> bool:
    return one[:2] < other[2:] and other[:2] < one[2:]


def _span(node: ast.expr | ast.stmt | ast.arg | ast.alias | ast.excepthandler) -> _Span:
    assert node.end_lineno is not None and node.end_col_offset is not None, "ast.parse always sets them"
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _header(node: ast.stmt | ast.excepthandler, body: Sequence[ast.stmt]) -> _Span:
    """A compound statement up to its body."""
    return node.lineno, node.col_offset, body[0].lineno, body[0].col_offset


def _each(*kinds: type[ast.expr] | type[ast.stmt]) -> Callable[[list[ast.AST]], Iterator[_Span]]:
    def spans(nodes: list[ast.AST]) -> Iterator[_Span]:
        return (_span(node) for node in nodes if isinstance(node, kinds))

    return spans


def _mutable_defaults(nodes: list[ast.AST]) -> Iterator[_Span]:
    for node in nodes:
        if isinstance(node, ast.arguments):
            for default in [*node.defaults, *node.kw_defaults]:
                if isinstance(default, _MUTABLE):
                    yield _span(default)


def _handlers(nodes: list[ast.AST]) -> Iterator[ast.ExceptHandler]:
    return (node for node in nodes if isinstance(node, ast.ExceptHandler))


def _bare_excepts(nodes: list[ast.AST]) -> Iterator[_Span]:
    for handler in _handlers(nodes):
        raised_again = any(isinstance(node, ast.Raise) and node.exc is None for node in handler.body)
        if handler.type is None and not raised_again:
            yield _header(handler, handler.body)


def _silent_excepts(nodes: list[ast.AST]) -> Iterator[_Span]:
    return (_span(handler) for handler in _handlers(nodes) if isinstance(handler.body[0], ast.Pass))


def _comparisons_to(*values: object) -> Callable[[list[ast.AST]], Iterator[_Span]]:
    def spans(nodes: list[ast.AST]) -> Iterator[_Span]:
        for node in nodes:
            if isinstance(node, ast.Compare) and any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops):
                sides = [node.left, *node.comparators]
                if any(isinstance(side, ast.Constant) and side.value in values for side in sides):
                    yield _span(node)

    return spans


def _read_in(scope: ast.AST) -> set[str]:
    names = (node for node in ast.walk(scope) if isinstance(node, ast.Name))
    return {name.id for name in names if not isinstance(name.ctx, ast.Store)}


def _unused_variables(nodes: list[ast.AST]) -> Iterator[_Span]:
    for function in nodes:
        if not isinstance(function, FunctionNode):
            continue
        read = _read_in(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in read:
                yield _span(node)
            elif isinstance(node, ast.ExceptHandler) and node.name is not None and node.name not in read:
                yield _header(node, node.body)


def _unused_loop_variables(nodes: list[ast.AST]) -> Iterator[_Span]:
    for loop in nodes:
        if isinstance(loop, _LOOPS):
            read = set().union(*(_read_in(statement) for statement in loop.body))
            for node in ast.walk(loop.target):
                if isinstance(node, ast.Name) and node.id not in read:
                    yield _span(node)


def _shadowed_builtins(nodes: list[ast.AST]) -> Iterator[_Span]:
    for node in nodes:
        match node:
            case ast.arg(arg=name) if name in _BUILTINS:
                # An annotation is part of the node and binds nothing.
                yield node.lineno, node.col_offset, node.lineno, node.col_offset + len(name)
            case ast.Name(id=name, ctx=ast.Store()) if name in _BUILTINS:
                yield _span(node)
            case ast.alias() if (node.asname or node.name) in _BUILTINS:
                yield _span(node)
            case ast.ExceptHandler(name=str(name)) if name in _BUILTINS:
                yield _header(node, node.body)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name) if (
                name in _BUILTINS
            ):
                yield _header(node, node.body)


def _raised_in_handlers(nodes: list[ast.AST]) -> Iterator[_Span]:
    for handler in _handlers(nodes):
        for node in ast.walk(handler):
            if isinstance(node, ast.Raise) and node.exc is not None and node.cause is None:
                yield _span(node)


def _assigned_lambdas(nodes: list[ast.AST]) -> Iterator[_Span]:
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if all(isinstance(target, ast.Name) for target in targets):
                yield _span(node)


def _read_names(nodes: list[ast.AST]) -> Iterator[_Span]:
    return (_span(node) for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))


def _operations(nodes: list[ast.AST]) -> Iterator[_Span]:
    return (_span(node) for node in nodes if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign))


def _conditions(nodes: list[ast.AST]) -> Iterator[_Span]:
    for node in nodes:
        if isinstance(node, _TESTED):
            # The keyword stands before the test, on its line.
            yield node.test.lineno, 0, *_span(node.test)[2:]


def _calls_with_arguments(nodes: list[ast.AST]) -> Iterator[_Span]:
    for node in nodes:
        if isinstance(node, ast.Call) and len(node.args) + len(node.keywords) > 1:
            yield _span(node)


def _whole_numbers(nodes: list[ast.AST]) -> Iterator[_Span]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
            yield _span(node)


def _exceptions(nodes: list[ast.AST]) -> Iterator[_Span]:
    for node in nodes:
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield _span(node.exc)
        elif isinstance(node, ast.ExceptHandler) and node.type is not None:
            yield _span(node.type)


_SUBJECTS: dict[str, Callable[[list[ast.AST]], Iterator[_Span]]] = {
    "variable-misuse": _read_names,
    "wrong-comparison": _each(ast.Compare),
    "wrong-operator": _operations,
    "negated-condition": _conditions,
    "swapped-arguments": _calls_with_arguments,
    "off-by-one": _whole_numbers,
    "wrong-exception": _exceptions,
    "mutable-default": _mutable_defaults,
    "bare-except": _bare_excepts,
    "none-comparison": _comparisons_to(None),
    "bool-comparison": _comparisons_to(True, False),
    "unused-variable": _unused_variables,
    "shadowed-builtin": _shadowed_builtins,
    "unused-loop-variable": _unused_loop_variables,
    "silent-except": _silent_excepts,
    "raise-without-from": _raised_in_handlers,
    "lambda-assignment": _assigned_lambdas,
}
