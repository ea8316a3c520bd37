"""Lines of code are those that Python's own tokenizer finds code on."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

from serve.analysis.metrics import measure

_NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
REAL = sorted(Path(ast.__file__).parent.glob("[a-d]*.py"))
TRICKY = [
    "",
    "\n\n",
    "# only\n# comments",
    'x = """one\n\n# no comment\n"""  # a comment\n',
    "x = '''it's\n\"\"\"\n'''\n# '''\ny = 2\n",
    "x = 1 + \\\n    2\n\\\n\ny = 3\n",
    "x = 'it\\'s # no comment'\n\n# isn't\ny = \"\\\\\"\n# a comment\n",
    "x = (\n    'a'\n    # between\n    'b'\n)\n",
    "x = r'\\'  # '\n'''\n\n'''\n",
    "x = 'a\\\n# no comment'\n",
    "x = f'{1}'  # {\n\nif x:\n\tpass\n\x0c\n",
    "x = rb'''\\'''\n# text\n'''\n",
]


def _with_tokenize(source: str) -> int:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


@pytest.mark.parametrize("source", TRICKY)
def test_lines_of_code_in_hard_places(source: str) -> None:
    assert measure(source, ast.parse(source)).code_lines == _with_tokenize(source)


def test_lines_of_code_of_the_standard_library() -> None:
    sources = [file.read_text(encoding="utf-8") for file in REAL]
    assert len(sources) > 30
    for file, source in zip(REAL, sources, strict=True):
        assert measure(source, ast.parse(source)).code_lines == _with_tokenize(source), file
