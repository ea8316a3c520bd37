"""What comes out of a model under evaluation."""

import msgspec


class Generated(msgspec.Struct, frozen=True):
    """One greedy answer.

    `ids` are its tokens, with EOS when the model came to it; `logprobs` the natural log-probability that the
    model itself gave each, before any grammar's mask; `seconds` how long it took (0 where answers were made in
    a batch); `aided` whether a grammar ever forbade what the model would have written.
    """

    ids: list[int]
    logprobs: list[float]
    seconds: float
    aided: bool = False


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
