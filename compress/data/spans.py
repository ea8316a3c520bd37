"""Where on a line a finding points: the shortest text around a span that occurs there exactly once."""

import re

from bundle.answer import MAX_SPAN_CHARS

_PIECES = re.compile(r"\w+|\s+|[^\w\s]+")


def unique_window(line: str, start: int, end: int) -> tuple[int, int] | None:
    """Grow [start, end) by whole words, right then left, until its text occurs once on the line.

    Returns:
        Columns (0-based, end exclusive); None when nothing up to MAX_SPAN_CHARS is unique.
    """
    cuts = sorted({0, len(line), start, end, *(match.start() for match in _PIECES.finditer(line))})
    left, right = cuts.index(start), cuts.index(end)
    grow_right = True
    while True:
        text = line[cuts[left] : cuts[right]]
        if len(text) > MAX_SPAN_CHARS:
            return None
        if text.strip() and text == text.strip() and line.count(text) == 1:
            return cuts[left], cuts[right]
        can_grow_right, can_grow_left = right < len(cuts) - 1, left > 0
        if not (can_grow_right or can_grow_left):
            return None
        if can_grow_right and (grow_right or not can_grow_left):
            right += 1
        else:
            left -= 1
        grow_right = not grow_right
