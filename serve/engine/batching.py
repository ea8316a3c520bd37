"""Continuous batching: many requests over one student, each in its own KV row.

A thread takes steps. A step frees the rows of requests that are over, admits waiting ones while rows and KV memory
last, computes some of their prompts, and decodes one token of every answer (`steps`). What it has to say goes out
with one wake-up per event loop (`delivery`).
"""

import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bundle.grammar import AnswerGrammar
from bundle.manifest import Bundle
from serve.engine.base import EngineClosed, EngineCrashed, EngineStats, GenerationRequest
from serve.engine.counters import Counters
from serve.engine.delivery import PAUSE_SECONDS, Answering, Outbox
from serve.engine.devices import Device
from serve.engine.onnx import OnnxStudent
from serve.engine.steps import Steps
from serve.engine.waiting import WaitingQueue
from serve.engine.writing import AnswerWriter

log = logging.getLogger(__name__)


class BatchingEngine:
    """The engine over `OnnxStudent`; see the module's text."""

    def __init__(
        self,
        bundle: Bundle,
        shared_prefix: Sequence[int],
        slots: int,
        max_waiting: int,
        threads: int = 0,
        device: Device = "auto",
        kv_tokens: int | None = None,
    ) -> None:
        """
        Args:
            bundle: must hold an ONNX export for the device.
            shared_prefix: token ids that prompts start with; may be empty.
            slots: requests that run at once.
            max_waiting: requests that may wait for a slot; one more is refused.
            threads: CPU threads for ONNX Runtime; 0 for every core.
            device: where the student runs; `auto` takes CUDA where it works and the bundle has a graph for it.
            kv_tokens: the most tokens of KV cache; None: a whole context for each slot. A request is admitted
                when its prompt and its longest answer fit.

        Raises:
            BundleError: the bundle has no ONNX export for the device.
            EngineUnavailable: the student can not run on that device, or so few `kv_tokens` hold nothing.
            StudentBroken: it runs there, and computes nothing.
        """
        manifest = bundle.manifest
        context = manifest.context_length
        tokens = slots * context if kv_tokens is None else kv_tokens
        student = OnnxStudent(bundle, slots, tokens, threads, device)
        grammar = AnswerGrammar(bundle.tokenizer_file, manifest.model.vocab_size, manifest.eos_token_ids)
        self.name = "onnx" if student.export == "onnx" else f"onnx-{student.export}"
        self.quantization = manifest.exports[student.export].quantization
        self._slots, self._kv_tokens = slots, tokens
        self._outbox, self._counters = Outbox(PAUSE_SECONDS), Counters()
        writer = AnswerWriter(grammar, manifest.eos_token_ids, context, self._outbox, self._counters)
        self._steps = Steps(student, writer, self._outbox, self._counters, shared_prefix)
        self._waiting = WaitingQueue(max_waiting)
        self._failure: str | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """See `Engine.failure`."""
        return self._failure

    @property
    def away(self) -> None:
        """See `Engine.away`: the student is in this process."""

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[Answering]:
        """See `Engine.submit`."""
        answering = Answering(request)
        with self._changed:
            if self._closed:
                raise self._why_closed()
            self._waiting.add(answering)
            self._changed.notify()
        try:
            yield answering
        finally:
            answering.left = True
            answering.end()

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        with self._changed:
            waiting, waiting_batch = len(self._waiting), self._waiting.count("batch")
        rows = self._steps.rows.running
        return self._counters.stats(
            slots=self._slots,
            running=len(rows),
            waiting=waiting,
            waiting_batch=waiting_batch,
            kv_tokens=self._kv_tokens,
            kv_tokens_used=sum(row.length for row in rows),
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
                begun = time.monotonic()
                self._step(begun)
                self._counters.add_step(time.monotonic() - begun)
        except BaseException as error:
            log.exception("the engine broke down")
            self._failure = f"{type(error).__name__}: {error}"
        self._steps.close()
        self._abandon()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._closed or len(self._waiting) or self._steps.rows.all):
                self._changed.wait()
            return not self._closed

    def _step(self, now: float) -> None:
        with self._changed:
            gone = self._waiting.take_gone(now)
        for answering in gone:
            self._steps.give_up(answering)
        self._steps.drop(now)
        self._admit()
        self._steps.step()
        self._outbox.flush()

    def _admit(self) -> None:
        while True:
            with self._changed:
                # Who is first and does not fit waits for rows to become free, and nobody overtakes it.
                answering = self._waiting.first()
                if answering is None or not self._steps.has_room_for(answering):
                    return
                self._waiting.take()
            answering.timeline.admitted = time.monotonic()
            self._steps.admit(answering)

    def _abandon(self) -> None:
        """Tell every reader that nothing more will come."""
        with self._changed:
            self._closed = True
            unfinished = [*self._waiting.take_all(), *(row.answering for row in self._steps.rows.running)]
        for answering in unfinished:
            self._steps.end(answering, self._why_closed())
        self._outbox.flush()

    def _why_closed(self) -> EngineClosed:
        if self._failure is not None:
            return EngineCrashed(f"the engine broke down ({self._failure}); its process must be started again")
        return EngineClosed("the engine was closed before the answer was complete")
