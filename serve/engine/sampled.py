"""The engine over a student that runs elsewhere: in vLLM's own process, or behind a vLLM server.

A sampler chooses the tokens of answers; batching, KV memory and prefixes are its business. What is left is here: a
queue with two priorities before it, deadlines, cancellation, and reading the answers (`reading`). All of it happens
on one event loop in a thread of its own, so that readers on any loop are served and a busy loop stops no other.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial

from bundle.grammar import AnswerGrammar
from bundle.manifest import Bundle
from serve.engine.base import (
    DeadlineExceeded,
    EngineAway,
    EngineClosed,
    EngineCrashed,
    EngineError,
    EngineStats,
    FinishReason,
    GenerationRequest,
)
from serve.engine.counters import Counters
from serve.engine.delivery import Answering, Outbox
from serve.engine.reading import AnswerReader
from serve.engine.sampler import Sampler
from serve.engine.waiting import WaitingQueue
from serve.engine.writing import whole_prompt

log = logging.getLogger(__name__)

CLOCK_SECONDS = 0.001
"""A timer may fire this much before its time."""


class SampledEngine:
    """The engine over a `Sampler`; see the module's text."""

    def __init__(self, bundle: Bundle, sampler: Sampler, slots: int, max_waiting: int) -> None:
        """
        Args:
            bundle: for the tokenizer, and for what the student is.
            sampler: not started yet.
            slots: requests that the sampler has at once.
            max_waiting: requests that may wait for that; one more is refused.

        Raises:
            EngineUnavailable: the sampler can not run here.
        """
        manifest = bundle.manifest
        self.name, self.quantization = sampler.name, sampler.quantization
        self._sampler, self._slots = sampler, slots
        self._grammar = AnswerGrammar(bundle.tokenizer_file, manifest.model.vocab_size, manifest.eos_token_ids)
        self._eos, self._context = frozenset(manifest.eos_token_ids), manifest.context_length
        self._counters = Counters()
        self._waiting = WaitingQueue(max_waiting)
        self._deadlines: dict[Answering, asyncio.TimerHandle] = {}
        self._running: dict[Answering, asyncio.Task[None]] = {}
        self._lengths: dict[Answering, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(sampler.start(), self._loop).result()
        except BaseException:
            self.close()
            raise

    @property
    def failure(self) -> str | None:
        """See `Engine.failure`."""
        return self._sampler.failure

    @property
    def away(self) -> str | None:
        """See `Engine.away`."""
        return self._sampler.away

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[Answering]:
        """See `Engine.submit`."""
        answering = Answering(request)
        with self._lock:
            if self._closed or self.failure is not None:
                raise self._why_closed()
            if (why := self.away) is not None:
                raise EngineAway(why)
            self._waiting.add(answering)
        self._call(self._queued, answering)
        try:
            yield answering
        finally:
            answering.left = True
            answering.end()
            self._call(self._left, answering)

    def stats(self) -> EngineStats:
        """See `Engine.stats`. Steps are the sampler's own and not counted; tokens in KV memory are those of running
        requests, where the sampler may share some and keep more."""
        with self._lock:
            waiting, waiting_batch = len(self._waiting), self._waiting.count("batch")
        return self._counters.stats(
            slots=self._slots,
            running=len(self._running),
            waiting=waiting,
            waiting_batch=waiting_batch,
            kv_tokens=self._sampler.kv_tokens,
            kv_tokens_used=sum(list(self._lengths.values())),
        )

    def close(self) -> None:
        """See `Engine.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, function: Callable[[Answering], None], answering: Answering) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: everybody has been told
            self._loop.call_soon_threadsafe(function, answering)

    def _queued(self, answering: Answering) -> None:
        deadline = answering.request.deadline
        if deadline is not None and answering.timeline.admitted is None:
            self._deadlines[answering] = self._loop.call_at(deadline + CLOCK_SECONDS, self._give_up_gone)
        self._admit()

    def _left(self, answering: Answering) -> None:
        task = self._running.get(answering)
        if task is None:
            self._give_up_gone()
        elif answering.finish_reason is None:
            task.cancel()

    def _give_up_gone(self) -> None:
        with self._lock:
            gone = self._waiting.take_gone(time.monotonic())
        for answering in gone:
            self._forget_deadline(answering)
            if answering.left:
                self._counters.finished["cancelled"] += 1
            else:
                self._end(answering, DeadlineExceeded("the deadline came while it waited"))

    def _admit(self) -> None:
        self._give_up_gone()
        while len(self._running) < self._slots and not self._closed:
            with self._lock:
                answering = self._waiting.take()
            if answering is None:
                return
            self._forget_deadline(answering)  # its task looks after it now
            answering.timeline.admitted = time.monotonic()
            task = self._loop.create_task(self._answer(answering))
            self._running[answering] = task
            task.add_done_callback(partial(self._answered, answering))

    def _forget_deadline(self, answering: Answering) -> None:
        timer = self._deadlines.pop(answering, None)
        if timer is not None:
            timer.cancel()

    def _answered(self, answering: Answering, task: asyncio.Task[None]) -> None:
        del self._running[answering]
        self._lengths.pop(answering, None)
        if task.cancelled() and not self._closed:  # when the engine is closed, its reader was told so
            self._counters.finished["cancelled"] += 1
        self._admit()

    async def _answer(self, answering: Answering) -> None:
        outbox = Outbox()
        outcome: FinishReason | EngineError
        try:
            async with asyncio.timeout_at(answering.request.deadline):
                outcome = await self._write(answering, outbox)
        except TimeoutError:
            outcome = DeadlineExceeded("the deadline came before its answer was complete")
        except EngineError as error:
            outcome = error
        except Exception as error:
            log.exception("a request failed")
            outcome = EngineError(f"{type(error).__name__}: {error}")
        self._end(answering, outcome, outbox)

    async def _write(self, answering: Answering, outbox: Outbox) -> FinishReason:
        """Read an answer and hand it on; returns why it ended. Its last tokens may still be in the outbox."""
        request = answering.request
        reader = AnswerReader(self._grammar, self._eos, request, self._context)
        opening = reader.opening() if self._sampler.begins_answers else []
        prompt = whole_prompt(request, opening, self._grammar.vocab_size, self._context)
        self._counters.prompt_tokens += len(request.prompt_ids)
        self._lengths[answering] = len(prompt)
        finish_reason = self._take(answering, reader, [(token, 0.0) for token in opening], outbox)
        if finish_reason is not None:
            return finish_reason
        cached_tokens = None
        async with aclosing(self._sampler.sample(request, prompt, reader.room)) as pieces:
            async for piece in pieces:
                if cached_tokens is None and piece.cached_tokens is not None:
                    answering.cached_tokens = cached_tokens = min(piece.cached_tokens, len(request.prompt_ids))
                    self._counters.cached_tokens += cached_tokens
                if piece.tokens and answering.timeline.first_token is None:
                    answering.timeline.first_token = time.monotonic()
                if finish_reason is None:
                    finish_reason = self._take(answering, reader, piece.tokens, outbox)
                    self._lengths[answering] += len(piece.tokens)
                if finish_reason is None and piece.finish_reason is not None:
                    if piece.finish_reason == "stop":
                        reader.check_complete()
                    finish_reason = piece.finish_reason
                if finish_reason is None:
                    outbox.flush()
                elif cached_tokens is not None:
                    return finish_reason
                # Else the last tokens wait for the number of cached ones: a reader that has them all may leave.
        if finish_reason is None:
            raise EngineError("the answer broke off")
        return finish_reason

    def _take(
        self, answering: Answering, reader: AnswerReader, tokens: Sequence[tuple[int, float]], outbox: Outbox
    ) -> FinishReason | None:
        """Read tokens into the outbox; returns why the answer is complete, or None."""
        for id, logprob in tokens:
            token, finish_reason = reader.read(id, logprob)
            if token is not None:
                outbox.add(answering, token)
                self._counters.forced_tokens += token.forced
                self._counters.decoded_tokens += not token.forced
            if finish_reason is not None:
                return finish_reason
        return None

    def _end(self, answering: Answering, outcome: FinishReason | EngineError, outbox: Outbox | None = None) -> None:
        answering.end()
        why = outcome if isinstance(outcome, str) else "error"
        self._counters.finished["deadline" if isinstance(outcome, DeadlineExceeded) else why] += 1
        outbox = outbox or Outbox()
        outbox.add(answering, outcome)
        outbox.flush()

    async def _stop(self) -> None:
        with self._lock:
            unfinished = [*self._waiting.take_all(), *self._running]
        for answering in unfinished:
            self._end(answering, self._why_closed())
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._sampler.close()

    def _why_closed(self) -> EngineClosed:
        if self.failure is not None:
            return EngineCrashed(f"the engine broke down ({self.failure}); its process must be started again")
        return EngineClosed("the engine was closed before the answer was complete")
