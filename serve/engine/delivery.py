"""Tokens on their way from the engine's thread to the event loops that wait for them."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from serve.engine.base import EngineError, FinishReason, GenerationRequest, Timeline, Token

Item = Token | FinishReason | EngineError

PAUSE_SECONDS = 0.02
"""Between two deliveries to one reader. A wake-up, an event and a packet for each token of a small student cost more
than the token, and nobody reads faster than this."""


class Answering:
    """One request on its way; to its reader, the stream of its tokens."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.cached_tokens = 0
        self.written = 0
        self.finish_reason: FinishReason | None = None
        self.timeline = Timeline(submitted=time.monotonic())
        self.loop = asyncio.get_running_loop()
        self.left = False
        self.streamed = True
        """Tokens are handed to the reader as they come, not with the end."""
        self.delivered = -math.inf
        """When it was last handed something."""
        self._arrived: deque[Token] = deque()
        self._outcome: FinishReason | EngineError | None = None
        self._changed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Token]:
        while await self._has_more():
            yield self._arrived.popleft()

    async def pieces(self) -> AsyncIterator[list[Token]]:
        """See `TokenStream.pieces`."""
        while await self._has_more():
            tokens = list(self._arrived)
            self._arrived.clear()
            yield tokens

    async def whole(self) -> list[Token]:
        """See `TokenStream.whole`."""
        self.streamed = False
        while (outcome := self._outcome) is None:
            await self._next_arrival()
        self._finish(outcome)
        return list(self._arrived)

    async def _has_more(self) -> bool:
        """Whether another token has arrived, once one has or the answer has ended."""
        while not self._arrived:
            if self._outcome is not None:
                self._finish(self._outcome)
                return False
            await self._next_arrival()
        return True

    async def _next_arrival(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _finish(self, outcome: FinishReason | EngineError) -> None:
        if isinstance(outcome, EngineError):
            raise outcome
        self.finish_reason = outcome

    def is_late(self, now: float) -> bool:
        """Its deadline has come."""
        return self.request.deadline is not None and now >= self.request.deadline

    def is_over(self, now: float) -> bool:
        """Its reader has left, or its deadline has come."""
        return self.left or self.is_late(now)

    def end(self) -> None:
        """Note when it ended, however it did; only the first end counts."""
        if self.timeline.finished is None:
            self.timeline.finished = time.monotonic()

    def deliver(self, items: Sequence[Item]) -> None:
        """Hand items to the reader; runs on its loop."""
        for item in items:
            if isinstance(item, Token):
                self._arrived.append(item)
            elif self._outcome is None:
                self._outcome = item
        self._changed.set()


@dataclass
class Outbox:
    """What steps have to say, delivered with one wake-up per loop; to who reads the whole answer, with its end."""

    pause: float = 0.0
    """Seconds from one delivery of tokens to a reader to the next, if something is said then at all. The first comes at
    once, and the last with the end."""
    items: dict[Answering, list[Item]] = field(default_factory=dict)

    def add(self, answering: Answering, *items: Item) -> None:
        """Say something to one reader."""
        answering.written += sum(isinstance(item, Token) for item in items)
        self.items.setdefault(answering, []).extend(items)

    def flush(self) -> None:
        """Deliver what is due."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Answering, list[Item]]]] = {}
        kept: dict[Answering, list[Item]] = {}
        now = time.monotonic()
        for answering, items in self.items.items():
            is_due = answering.streamed and now >= answering.delivered + self.pause
            if not is_due and isinstance(items[-1], Token):
                if not answering.left:
                    kept[answering] = items
            else:
                answering.delivered = now
                by_loop.setdefault(answering.loop, []).append((answering, items))
        self.items = kept
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, deliveries)
            except RuntimeError:  # the loop was closed: nobody reads these any more
                for answering, _ in deliveries:
                    answering.left = True


def _deliver(deliveries: list[tuple[Answering, list[Item]]]) -> None:
    for answering, items in deliveries:
        answering.deliver(items)
