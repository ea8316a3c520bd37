"""Applying a fix's edits to a file's lines."""

from collections.abc import Sequence

from serve.analysis.report import Edit


def apply_edits(lines: Sequence[str], edits: Sequence[Edit]) -> list[str]:
    """`lines`, without their line ends, with `edits`, which do not overlap, applied."""
    result = list(lines)
    for edit in sorted(edits, key=lambda edit: (edit.start_line, edit.start_column), reverse=True):
        head = result[edit.start_line - 1][: edit.start_column - 1]
        tail = result[edit.end_line - 1][edit.end_column - 1 :]
        result[edit.start_line - 1 : edit.end_line] = f"{head}{edit.text}{tail}".split("\n")
    return result


def added_lines(edits: Sequence[Edit]) -> int:
    """How many lines more there are after `edits`."""
    return sum(edit.text.count("\n") - (edit.end_line - edit.start_line) for edit in edits)


def overlap(edit: Edit, other: Edit) -> bool:
    """Whether the two can not both be applied. Those that only touch can, unless both insert at one place."""
    start, end = (edit.start_line, edit.start_column), (edit.end_line, edit.end_column)
    other_start, other_end = (other.start_line, other.start_column), (other.end_line, other.end_column)
    return start == other_start or (start < other_end and other_start < end)
