"""Which request owns which KV row.

    | decoding … | leaving … | prefilling … | empty … |
      0           ._decoding  ._complete     ._started

A call reads rows that lie side by side, so rows are kept in this order: those whose prompt is complete, those whose
answer is, those whose prompt is begun, and those of which nothing is computed yet. A row that leaves is replaced by the
last of its zone. While prompts are computed beside the answers their rows must not move: what leaves before them keeps
its place until `sweep`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bundle.grammar import AnswerMatcher
from serve.engine.delivery import Answering
from serve.engine.kv import KvCache


@dataclass(eq=False)
class Row:
    """A request that owns a KV row."""

    answering: Answering
    matcher: AnswerMatcher | None
    """Where its answer stands in the grammar; None for free text."""
    draws: np.random.Generator
    pending: list[int]
    """Tokens that are known and not in the KV row yet."""
    room: int
    """How many more tokens its answer may have."""
    reserved: int
    """How many tokens its KV row may come to hold."""
    shared: int = 0
    """How many tokens of its prompt are copied rather than computed."""
    length: int = 0
    """How many tokens its KV row holds."""
    tail: bytes = b""
    """The end of its answer, as far as `until` may have begun in it."""
    turn: int = 0
    """When a chunk of its prompt was last computed; the row that waits longest is next."""


class Rows:
    """The rows in use, the index in `all` being the KV row."""

    def __init__(self, kv: KvCache) -> None:
        """`kv`: whose rows they are; nobody else moves them."""
        self.all: list[Row] = []
        self._kv = kv
        self._decoding = 0
        self._complete = 0
        self._started = 0

    @property
    def decoding(self) -> list[Row]:
        """Rows whose prompt is computed but for its last token."""
        return self.all[: self._decoding]

    @property
    def prefilling(self) -> list[Row]:
        """Rows with a part of their prompt, or with nothing to compute before their last token."""
        return self.all[self._complete : self._started]

    @property
    def running(self) -> list[Row]:
        """All whose answer is not over."""
        return [*self.decoding, *self.prefilling, *self.empty]

    @property
    def empty(self) -> list[Row]:
        """Rows of which nothing is computed."""
        return self.all[self._started :]

    def index(self, row: Row) -> int:
        """The KV row it owns."""
        return self.all.index(row)

    def add(self, row: Row) -> None:
        """Give a request an empty row."""
        self.all.append(row)

    def start(self, rows: list[Row]) -> int:
        """Take empty rows into the prefilling zone, side by side and in this order; returns the first's KV row."""
        first = self._started
        for row in rows:
            self.all.remove(row)
            self.all.insert(self._started, row)
            self._started += 1
        return first

    def complete(self, rows: Sequence[Row]) -> None:
        """Prefilling rows have their prompts now, and decode from the next step on; none may be leaving."""
        end = self._decoding + len(rows)
        outside = [row for row in rows if self.index(row) >= end]
        inside = [place for place in range(self._decoding, end) if self.all[place] not in rows]
        for place, row in zip(inside, outside, strict=True):
            index, other = self.index(row), self.all[place]
            self._kv.swap(index, place, max(row.length, other.length))
            self.all[place], self.all[index] = row, other
        self._decoding = self._complete = end

    def release(self, row: Row) -> None:
        """Free a row; one that decodes keeps its place among the leaving ones until `sweep`."""
        if row in self.decoding:
            self._decoding -= 1
            hole = self._fill(self.index(row), self._decoding)
            self.all[hole] = row
        elif row in self.prefilling:
            self._started -= 1
            del self.all[self._fill(self.index(row), self._started)]
        elif row in self.empty:
            self.all.remove(row)

    def sweep(self) -> None:
        """Free the places of leaving rows; prefilling rows move."""
        while self._complete > self._decoding:
            self._complete -= 1
            self._started -= 1
            del self.all[self._fill(self._complete, self._started)]

    def _fill(self, hole: int, last: int) -> int:
        """Move the row `last` into the hole; returns where the hole is then."""
        if hole != last:
            self._kv.move(last, hole, self.all[last].length)
            self.all[hole] = self.all[last]
        return last
