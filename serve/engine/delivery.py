"""Tokens on their way from the engine's thread to the event loops that wait for them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from serve.engine.base import EngineError, FinishReason, GenerationRequest, Timeline, Token

Item = Token | FinishReason | EngineError


class Answering:
    """One request on its way; to its reader, the stream of its tokens."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.timeline = Timeline(submitted=time.monotonic())
        self.loop = asyncio.get_running_loop()
        self.left = False
        self._arrived: asyncio.Queue[Item] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Token]:
        while not isinstance(item := await self._arrived.get(), str):
            if isinstance(item, EngineError):
                raise item
            yield item
        self.finish_reason = item

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
            self._arrived.put_nowait(item)


@dataclass
class Outbox:
    """What one step has to say, delivered with one wake-up per loop."""

    items: dict[Answering, list[Item]] = field(default_factory=dict)

    def add(self, answering: Answering, *items: Item) -> None:
        self.items.setdefault(answering, []).extend(items)

    def flush(self) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Answering, list[Item]]]] = {}
        for answering, items in self.items.items():
            by_loop.setdefault(answering.loop, []).append((answering, items))
        self.items = {}
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, deliveries)
            except RuntimeError:  # the loop was closed: nobody reads these any more
                for answering, _ in deliveries:
                    answering.left = True


def _deliver(deliveries: list[tuple[Answering, list[Item]]]) -> None:
    for answering, items in deliveries:
        answering.deliver(items)
