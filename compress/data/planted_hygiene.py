"""Hygiene defects that natural code shows too rarely to learn from, planted as the linter would report them.

Every planter proposes edits after which ruff reports exactly one finding more, of the planter's rule.
"""

import ast
import random
from collections.abc import Iterator

from bundle.units import DefinitionNode, FunctionNode
from compress.data.edits import Edit, Planter, Source, called_name, free_name
from compress.data.shadowing import BUILTINS, shadowed_builtin

_RESULT_NAMES = ["result", "value", "ret", "res", "status", "output", "response", "data", "done", "ok", "rv", "tmp"]
_ERROR_NAMES = ["error", "exc", "err", "e", "ex", "exception"]
_COUNTER_NAMES = ["i", "index", "idx", "n", "position", "number", "count", "pos"]
_ELEMENT_NAMES = ["item", "name", "value", "entry", "element", "field", "part", "x"]
_KEY_NAMES = ["key", "name", "k", "label", "field"]
_LAMBDA_ARGUMENTS = ["value", "item", "x", "arg", "other", "y", "extra"]
_SCOPES = (*DefinitionNode.__args__, ast.Lambda)


def _none_comparison(source: Source, rng: random.Random) -> Iterator[Edit]:
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


def _bool_comparison(source: Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.If | ast.While) and isinstance(node.test, ast.Name | ast.Attribute):
            test = node.test
            if source.on_one_line(test) and test.end_col_offset is not None:
                yield Edit(test.lineno, test.col_offset, test.end_col_offset, f"{source.text(test)} == True")


def _bare_except(source: Source, rng: random.Random) -> Iterator[Edit]:
    for statement in source.nodes:
        if not isinstance(statement, ast.Try):
            continue
        for node in statement.handlers[-1:]:  # only the last may be bare
            if not isinstance(node.type, ast.Name) or node.name is not None or isinstance(node.body[0], ast.Pass):
                continue  # a bare handler that only passes is two findings
            if any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                continue  # a handler that raises on may be bare
            line = source.lines[node.lineno - 1]
            if line[node.col_offset :] == f"except {node.type.id}:":
                yield Edit(node.lineno, node.col_offset, len(line) - 1, "except")


def _mutable_default(source: Source, rng: random.Random) -> Iterator[Edit]:
    for node in source.nodes:
        if not isinstance(node, FunctionNode):
            continue
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaulted = zip(reversed(positional), reversed(arguments.defaults), strict=False)
        for argument, default in [*defaulted, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
            if isinstance(default, ast.Constant) and default.value in (None, ()):
                texts = _mutable_texts(argument)
                if texts:
                    end = default.col_offset + len(source.text(default))
                    yield Edit(default.lineno, default.col_offset, end, rng.choice(texts))


def _mutable_texts(argument: ast.arg) -> list[str]:
    """The defaults that fit; none where the annotation is of something immutable, which the linter trusts."""
    if argument.annotation is None:
        return ["[]", "{}"]
    annotation = ast.unparse(argument.annotation).removeprefix("Optional[").lower()
    return [text for name, text in (("list", "[]"), ("dict", "{}")) if annotation.startswith(name)]


def _raise_without_from(source: Source, rng: random.Random) -> Iterator[Edit]:
    for handler in source.nodes:
        if not isinstance(handler, ast.ExceptHandler):
            continue
        # The linter looks neither into the `try` of a handler nor into the `else` of its loops.
        inside = list(_within(handler.body, (*_SCOPES, ast.Try, ast.TryStar)))
        loops = [node for node in inside if isinstance(node, ast.For | ast.AsyncFor | ast.While)]
        unseen = {node for loop in loops for other in loop.orelse for node in ast.walk(other)}
        for node in inside:
            if node in unseen or not (
                isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.cause is not None
            ):
                continue
            if isinstance(node.cause, ast.Name):
                named = [each for each in ast.walk(handler) if isinstance(each, ast.Name) and each.id == handler.name]
                if node.cause.id != handler.name or all(each is node.cause for each in named):
                    continue  # the handler's name would become unused, a finding of its own
            elif not (isinstance(node.cause, ast.Constant) and node.cause.value is None):
                continue
            place = source.between(node.exc, node.cause, "from")
            if place is not None and node.lineno == node.end_lineno and node.cause.end_col_offset is not None:
                end = place[1] - 1
                yield Edit(node.lineno, end, node.cause.end_col_offset, "", marked=(node.col_offset, end))


def _unused_loop_variable(source: Source, rng: random.Random) -> Iterator[Edit]:
    for loop in source.nodes:
        if not isinstance(loop, ast.For | ast.AsyncFor):
            continue
        yield from _named_after_all(source, loop, rng)
        line = source.lines[loop.lineno - 1]
        target, over, end = loop.target, loop.iter, loop.iter.end_col_offset
        if not (isinstance(target, ast.Name) and isinstance(loop, ast.For) and end is not None):
            continue
        if line[target.col_offset + len(target.id) : over.col_offset] != " in " or not line[end:].startswith(":"):
            continue
        start, text = target.col_offset, source.text(over)
        key, index = free_name(source, _KEY_NAMES, rng), free_name(source, _COUNTER_NAMES, rng)
        if key and isinstance(over, ast.Call) and not over.args and text.endswith(".values()"):
            changed = f", {target.id} in {text.removesuffix('values()')}items()"
            yield Edit(loop.lineno, start, end, key + changed, marked=(start, start + len(key)))
        elif index and _countable(over, text):
            changed = f", {target.id} in enumerate({text})"
            yield Edit(loop.lineno, start, end, index + changed, marked=(start, start + len(index)))


def _named_after_all(source: Source, loop: ast.For | ast.AsyncFor, rng: random.Random) -> Iterator[Edit]:
    """Targets whose underscore says that they are not used, under names that do not say so."""
    counted = isinstance(loop.iter, ast.Call) and called_name(loop.iter) in ("range", "enumerate", "count")
    for target in ast.walk(loop.target):
        if not (isinstance(target, ast.Name) and target.id.startswith("_") and isinstance(target.ctx, ast.Store)):
            continue
        if any(isinstance(node, ast.Name) and node is not target and node.id == target.id for node in source.nodes):
            continue
        bare = target.id.strip("_")
        names = [*({bare} - BUILTINS)] if bare else _COUNTER_NAMES if counted else _ELEMENT_NAMES
        name = free_name(source, names, rng)
        if name is not None:
            yield Edit(target.lineno, target.col_offset, target.col_offset + len(target.id), name)


def _countable(over: ast.expr, text: str) -> bool:
    if isinstance(over, ast.Call):
        return called_name(over) not in ("range", "enumerate", "count")
    return isinstance(over, ast.Name | ast.Attribute | ast.Subscript) or text.startswith(("[", "("))


def _unused_variable(source: Source, rng: random.Random) -> Iterator[Edit]:
    if "locals" in source.words:
        return  # then the linter takes every local for used
    for function in source.nodes:
        if not isinstance(function, FunctionNode):
            continue
        for node in _within(function.body, _SCOPES):
            if isinstance(node, ast.Expr):
                call = node.value.value if isinstance(node.value, ast.Await) else node.value
                if isinstance(call, ast.Call) and called_name(call) not in ("__init__", "print"):
                    named = {called_name(call).split("_")[-1]} - BUILTINS if rng.random() < 0.4 else set()
                    name = free_name(source, [*named], rng) or free_name(source, _RESULT_NAMES, rng)
                    if name is not None:
                        start = node.col_offset
                        yield Edit(node.lineno, start, start, f"{name} = ", marked=(start, start + len(name)))
            elif isinstance(node, ast.ExceptHandler) and node.type is not None and node.name is None:
                name, after = free_name(source, _ERROR_NAMES, rng), node.type.end_col_offset
                if name is not None and after is not None and node.type.end_lineno is not None:
                    marked = (after + len(" as "), after + len(" as ") + len(name))
                    yield Edit(node.type.end_lineno, after, after, f" as {name}", marked=marked)


def _silent_except(source: Source, rng: random.Random) -> Iterator[Edit]:
    for handler in source.nodes:
        if not isinstance(handler, ast.ExceptHandler) or handler.name is not None or len(handler.body) != 1:
            continue
        if handler.type is not None and not (
            isinstance(handler.type, ast.Name) and handler.type.id in ("Exception", "BaseException")
        ):
            continue
        only, line = handler.body[0], source.lines[handler.lineno - 1]
        if only.lineno == handler.lineno or only.lineno != only.end_lineno or only.end_col_offset is None:
            continue
        if isinstance(only, ast.Return | ast.Expr | ast.Assign | ast.Continue | ast.Break) and _dispensable(
            source, only
        ):
            dropped = Edit(only.lineno, only.col_offset, only.end_col_offset, "pass")
            # The linter reports the handler, not what it consists of.
            start = handler.col_offset
            yield Edit(handler.lineno, start, start, "", (dropped,), (start, len(line)))


def _dispensable(source: Source, statement: ast.stmt) -> bool:
    """Whether a statement can go without another finding appearing or going with it."""
    parts = list(ast.walk(statement))
    if any(isinstance(part, ast.Lambda | ast.NamedExpr | ast.Compare) for part in parts):
        return False
    kept = [node for node in source.nodes if isinstance(node, ast.Name) and node not in parts]
    bound = {node.id for node in kept if not isinstance(node.ctx, ast.Load)}
    read = {node.id for node in kept if isinstance(node.ctx, ast.Load)}
    names = [part for part in parts if isinstance(part, ast.Name)]
    stores = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    loads = {name.id for name in names} - stores
    return stores <= (bound & read) - BUILTINS and all(name in read or name not in bound for name in loads)


def _lambda_assignment(source: Source, rng: random.Random) -> Iterator[Edit]:
    """A method held under a local name, wrapped in a lambda that takes what its calls pass."""
    for function in source.nodes:
        if not isinstance(function, FunctionNode):
            continue
        for node in _within(function.body, _SCOPES):
            if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and len(node.targets) == 1):
                continue
            target, value = node.targets[0], node.value
            if not isinstance(target, ast.Name) or node.lineno != node.end_lineno or value.end_col_offset is None:
                continue
            calls = [
                each
                for each in source.nodes
                if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == target.id
            ]
            counts = {len(call.args) for call in calls}
            free = [name for name in _LAMBDA_ARGUMENTS if name not in source.words]
            plain = not any(call.keywords or any(isinstance(a, ast.Starred) for a in call.args) for call in calls)
            if plain and len(counts) == 1 and max(counts) <= len(free):
                passed = ", ".join(rng.sample(free, max(counts)))
                text = f"lambda {passed}: {source.text(value)}({passed})".replace("lambda :", "lambda:")
                marked = (node.col_offset, value.col_offset + len(text))
                yield Edit(node.lineno, value.col_offset, value.end_col_offset, text, marked=marked)


def _within(body: list[ast.stmt], closed: tuple[type[ast.AST], ...]) -> Iterator[ast.AST]:
    """Every node of some statements but what stands inside nodes of the `closed` kinds."""
    inside: list[ast.AST] = [*reversed(body)]
    while inside:
        node = inside.pop()
        yield node
        if not isinstance(node, closed):
            inside.extend(ast.iter_child_nodes(node))


PLANTED_HYGIENE: dict[str, Planter] = {
    "none-comparison": _none_comparison,
    "bool-comparison": _bool_comparison,
    "bare-except": _bare_except,
    "mutable-default": _mutable_default,
    "raise-without-from": _raise_without_from,
    "unused-loop-variable": _unused_loop_variable,
    "unused-variable": _unused_variable,
    "shadowed-builtin": shadowed_builtin,
    "silent-except": _silent_except,
    "lambda-assignment": _lambda_assignment,
}
# The repair is the one that the linter would offer, not the text that happened to stand there.
HYGIENE_FIXES: dict[str, str | None] = {
    "bare-except": "except Exception",
    **dict.fromkeys(PLANTED_HYGIENE.keys() - {"none-comparison", "bool-comparison", "bare-except"}),
}
# How often a rule is drawn where several have a place: the rarer its places are in a corpus, the more.
HYGIENE_WEIGHTS: dict[str, float] = {
    "raise-without-from": 40.0,
    "silent-except": 40.0,
    "lambda-assignment": 40.0,
    "bare-except": 20.0,
    "unused-loop-variable": 8.0,
    "mutable-default": 1.5,
    "none-comparison": 1.0,
    "bool-comparison": 0.5,
    "unused-variable": 0.1,
    "shadowed-builtin": 0.05,
}
