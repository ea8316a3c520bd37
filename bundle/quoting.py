"""Where an answer quotes the code: a finding's `at` can only be text of the line that the finding names.

A JSON schema can not say so, because what `at` may hold depends on the line just written. So while a quote
is open, a second, small grammar holds: any run of whole words and other characters of that one line. A
student then finds the words it half remembers, where it would else misspell them. One that meant another
line altogether is told by its first token: see `bundle.confidence`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

_BEFORE_QUOTE = b'"at":"'
_NAMED_LINE = re.compile(rb'(?<!\\)"line":(\d+),')  # inside a string, the quotation marks are escaped
_QUOTED = re.compile(rb'(?:[^"\\]|\\.)*\\?', re.DOTALL)  # a token may end within an escape
_WORD_OR_CHARACTER = re.compile(r"\w+|.", re.DOTALL)


class OpenQuote(NamedTuple):
    """A quote that is written now, or comes next: its line (from 1), and what must still precede its text.

    No lead means that some of its text is written.
    """

    line: int
    lead: str | None


def open_quote(written: bytes) -> OpenQuote | None:
    """The quote an answer has come to: its line is named and its closing quotation mark is not there yet.

    Args:
        written: the answer so far.
    """
    lines = list(_NAMED_LINE.finditer(written))
    if not lines:
        return None
    named = lines[-1]
    rest = written[named.end() :]
    if _BEFORE_QUOTE.startswith(rest):
        return OpenQuote(int(named[1]), _BEFORE_QUOTE[len(rest) :].decode())
    quoted = _QUOTED.match(rest, len(_BEFORE_QUOTE))
    return OpenQuote(int(named[1]), None) if quoted is not None and quoted.end() == len(rest) else None


def quote_grammar(line: str, lead: str) -> str:
    """A Lark grammar, as llguidance reads it: `lead`, words of `line` as JSON has them, and whatever follows.

    The text may be empty: the answer's own schema forbids that.
    """
    words = [_json_text(word) for word in _WORD_OR_CHARACTER.findall(line.strip())]
    parts = ["QUOTE", '"\\""', "/(?s:.*)/"]
    if lead:
        parts.insert(0, _json(lead))
    return f"start: {' '.join(parts)}\nQUOTE: %regex {_json({'substring_chunks': words})}"


def quotable(lines: Sequence[str], number: int) -> bool:
    """Whether there is such a line and it holds something to quote."""
    return 1 <= number <= len(lines) and bool(lines[number - 1].strip())


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _json_text(text: str) -> str:
    return _json(text)[1:-1]
