"""The next token of one answer, out of its logits."""

import math

import numpy as np
from numpy.typing import NDArray

from bundle.grammar import AnswerMatcher


def choose_token(
    logits: NDArray[np.float32], matcher: AnswerMatcher | None, temperature: float, draws: np.random.Generator
) -> tuple[int, float]:
    """The likeliest allowed token, or one that is drawn.

    Args:
        logits: [vocab_size].
        matcher: knows which tokens are allowed; None: every one.
        temperature: 0 takes the likeliest; above, a token is drawn from softmax(logits / temperature).
        draws: where chance comes from; one number a drawn token.

    Returns:
        The token, and the student's own log-probability of it: at temperature 1 and before the mask.

    Raises:
        ValueError: a logit is not a number, or no token is allowed.
    """
    likeliest = int(logits.argmax())
    top = float(logits[likeliest])  # of numbers and NaN, argmax is the NaN
    if not math.isfinite(top):
        raise ValueError("the student's logits are not finite")
    if temperature > 0:
        token = _draw(logits if matcher is None else _masked(logits, matcher), temperature, draws)
    elif matcher is None or matcher.permits(likeliest):
        token = likeliest
    else:
        token = int(_masked(logits, matcher).argmax())
    return token, float(logits[token]) - top - math.log(np.exp(logits - top).sum())


def _masked(logits: NDArray[np.float32], matcher: AnswerMatcher) -> NDArray[np.float32]:
    return np.where(matcher.allowed(), logits, -np.inf)


def _draw(logits: NDArray[np.float32], temperature: float, draws: np.random.Generator) -> int:
    scaled = logits.astype(np.float64) / temperature
    top = scaled.max()
    if not np.isfinite(top):
        raise ValueError("no token is allowed")
    cumulative = np.exp(scaled - top).cumsum()
    return int(cumulative.searchsorted(draws.random() * cumulative[-1], side="right"))
