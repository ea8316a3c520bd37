"""The exit codes of deepcode-check."""

from enum import IntEnum


class Exit(IntEnum):
    """What a pipeline may rely on."""

    PASSED = 0
    FINDINGS = 1
    USAGE = 2
    INCOMPLETE = 3
    INTERRUPTED = 130
