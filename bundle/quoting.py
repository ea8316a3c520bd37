"""Where an answer quotes the code: a finding's `at` can only be text of the line that the finding names.

A JSON schema can not say so, because what `at` may hold depends on the line just written. So while a quote
is open, it must also be a run of whole words and other characters of that one line. A student then finds the
words it half remembers, where it would else misspell them. One that meant another line altogether is told by
its first token: see `bundle.confidence`.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec

_BEFORE_QUOTE = b'"at":"'
_NAMED_LINE = re.compile(rb'(?<!\\)"line":(\d+),')  # inside a string, the quotation marks are escaped
_QUOTED = re.compile(rb'(?:[^"\\]|\\.)*\\?', re.DOTALL)  # a token may end within an escape
_WORD_OR_CHARACTER = re.compile(r"\w+|.", re.DOTALL)


class OpenQuote(NamedTuple):
    """A quote that is written now, or comes next: its line (from 1), and all that is written behind the line."""

    line: int
    written: bytes

    @property
    def has_text(self) -> bool:
        """More than what must precede its text is written."""
        return len(self.written) > len(_BEFORE_QUOTE)


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
    if _BEFORE_QUOTE.startswith(rest) or _end_of_text(rest) == len(rest):
        return OpenQuote(int(named[1]), rest)
    return None


class Quote:
    """What a finding may quote of one line: any run of its words and other characters, as JSON writes them."""

    def __init__(self, line: str) -> None:
        """`line`: must be `quotable`."""
        parts = [msgspec.json.encode(part)[1:-1] for part in _WORD_OR_CHARACTER.findall(line.strip())]
        ends = list(accumulate(map(len, parts)))
        self._line = b"".join(parts)
        self._starts, self._ends = [0, *ends[:-1]], ends
        self._is_end = frozenset(ends)

    def allows(self, written: bytes) -> bool:
        """Whether this is the beginning of a quote, or begins with a whole one.

        Args:
            written: all behind the line that the finding names.
        """
        if not written.startswith(_BEFORE_QUOTE):
            return _BEFORE_QUOTE.startswith(written)
        end = _end_of_text(written)
        text = written[len(_BEFORE_QUOTE) : end]
        starts = [start for start in self._starts if self._line.startswith(text, start)]
        if end == len(written):
            return bool(starts)
        return bool(text) and any(start + len(text) in self._is_end for start in starts)

    def continuations(self, written: bytes, longest: int) -> Iterator[tuple[bytes, bool]]:
        """What may come next: every beginning of it, and every one that the quote's closing mark ends.

        Args:
            written: all behind the line that the finding names, an open quote.
            longest: in bytes, of what is wanted.

        Yields:
            Bytes, and whether anything may follow them. Some come more than once.
        """
        lead, text = _BEFORE_QUOTE[len(written) :], written[len(_BEFORE_QUOTE) :]
        for start in self._starts:
            if not self._line.startswith(text, start):
                continue
            done = start + len(text)
            rest = (lead + self._line[done : done + longest])[:longest]
            yield from ((rest[:size], False) for size in range(1, len(rest) + 1))
            for end in self._ends[bisect_left(self._ends, max(done, start + 1)) :]:
                if len(lead) + end - done >= longest:
                    break
                yield rest[: len(lead) + end - done] + b'"', True


def quotable(lines: Sequence[str], number: int) -> bool:
    """Whether there is such a line and it holds something to quote."""
    return 1 <= number <= len(lines) and bool(lines[number - 1].strip())


def _end_of_text(written: bytes) -> int:
    """Where the text of a quote ends: at its closing mark, or with what is written."""
    quoted = _QUOTED.match(written, len(_BEFORE_QUOTE))
    assert quoted is not None, "it matches no text too"
    return quoted.end()
