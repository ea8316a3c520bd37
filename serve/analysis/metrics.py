"""Numbers about a file, computed from its syntax tree and its tokens."""

import ast
import re
from collections.abc import Iterator

from radon.visitors import ComplexityVisitor

from bundle.units import DefinitionNode, FunctionNode, definitions_in
from serve.analysis.report import CyclomaticComplexity, FunctionComplexity, Metrics

_STRING_OR_COMMENT = re.compile(
    r"""#[^\n]*|"{3}(?:\\.|[^\\])*?"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*\'""", re.DOTALL
)


def measure(source: str, tree: ast.Module) -> Metrics:
    """The metrics of a file.

    Args:
        source: normalised source.
        tree: the same source, parsed.
    """
    definitions = list(_definitions_below(tree, ""))
    functions = tuple(_complexity(name, node) for name, node in definitions if isinstance(node, FunctionNode))
    complexities = [function.complexity for function in functions]
    return Metrics(
        lines=source.count("\n") + (source[-1:] not in ("", "\n")),
        code_lines=_code_lines(source),
        functions=len(functions),
        classes=len(definitions) - len(functions),
        cyclomatic_complexity=CyclomaticComplexity(
            total=sum(complexities), max=max(complexities, default=0), functions=functions
        ),
    )


def _definitions_below(owner: ast.AST, prefix: str) -> Iterator[tuple[str, DefinitionNode]]:
    """Every function and class, however deep, by its dotted name and in the order in which they start."""
    for node in sorted(definitions_in(owner), key=lambda node: (node.lineno, node.col_offset)):
        name = f"{prefix}{node.name}"
        yield name, node
        yield from _definitions_below(node, f"{name}.")


def _complexity(name: str, node: FunctionNode) -> FunctionComplexity:
    visitor = ComplexityVisitor()
    visitor.visit(node)
    return FunctionComplexity(
        name=name,
        start_line=node.lineno,
        end_line=node.end_lineno or node.lineno,
        complexity=visitor.functions[0].complexity,
    )


def _code_lines(source: str) -> int:
    """The lines with more than a comment; every line of a string is one. `source` parses.

    `tokenize` would tell too, and take ten times as long, which is most of what a file costs beside its parsing.
    """
    lines = _STRING_OR_COMMENT.sub(_as_code, source).split("\n")
    return sum(line.strip() not in ("", "\\") for line in lines)


def _as_code(found: re.Match[str]) -> str:
    return "" if found[0].startswith("#") else "\n".join("x" * (found[0].count("\n") + 1))
