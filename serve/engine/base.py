"""What an engine is: requests in, streams of tokens with log-probabilities out."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length"]
Priority = Literal["interactive", "batch"]


class EngineError(Exception):
    """This request could not be answered; other requests are not touched."""


class EngineBusy(EngineError):
    """As many requests wait as the engine accepts; nothing was queued."""


class DeadlineExceeded(EngineError):
    """The request's deadline came before its answer was complete, while it waited or while it was answered."""


class EngineClosed(EngineError):
    """The engine was closed before the answer was complete."""


class EngineUnavailable(EngineError):
    """The engine can not start on this machine; the message says what to install or to choose instead."""


class EngineCrashed(EngineClosed):
    """The engine broke down and answers nothing any more; its process must be started again."""


class EngineAway(EngineClosed):
    """What runs the student can not be reached now, and may be again: asking later is worth it."""


class GenerationRequest(msgspec.Struct, frozen=True):
    """One prompt, and what its answer may name: some of the catalogue's rules, and the unit's lines."""

    prompt_ids: Sequence[int]
    rules: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    constrained: bool = True
    """Hold the answer to the answer's grammar; False writes free text, and `rules` and `lines` mean nothing."""
    priority: Priority = "interactive"
    """Interactive requests are admitted before batch ones, but for batch ones that have waited long."""
    deadline: float | None = None
    """On the clock of `time.monotonic()`: past it, the request ends with DeadlineExceeded, wherever it is."""
    max_tokens: int | None = None
    """The longest answer, in tokens; None: as long as the context is."""
    until: bytes | None = None
    """The answer ends ("stop") with the token that completes these bytes; None: where the student ends it."""
    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn, and the same `seed` draws the same ones."""
    seed: int = 0
    salt: str = ""
    """Parts of prompts that were computed before are used again only among requests of the same salt."""
    logprobs: bool = True
    """Somebody reads the log-probabilities of its tokens. Where nobody does an engine may leave them out, as NaN."""


class Token(msgspec.Struct, frozen=True):
    """One token of an answer.

    `data` are the bytes it stands for (a token may end inside a character). `logprob` is the student's
    own log-probability, before the grammar's mask, and may be NaN if the request asks for none; `forced`
    tokens were the only possibility, were never computed, and have 0.0.
    """

    id: int
    data: bytes
    logprob: float
    forced: bool


class Timeline(msgspec.Struct):
    """When a request came to where it is, on the clock of `time.monotonic()`; None: not yet."""

    submitted: float
    admitted: float | None = None
    """It left the queue and owns a KV row."""
    first_token: float | None = None
    """Its prompt was computed and its first token chosen; forced tokens may have come before."""
    finished: float | None = None

    @property
    def queue_s(self) -> float | None:
        """Seconds in the queue; for a request that never left it, until its end."""
        return _seconds(self.submitted, self.admitted or self.finished)

    @property
    def prefill_s(self) -> float | None:
        """Seconds from its admission to its first token, or to its end if there was none."""
        return _seconds(self.admitted, self.first_token or self.finished)

    @property
    def decode_s(self) -> float | None:
        """Seconds from its first token to its end."""
        return _seconds(self.first_token, self.finished)


def _seconds(begun: float | None, ended: float | None) -> float | None:
    return None if begun is None or ended is None else ended - begun


class TokenStream(Protocol):
    """The tokens of one answer as they come."""

    cached_tokens: int
    """How many of the prompt's tokens were not computed again; known once a token has come."""
    finish_reason: FinishReason | None
    """Why the answer ended: it was complete ("stop"), or as long as it may be ("length"); None until then."""
    timeline: Timeline
    """Complete when the stream has ended, with an error too, or was left."""
    written: int
    """How many tokens the answer has by now, read or not."""

    def __aiter__(self) -> AsyncIterator[Token]: ...

    def pieces(self) -> AsyncIterator[list[Token]]:
        """The tokens as they come, with all that have come meanwhile.

        Raises:
            EngineError: as iterating does.
        """
        ...

    async def whole(self) -> list[Token]:
        """The tokens that were not read yet, when the answer is complete: nobody is woken for each of them.

        Raises:
            EngineError: as iterating does.
        """
        ...


class StepTimes(msgspec.Struct, frozen=True):
    """How long steps took: a cumulative histogram, as Prometheus counts."""

    buckets: tuple[tuple[float, int], ...]
    """(seconds, how many steps took at most so long); the last bound is infinity."""
    total_s: float


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine does now (gauges), and what it has done since it started (counters)."""

    slots: int
    running: int
    """Requests that own a KV row: slots used. Free are `slots - running`."""
    waiting: int
    waiting_batch: int
    """How many of `waiting` are batch requests."""
    kv_tokens: int
    """Tokens that all KV rows together may hold."""
    kv_tokens_used: int
    """Tokens they hold now."""
    prompt_tokens: int
    """Tokens of admitted prompts, the cached ones included."""
    cached_tokens: int
    """Prompt tokens that were copied rather than computed."""
    decoded_tokens: int
    """Answer tokens the student chose."""
    forced_tokens: int
    """Answer tokens the grammar left no choice about."""
    finished: dict[str, int]
    """Requests that ended, by why: stop, length, cancelled, deadline, error."""
    step_times: StepTimes

    @property
    def generated_tokens(self) -> int:
        """Answer tokens, chosen and forced."""
        return self.decoded_tokens + self.forced_tokens


class Engine(Protocol):
    """Answers many requests at once. Methods are called on one running event loop or more."""

    name: str
    quantization: str
    """Of the export of the bundle that answers; the manifest's word for it."""

    @property
    def failure(self) -> str | None:
        """Why the engine broke down and can answer nothing any more; None while it is healthy, closed or not."""
        ...

    @property
    def away(self) -> str | None:
        """Why the engine can answer nothing for now, though it may again; None while it can."""
        ...

    def submit(self, request: GenerationRequest) -> AbstractAsyncContextManager[TokenStream]:
        """Queue a request; leaving the context before the end cancels it within one step.

        Raises:
            EngineBusy: on entering, when the queue is full.
            EngineClosed: on entering, or while iterating, when the engine was closed.
            EngineCrashed: on entering, or while iterating, when the engine broke down (an EngineClosed).
            EngineAway: on entering, or while iterating, when what runs the student can not be reached (too).
            DeadlineExceeded: while iterating, when the request's deadline has come.
            EngineError: while iterating, when this request can not be answered.
        """
        ...

    def stats(self) -> EngineStats:
        """A snapshot."""
        ...

    def close(self) -> None:
        """Stop; every open stream raises EngineClosed. Closing twice is harmless."""
        ...
