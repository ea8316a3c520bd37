"""Who chooses tokens when the student runs elsewhere; `serve.engine.sampled` is the engine over it."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from serve.engine.base import FinishReason, GenerationRequest


class Piece(msgspec.Struct, frozen=True):
    """What a sampler has chosen since its last piece."""

    tokens: Sequence[tuple[int, float]] = ()
    """Ids, and the student's own log-probabilities: at temperature 1 and before any grammar."""
    cached_tokens: int | None = None
    """How many of the prompt's tokens were not computed; None: not known yet."""
    finish_reason: FinishReason | None = None


class Sampler(Protocol):
    """Chooses tokens for many requests at once. Its coroutines run on the engine's loop."""

    name: str
    """The engine's name in reports."""
    quantization: str
    begins_answers: bool
    """Whether an answer's first, forced tokens may stand at the end of the prompt, and are never chosen."""

    @property
    def failure(self) -> str | None:
        """See `Engine.failure`."""
        ...

    @property
    def away(self) -> str | None:
        """See `Engine.away`."""
        ...

    @property
    def kv_tokens(self) -> int:
        """Tokens that its KV cache holds; 0: not known."""
        ...

    async def start(self) -> None:
        """Get ready.

        Raises:
            EngineUnavailable: it can not run here.
        """
        ...

    def sample(self, request: GenerationRequest, prompt: Sequence[int], max_tokens: int) -> AsyncGenerator[Piece, None]:
        """Choose an answer's tokens; closing the generator cancels that.

        Args:
            request: whose answer, for its grammar, temperature, seed and salt.
            prompt: its prompt and, where `begins_answers`, the beginning of its answer.
            max_tokens: the most that are wanted.

        Raises:
            EngineError: there is no answer, or no more of it.
        """
        ...

    async def close(self) -> None:
        """Stop."""
        ...
