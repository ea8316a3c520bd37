"""Numbers about a file, computed from its syntax tree and its tokens."""

import ast
import io
import tokenize
from collections.abc import Iterator

from radon.visitors import ComplexityVisitor

from bundle.units import DefinitionNode, FunctionNode
from serve.analysis.report import CyclomaticComplexity, FunctionComplexity, Metrics

_NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def measure(source: str, tree: ast.Module) -> Metrics:
    """The metrics of a file.

    Args:
        source: normalised source.
        tree: the same source, parsed.
    """
    functions = tuple(_functions_of(tree, ""))
    complexities = [function.complexity for function in functions]
    return Metrics(
        lines=source.count("\n") + (source[-1:] not in ("", "\n")),
        code_lines=_code_lines(source),
        functions=len(functions),
        classes=sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree)),
        cyclomatic_complexity=CyclomaticComplexity(
            total=sum(complexities), max=max(complexities, default=0), functions=functions
        ),
    )


def _functions_of(owner: ast.AST, prefix: str) -> Iterator[FunctionComplexity]:
    for node in ast.iter_child_nodes(owner):
        if isinstance(node, FunctionNode):
            visitor = ComplexityVisitor()
            visitor.visit(node)
            yield FunctionComplexity(
                name=f"{prefix}{node.name}",
                start_line=node.lineno,
                end_line=node.end_lineno or node.lineno,
                complexity=visitor.functions[0].complexity,
            )
        inner = f"{prefix}{node.name}." if isinstance(node, DefinitionNode) else prefix
        yield from _functions_of(node, inner)


def _code_lines(source: str) -> int:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)
