"""Which chunks of prompts are computed next, and which of them in one call.

Chunk boundaries follow positions alone, so that they do not depend on a request's company.
"""

from collections.abc import Iterable

from serve.engine.rows import Row

PREFILL_CHUNK = 256
MOST_PADDING = 0.25  # of a padded call: beyond it, computing the padding costs more than a call of its own


def next_chunk(row: Row) -> list[int]:
    """The next tokens of a row's prompt to compute in one call; none when what is left is decoded.

    That is the last token, and of a prompt of two the first as well: attention to a single token is computed
    otherwise than to several, so a first chunk of one, padded beside longer ones, would not be the same to the bit.
    """
    count = min(PREFILL_CHUNK, len(row.pending) - 1)
    return row.pending[:count] if count > 1 or row.length > 0 else []


def next_row(rows: Iterable[Row]) -> Row | None:
    """The row that has waited longest for a chunk: prompts take turns, so no long one holds up the short ones."""
    return min(rows, key=lambda row: row.turn, default=None)


def begun_together(first: Row, others: Iterable[Row], budget: int) -> list[Row]:
    """Rows to begin in one padded call.

    Args:
        first: is one of them.
        others: rows of which nothing is computed and whose prompts share no prefix.
        budget: tokens the call may compute, padding included; `first` may exceed it.
    """
    together = [first]
    width = total = len(next_chunk(first))
    for row in sorted(others, key=lambda row: row.turn):
        chunk = len(next_chunk(row))
        computed = max(width, chunk) * (len(together) + 1)
        if row is not first and computed <= budget and total + chunk >= (1 - MOST_PADDING) * computed:
            together.append(row)
            width, total = max(width, chunk), total + chunk
    return together
