"""The next token of one answer, out of its logits."""

import numpy as np
from numpy.typing import NDArray

from bundle.grammar import allowed_tokens


def choose_token(
    logits: NDArray[np.float32], allowed: NDArray[np.int32] | None, temperature: float, draws: np.random.Generator
) -> tuple[int, float]:
    """The likeliest allowed token, or one that is drawn.

    Args:
        logits: [vocab_size].
        allowed: [ceil(vocab_size / 32)]: bit `t % 32` of word `t // 32` stands for token t; None allows every one.
        temperature: 0 takes the likeliest; above, a token is drawn from softmax(logits / temperature).
        draws: where chance comes from; one number a drawn token.

    Returns:
        The token, and the student's own log-probability of it: at temperature 1 and before the mask.

    Raises:
        ValueError: a logit is not a number, or no token is allowed.
    """
    top = float(logits.max())
    if not np.isfinite(top):
        raise ValueError("the student's logits are not finite")
    token = int(logits.argmax())
    if temperature > 0:
        token = _draw(
            logits if allowed is None else np.where(allowed_tokens(allowed, len(logits)), logits, -np.inf),
            temperature,
            draws,
        )
    elif allowed is not None and not allowed.view(np.uint32)[token // 32] >> (token % 32) & 1:
        # Seldom: a trained student mostly wants what the grammar allows, and then the mask need not be unpacked.
        token = int(np.where(allowed_tokens(allowed, len(logits)), logits, -np.inf).argmax())
    return token, float(logits[token] - top - np.log(np.exp(logits - top).sum()))


def _draw(logits: NDArray[np.float32], temperature: float, draws: np.random.Generator) -> int:
    scaled = logits.astype(np.float64) / temperature
    top = scaled.max()
    if not np.isfinite(top):
        raise ValueError("no token is allowed")
    cumulative = np.exp(scaled - top).cumsum()
    return int(cumulative.searchsorted(draws.random() * cumulative[-1], side="right"))
