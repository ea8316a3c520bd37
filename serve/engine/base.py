"""What an engine is: requests in, streams of tokens with log-probabilities out."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length"]


class EngineError(Exception):
    """This request could not be answered; other requests are not touched."""


class EngineBusy(EngineError):
    """As many requests wait as the engine accepts; nothing was queued."""


class EngineClosed(EngineError):
    """The engine was closed before the answer was complete."""


class GenerationRequest(msgspec.Struct, frozen=True):
    """One prompt, and what its answer may name: some of the catalogue's rules and lines 1..`lines`."""

    prompt_ids: Sequence[int]
    rules: tuple[str, ...]
    lines: int


class Token(msgspec.Struct, frozen=True):
    """One token of an answer.

    `data` are the bytes it stands for (a token may end inside a character). `logprob` is the student's
    own log-probability, before the grammar's mask; `forced` tokens were the only possibility, were never
    computed, and have 0.0.
    """

    id: int
    data: bytes
    logprob: float
    forced: bool


class TokenStream(Protocol):
    """The tokens of one answer as they come."""

    cached_tokens: int
    """How many of the prompt's tokens were not computed again; known once a token has come."""
    finish_reason: FinishReason | None
    """Why the answer ended: it was complete ("stop") or the context was full; None until then."""

    def __aiter__(self) -> AsyncIterator[Token]: ...


class EngineStats(msgspec.Struct, frozen=True):
    """What an engine does now, and what it has done since it started."""

    slots: int
    running: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


class Engine(Protocol):
    """Answers many requests at once. Methods are called on one running event loop or more."""

    name: str

    def submit(self, request: GenerationRequest) -> AbstractAsyncContextManager[TokenStream]:
        """Queue a request; leaving the context before the end cancels it within one decode step.

        Raises:
            EngineBusy: on entering, when the queue is full.
            EngineClosed: on entering, or while iterating, when the engine was closed.
            EngineError: while iterating, when this request can not be answered.
        """
        ...

    def stats(self) -> EngineStats:
        """A snapshot."""
        ...

    def close(self) -> None:
        """Stop; every open stream raises EngineClosed. Closing twice is harmless."""
        ...
