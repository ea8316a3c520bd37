"""Continuous batching: many requests over one student, each in its own KV row.

A thread runs steps. A step admits waiting requests into free rows (prefill, batch 1, in chunks, so that a
long prompt does not hold up the others), then decodes one token for every running row in one call.
Running rows are always rows 0..n-1: when one finishes, the last moves into its place. One more row is for
staging: prompts are computed there and copied into their row when complete. The prefix every prompt
shares stays in the staging row, so it is computed once.

Chunk boundaries depend on positions alone, and forced tokens are fed with the batch rather than as a chunk
when the batch happens to be small: what a request computes does not depend on its company.
"""

import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from bundle.manifest import Bundle
from serve.engine.base import (
    EngineBusy,
    EngineClosed,
    EngineError,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Token,
)
from serve.engine.delivery import Answering, Outbox
from serve.engine.grammar import AnswerGrammar, AnswerMatcher
from serve.engine.onnx import OnnxStudent

PREFILL_CHUNK = 256
PREFILL_TOKENS_PER_STEP = 512


@dataclass(eq=False)
class Row:
    """A request that owns a KV row: how much of it is in the row, and which tokens are still to be fed."""

    answering: Answering
    matcher: AnswerMatcher
    pending: list[int]
    length: int = 0


@dataclass
class Totals:
    """Counters since the start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


class BatchingEngine:
    """The engine over `OnnxStudent`; see the module's text."""

    name = "onnx"

    def __init__(
        self, bundle: Bundle, shared_prefix: Sequence[int], slots: int, max_waiting: int, threads: int = 0
    ) -> None:
        """
        Args:
            bundle: must hold an ONNX export.
            shared_prefix: token ids that prompts start with; may be empty.
            slots: requests that run at once.
            max_waiting: requests that may wait for a slot; one more is refused.
            threads: CPU threads for ONNX Runtime; 0 for every core.

        Raises:
            BundleError: the bundle has no ONNX export.
        """
        manifest = bundle.manifest
        folder = bundle.export_folder("onnx")
        self._student = OnnxStudent(folder, manifest.model, slots + 1, manifest.context_length, threads)
        self._grammar = AnswerGrammar(bundle.tokenizer_file, manifest.model.vocab_size, manifest.eos_token_ids)
        self._eos = frozenset(manifest.eos_token_ids)
        self._context = manifest.context_length
        self._slots, self._staging = slots, slots
        self._max_waiting = max_waiting
        self._prefix = list(shared_prefix)
        self._prefix_staged = False
        self._masks = np.zeros((slots + 1, (manifest.model.vocab_size + 31) // 32), np.int32)
        self._waiting: deque[Answering] = deque()
        self._running: list[Row] = []
        self._prefilling: Row | None = None
        self._outbox = Outbox()
        self._totals = Totals()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[Answering]:
        """See `Engine.submit`."""
        answering = Answering(request)
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine is closed")
            if len(self._waiting) >= self._max_waiting:
                raise EngineBusy(f"{len(self._waiting)} requests wait already; try again later")
            self._waiting.append(answering)
            self._changed.notify()
        try:
            yield answering
        finally:
            answering.left = True

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        with self._changed:
            waiting = sum(not answering.left for answering in self._waiting)
        totals = self._totals
        return EngineStats(
            slots=self._slots,
            running=len(self._running) + (self._prefilling is not None),
            waiting=waiting,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=totals.cached_tokens,
            generated_tokens=totals.generated_tokens,
        )

    def close(self) -> None:
        """See `Engine.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_left()
                self._prefill_some()
                self._decode_step()
                self._outbox.flush()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Tell every reader that nothing more will come."""
        with self._changed:
            self._closed = True
            unfinished = [*self._waiting, *(row.answering for row in self._running)]
            self._waiting.clear()
        if self._prefilling is not None:
            unfinished.append(self._prefilling.answering)
        for answering in unfinished:
            self._outbox.add(answering, EngineClosed("the engine was closed before the answer was complete"))
        self._outbox.flush()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._closed or self._waiting or self._running or self._prefilling):
                self._changed.wait()
            return not self._closed

    def _drop_left(self) -> None:
        """Free what belongs to readers that have gone."""
        with self._changed:
            self._waiting = deque(answering for answering in self._waiting if not answering.left)
        for row in [row for row in self._running if row.answering.left]:
            self._release(row)
        if self._prefilling is not None and self._prefilling.answering.left:
            self._prefilling = None

    def _prefill_some(self) -> None:
        budget = PREFILL_TOKENS_PER_STEP
        while budget > 0:
            if self._prefilling is None and not self._start_next():
                return
            budget -= self._prefill_chunk()

    def _start_next(self) -> bool:
        """Begin the prefill of the next waiting request; False when there is none or no free row."""
        if len(self._running) == self._slots:
            return False
        with self._changed:
            if not self._waiting:
                return False
            answering = self._waiting.popleft()
        request = answering.request
        try:
            self._check_tokens(request.prompt_ids)
            matcher = self._grammar.matcher(request.rules, request.lines)
            opening = matcher.take_forced()
            prompt = [*request.prompt_ids, *opening]
            if len(prompt) >= self._context:
                raise EngineError(f"a prompt of {len(prompt)} tokens leaves no room in {self._context}")
        except Exception as error:
            self._fail(answering, error)
            return True
        self._prefilling = row = Row(answering, matcher, prompt)
        if self._prefix and prompt[: len(self._prefix)] == self._prefix and self._prefix_staged:
            row.length = answering.cached_tokens = len(self._prefix)
            del row.pending[: row.length]
        self._totals.prompt_tokens += len(request.prompt_ids)
        self._totals.cached_tokens += row.length
        self._emit_forced(row, opening)
        return True

    def _check_tokens(self, ids: Sequence[int]) -> None:
        """ONNX Runtime's quantised embedding does not check: it would read whatever lies there."""
        vocabulary = self._grammar.vocab_size
        if ids and not (min(ids) >= 0 and max(ids) < vocabulary):
            raise EngineError(f"the prompt holds a token outside the vocabulary of {vocabulary}")

    def _prefill_chunk(self) -> int:
        """Compute one chunk in the staging row; the last one moves the request to a row of its own."""
        row = self._prefilling
        if row is None:
            return 0
        starts_with_prefix = self._starts_with_prefix(row)
        end = PREFILL_CHUNK
        if row.length < len(self._prefix) and starts_with_prefix:
            end = min(end, len(self._prefix) - row.length)
        chunk = row.pending[:end]
        if not starts_with_prefix:
            self._prefix_staged = False
        try:
            logits = self._student.prefill(self._staging, row.length, chunk)
            row.length += len(chunk)
            del row.pending[: len(chunk)]
            if starts_with_prefix and row.length == len(self._prefix):
                self._prefix_staged = True
            if not row.pending:
                self._prefilling = None
                self._student.copy_row(self._staging, len(self._running), row.length)
                self._running.append(row)
                self._sample([(row, logits)])
        except Exception as error:
            self._prefilling = None
            self._prefix_staged = False
            self._fail(row.answering, error)
        return len(chunk)

    def _starts_with_prefix(self, row: Row) -> bool:
        ids = row.answering.request.prompt_ids
        return bool(self._prefix) and list(ids[: len(self._prefix)]) == self._prefix

    def _decode_step(self) -> None:
        """Feed one token to every running row; rows with nothing left to feed choose their next."""
        if not self._running:
            return
        try:
            logits = self._student.decode(
                [row.pending[0] for row in self._running], [row.length for row in self._running]
            )
        except Exception as error:
            for row in list(self._running):
                self._release(row)
                self._fail(row.answering, error)
            return
        for row in self._running:
            row.length += 1
            del row.pending[0]
        self._sample([(row, logits[index]) for index, row in enumerate(self._running) if not row.pending])

    def _sample(self, rows: list[tuple[Row, np.ndarray]]) -> None:
        """Choose the next token of each row: the likeliest one that the grammar allows."""
        for row, logits in rows:
            try:
                self._choose(row, logits)
            except Exception as error:
                self._release(row)
                self._fail(row.answering, error)

    def _choose(self, row: Row, logits: np.ndarray) -> None:
        row.matcher.fill_mask(self._masks, 0)
        allowed = np.unpackbits(self._masks[0].view(np.uint8), bitorder="little", count=len(logits))
        token = int(np.argmax(np.where(allowed, logits, -np.inf)))
        top = logits.max()
        logprob = float(logits[token] - top - np.log(np.exp(logits - top).sum()))
        row.matcher.consume(token)
        if token not in self._eos:
            self._outbox.add(row.answering, Token(token, self._grammar.token_bytes[token], logprob, False))
            self._totals.generated_tokens += 1
        forced = row.matcher.take_forced()
        self._emit_forced(row, forced)
        row.pending = [token, *forced]
        if row.matcher.finished or token in self._eos:
            self._finish(row, "stop")
        elif row.length + len(row.pending) > self._context:
            self._finish(row, "length")

    def _emit_forced(self, row: Row, tokens: list[int]) -> None:
        self._outbox.add(
            row.answering, *(Token(token, self._grammar.token_bytes[token], 0.0, True) for token in tokens)
        )
        self._totals.generated_tokens += len(tokens)

    def _finish(self, row: Row, reason: FinishReason) -> None:
        self._release(row)
        self._outbox.add(row.answering, reason)

    def _fail(self, answering: Answering, error: Exception) -> None:
        failure = error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}")
        self._outbox.add(answering, failure)

    def _release(self, row: Row) -> None:
        """Free a row; the last running row moves into its place."""
        if row not in self._running:
            return
        index = self._running.index(row)
        last = self._running.pop()
        if last is not row:
            self._student.copy_row(len(self._running), index, last.length)
            self._running[index] = last
