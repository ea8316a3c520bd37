"""`# deepcode: ignore` and `# deepcode: ignore[rule-a, rule-b]`: what the code itself asks not to be told."""

import io
import re
import tokenize
from collections.abc import Iterator, Set

from serve.analysis.report import Finding

IGNORE = re.compile(r"#\s*deepcode:\s*ignore(?:\[([^\]]*)\])?(?![\w\[-])")


def ignored_lines(source: str) -> dict[int, Set[str] | None]:
    """The lines with such a comment -> the rules it names; None for all rules.

    Text in a string that looks like a comment is none.
    """
    if not IGNORE.search(source):
        return {}
    ignored: dict[int, Set[str] | None] = {}
    for number, comment in _comments(source):
        found = IGNORE.search(comment)
        if found is not None:
            ignored[number] = None if found[1] is None else {rule.strip() for rule in found[1].split(",")}
    return ignored


def is_ignored(finding: Finding, ignored: dict[int, Set[str] | None]) -> bool:
    """Whether a comment on one of the finding's lines ignores its rule."""
    rules = (ignored.get(line, frozenset()) for line in range(finding.start_line, finding.end_line + 1))
    return any(named is None or finding.rule in named for named in rules)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    except (tokenize.TokenError, SyntaxError):
        return  # newer syntax than this Python's: what was read so far counts
