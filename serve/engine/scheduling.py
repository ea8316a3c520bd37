"""Which chunks of prompts are computed next, and which of them in one call.

Chunk boundaries follow positions alone, so that they do not depend on a request's company.
"""

from collections.abc import Iterable, Sequence

from serve.engine.rows import Row

PREFILL_CHUNK = 256
MOST_PADDING = 0.25  # of a padded call: beyond it, computing the padding costs more than a call of its own


def next_chunk(row: Row) -> list[int]:
    """The next tokens of a row's prompt to compute in one call; none when what is left is decoded.

    That is the last token, and of a prompt of two the first as well: attention to a single token is computed
    otherwise than to several, so a first chunk of one, padded beside longer ones, would not be the same to the bit.
    A prefix that is copied is not computed.
    """
    copied = 0 if row.length else row.shared
    count = min(PREFILL_CHUNK, len(row.pending) - copied - 1)
    return row.pending[copied : copied + count] if count > 1 or row.length + copied > 0 else []


def calls_of_a_step(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Whose next chunks one step computes, and which of them in one call.

    Prompts take turns, and a row has one chunk in a step, so that no long one holds up the short ones. A row whose
    chunk is empty has a call of its own, which computes nothing.

    Args:
        rows: whose prompts are not complete.
        budget: tokens the step may compute, padding included; the last call may exceed it.
    """
    waiting = sorted(rows, key=lambda row: row.turn)
    calls = []
    while waiting and budget > 0:
        together = waiting[:1]
        if _begins_empty(together[0]):
            together = begun_together(together[0], filter(_begins_empty, waiting), budget)
        waiting = [row for row in waiting if row not in together]
        budget -= max(len(next_chunk(row)) for row in together) * len(together)
        calls.append(together)
    return calls


def _begins_empty(row: Row) -> bool:
    """Nothing of it is computed or copied before its next chunk: only such chunks can be padded in one call."""
    return row.length == 0 and row.shared == 0 and bool(next_chunk(row))


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
