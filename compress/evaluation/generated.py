"""What comes out of a model under evaluation."""

import msgspec


class Generated(msgspec.Struct, frozen=True):
    """One greedy answer: its token ids (EOS included when reached), the natural log-probability of each, and
    how long it took in seconds (0 where answers were made in a batch)."""

    ids: list[int]
    logprobs: list[float]
    seconds: float


class Answers(msgspec.Struct, frozen=True):
    """What one model said to all prompts, and what it took.

    Memory is the peak resident set of a process that only loaded and ran this model, in bytes; on a GPU, the
    peak that was allocated there.
    Speed is that of single answers, one after another: completion tokens and units a second.
    """

    generated: list[Generated]
    peak_memory_bytes: int
    tokens_per_second: float
    units_per_second: float
