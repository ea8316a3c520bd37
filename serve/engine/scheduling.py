"""Which chunks of prompts are computed next, and which of them in one call.

Chunk boundaries follow positions alone, so that they do not depend on a request's company.
"""

from collections.abc import Sequence

from serve.engine.rows import Row

PREFILL_CHUNK = 256
MOST_PADDING = 0.25  # of a padded call: beyond it, computing the padding costs more than a call of its own
MOST_PADDING_OF_LARGE = 0.08  # the same where a call costs no more than a few tokens
LARGE_PARAMETERS = 10_000_000  # more are such a student


def next_chunk(row: Row) -> list[int]:
    """The next tokens of a row's prompt to compute in one call; none when what is left is decoded.

    That is the last token, and of a prompt of two the first as well: attention to a single token is computed
    otherwise than to several, so a first chunk of one, padded beside longer ones, would not be the same to the bit.
    A prefix that is copied is not computed.
    """
    copied = to_copy(row)
    count = min(PREFILL_CHUNK, len(row.pending) - copied - 1)
    return row.pending[copied : copied + count] if count > 1 or row.length + copied > 0 else []


def to_copy(row: Row) -> int:
    """How many tokens of a shared prefix are to be copied before the row's next chunk."""
    return 0 if row.length else row.shared


def most_padding(parameters: int) -> float:
    """The largest share of padding in a call of a student with so many parameters."""
    return MOST_PADDING if parameters <= LARGE_PARAMETERS else MOST_PADDING_OF_LARGE


def calls_of_a_step(rows: Sequence[Row], budget: int, padding: float) -> list[list[Row]]:
    """Whose next chunks one step computes, and which of them in one call.

    Prompts take turns, and a row has one chunk in a step, so that no long one holds up the short ones. A row whose
    chunk is empty has a call of its own, which computes nothing.

    Args:
        rows: whose prompts are not complete.
        budget: tokens the step may compute, padding included; the last call may exceed it.
        padding: the largest share of a call that may be padding.
    """
    waiting = sorted(rows, key=lambda row: row.turn)
    calls = []
    while waiting and budget > 0:
        together = waiting[:1]
        if _begins_empty(waiting[0]):
            together = _begun_together(list(filter(_begins_empty, waiting)), budget, padding)
        waiting = [row for row in waiting if row not in together]
        budget -= max(len(next_chunk(row)) for row in together) * len(together)
        calls.append(together)
    return calls


def _begins_empty(row: Row) -> bool:
    """Nothing of it is computed or copied before its next chunk: only such chunks can be padded in one call."""
    return row.length == 0 and row.shared == 0 and bool(next_chunk(row))


def _begun_together(rows: Sequence[Row], budget: int, padding: float) -> list[Row]:
    """The first of the rows, and those most like it that fit into one padded call; it alone may exceed the budget."""
    together = [rows[0]]
    width = total = first = len(next_chunk(rows[0]))
    for row in sorted(rows[1:], key=lambda row: abs(len(next_chunk(row)) - first)):
        chunk = len(next_chunk(row))
        computed = max(width, chunk) * (len(together) + 1)
        if computed <= budget and total + chunk >= (1 - padding) * computed:
            together.append(row)
            width, total = max(width, chunk), total + chunk
    return together
