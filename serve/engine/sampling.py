"""The next token of one answer, out of its logits."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bundle.grammar import AnswerMatcher

CACHED_LOGITS = 2**17
"""So many stay in a core's cache from one pass over them to the next."""


class Scores(NamedTuple):
    """What the student says about the next token of one answer."""

    logits: NDArray[np.float32]
    """[vocab_size]"""
    likeliest: int
    top: float
    """The likeliest token's logit."""
    log_sum: float
    """log Σ exp(logits - top); NaN where nobody asked for it."""


def scores_of(logits: NDArray[np.float32], logprobs: Sequence[bool]) -> list[Scores]:
    """The scores of many answers.

    What takes a pass over all logits is computed here, for many answers in one call: numpy lets go of the interpreter
    in every call, and who serves HTTP takes it meanwhile.

    Args:
        logits: [n, vocab_size]
        logprobs: [n], of which answers anybody reads log-probabilities.
    """
    rows = max(1, CACHED_LOGITS // logits.shape[1])
    pieces = (slice(first, first + rows) for first in range(0, len(logits), rows))
    return [scores for piece in pieces for scores in _scores_of(logits[piece], logprobs[piece])]


def _scores_of(logits: NDArray[np.float32], logprobs: Sequence[bool]) -> Iterable[Scores]:
    likeliest = logits.argmax(axis=1)  # of numbers and NaN, the NaN
    top = logits[np.arange(len(logits)), likeliest]
    log_sum = np.full_like(top, np.nan)
    asked = np.flatnonzero(logprobs)
    if asked.size:
        read = logits if asked.size == len(logits) else logits[asked]
        with np.errstate(invalid="ignore"):  # `choose_token` says so
            log_sum[asked] = np.log(np.exp(read - top[asked, None]).sum(axis=1))
    return map(Scores, logits, likeliest.tolist(), top.tolist(), log_sum.tolist())


def choose_token(
    scores: Scores, matcher: AnswerMatcher | None, temperature: float, draws: np.random.Generator
) -> tuple[int, float]:
    """The likeliest allowed token, or one that is drawn.

    Args:
        scores: of this answer.
        matcher: knows which tokens are allowed; None: every one.
        temperature: 0 takes the likeliest; above, a token is drawn from softmax(logits / temperature).
        draws: where chance comes from; one number a drawn token.

    Returns:
        The token, and the student's own log-probability of it: at temperature 1 and before the mask; NaN where nobody
        asked for it.

    Raises:
        ValueError: a logit is not a number, or no token is allowed.
    """
    logits = scores.logits
    if not math.isfinite(scores.top):
        raise ValueError("the student's logits are not finite")
    if temperature > 0:
        token = _draw(logits if matcher is None else _masked(logits, matcher), temperature, draws)
    elif matcher is None or matcher.permits(scores.likeliest):
        token = scores.likeliest
    else:
        token = int(_masked(logits, matcher).argmax())
    return token, float(logits[token]) - scores.top - scores.log_sum


def _masked(logits: NDArray[np.float32], matcher: AnswerMatcher) -> NDArray[np.float32]:
    return np.where(matcher.allowed(), logits, -np.inf)


def _draw(logits: NDArray[np.float32], temperature: float, draws: np.random.Generator) -> int:
    scaled = logits.astype(np.float64) / temperature
    top = scaled.max()
    if not np.isfinite(top):
        raise ValueError("no token is allowed")
    cumulative = np.exp(scaled - top).cumsum()
    return int(cumulative.searchsorted(draws.random() * cumulative[-1], side="right"))
