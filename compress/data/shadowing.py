"""Locals renamed to builtins: the one planted edit that changes every line which names something."""

import ast
import builtins
import random
from collections.abc import Iterator

from bundle.units import DefinitionNode, FunctionNode
from compress.data.edits import Edit, Source, free_name

BUILTINS = frozenset(dir(builtins))
# A local's name, and the builtin that people call it instead.
_BUILTIN_FOR = {
    **dict.fromkeys(["lst", "items", "values", "names", "entries", "results", "elements"], "list"),
    **dict.fromkeys(["d", "dct", "mapping", "table", "params", "options", "kwds", "kwargs"], "dict"),
    **dict.fromkeys(["kind", "typ", "klass", "cls", "tp", "ctype", "type_"], "type"),
    **dict.fromkeys(["key", "ident", "uid", "number", "index", "id_"], "id"),
    **dict.fromkeys(["s", "string", "text", "st", "word"], "str"),
    **dict.fromkeys(["line", "source", "inp", "prompt", "request"], "input"),
    **dict.fromkeys(["data", "buf", "buffer", "raw", "chunk", "payload"], "bytes"),
    **dict.fromkeys(["n", "size", "length", "num", "width"], "len"),
    **dict.fromkeys(["total", "count", "result"], "sum"),
    **dict.fromkeys(["path", "directory", "folder", "dirname", "base"], "dir"),
    **dict.fromkeys(["fmt", "spec", "template", "pattern"], "format"),
    **dict.fromkeys(["func", "fn", "predicate", "test", "check"], "filter"),
    **dict.fromkeys(["hi", "high", "end", "stop", "limit", "last"], "max"),
    **dict.fromkeys(["lo", "low", "begin", "first", "minimum"], "min"),
    **dict.fromkeys(["obj", "o", "instance", "value"], "object"),
    **dict.fromkeys(["it", "iterator", "iterable"], "iter"),
    **dict.fromkeys(["seen", "unique"], "set"),
    **dict.fromkeys(["digest", "h"], "hash"),
}
_ANY_BUILTIN = ["all", "any", "dir", "filter", "format", "hash", "id", "input", "iter", "list", "map", "max", "min"]
_ANY_BUILTIN += ["next", "object", "range", "set", "str", "sum", "type", "vars"]


def shadowed_builtin(source: Source, rng: random.Random) -> Iterator[Edit]:
    """A local or an argument under a builtin's name, wherever the function names it."""
    function = source.tree.body[0] if source.tree.body else None
    inner = [node for node in source.nodes if node is not function]
    if not isinstance(function, FunctionNode) or "locals" in source.words:
        return
    if any(isinstance(node, (*DefinitionNode.__args__, ast.Global, ast.Nonlocal)) for node in inner):
        return
    for name, binding in _renamable(source, function).items():
        fitting = [_BUILTIN_FOR[name]] if name in _BUILTIN_FOR else _ANY_BUILTIN
        builtin = free_name(source, fitting, rng) or free_name(source, _ANY_BUILTIN, rng)
        if builtin is None:
            continue
        others = [node for node in inner if isinstance(node, ast.Name) and node.id == name and node is not binding]
        also = tuple(Edit(node.lineno, node.col_offset, node.col_offset + len(name), builtin) for node in others)
        yield Edit(binding.lineno, binding.col_offset, binding.col_offset + len(name), builtin, also)


def _renamable(source: Source, function: FunctionNode) -> dict[str, ast.Name | ast.arg]:
    """Names bound in one place and read in the function's body, each with that place."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    bindings: dict[str, list[ast.Name | ast.arg]] = {argument.arg: [argument] for argument in arguments}
    left_alone: set[str | None] = {"self", "cls", *BUILTINS}
    for node in source.nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bindings.setdefault(node.id, []).append(node)
        elif isinstance(node, ast.arg) and node not in arguments:
            left_alone.add(node.arg)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            left_alone.add(node.name)
        elif isinstance(node, ast.MatchMapping):
            left_alone.add(node.rest)
        elif isinstance(node, ast.alias):
            left_alone.add(node.asname or node.name.split(".")[0])
        elif isinstance(node, ast.comprehension | ast.For | ast.AsyncFor):
            # A comprehension's names are its own; a loop's may be unused in the loop, which is another finding.
            unread = {each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)}
            if not isinstance(node, ast.comprehension):
                unread -= _reads(node.body)
            left_alone |= unread
        elif isinstance(node, ast.JoinedStr):
            left_alone |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}  # places unknown
        elif isinstance(node, ast.Compare) and _compares_to_constant(node):
            left_alone |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}  # may be a finding
    head = [*function.decorator_list, function.args, *([function.returns] if function.returns else [])]
    read = _reads(function.body) - _reads(head)
    return {
        name: places[0]
        for name, places in bindings.items()
        if len(places) == 1 and name in read and name not in left_alone
    }


def _compares_to_constant(node: ast.Compare) -> bool:
    equality = any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops)
    return equality and any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))


def _reads(nodes: list) -> set[str]:
    walked = (each for node in nodes for each in ast.walk(node))
    return {each.id for each in walked if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}
