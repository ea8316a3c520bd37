"""Which request owns which KV row.

    | decoding …  | prefilling … | empty … |
      0            .decoding      .started

A call reads rows that lie side by side, so rows are kept in this order: those whose prompt is complete, those whose
prompt is begun, and those of which nothing is computed yet. A row that leaves is replaced by the last of its zone.
"""

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
        self._started = 0

    @property
    def decoding(self) -> list[Row]:
        """Rows whose prompt is computed but for its last token."""
        return self.all[: self._decoding]

    @property
    def prefilling(self) -> list[Row]:
        """Rows with a part of their prompt, or with nothing to compute before their last token."""
        return self.all[self._decoding : self._started]

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

    def complete(self, row: Row) -> None:
        """A prefilling row has its prompt now, and decodes from the next step on."""
        place, index = self._decoding, self.index(row)
        if index != place:
            other = self.all[place]
            self._kv.swap(index, place, max(row.length, other.length))
            self.all[place], self.all[index] = row, other
        self._decoding += 1

    def release(self, row: Row) -> None:
        """Free a row; harmless for one that is free already."""
        if row not in self.all:
            return
        hole = self.index(row)
        if hole < self._decoding:
            self._decoding -= 1
            hole = self._fill(hole, self._decoding)
        if hole < self._started:
            self._started -= 1
            hole = self._fill(hole, self._started)
        del self.all[hole]  # the rows behind are empty, so that no KV moves with them

    def _fill(self, hole: int, last: int) -> int:
        """Move the row `last` into the hole; returns where the hole is then."""
        if hole != last:
            self._kv.move(last, hole, self.all[last].length)
            self.all[hole] = self.all[last]
        return last
