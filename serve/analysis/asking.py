"""One unit, one question to the engine, one answer; or the answer that was given before."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from bundle.answer import CLOSING, CLOSING_FINDINGS
from bundle.confidence import finding_confidences
from bundle.units import Unit
from serve.analysis.cache import AnswerCache
from serve.analysis.report import Usage
from serve.engine.base import DeadlineExceeded, Engine, EngineClosed, EngineError, GenerationRequest, Priority, Timeline

LONGEST_ANSWER_TOKENS = 1024
"""About twice what eight findings and a sentence take. A KV row is reserved for a prompt and so long an answer."""


def nobody_pays(tokens: int) -> None:
    """What is computed is on nobody's account."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """Whose request it is and how it is to be treated.

    `tenant` has kept answers of its own. `deadline` is on the clock of `time.monotonic()`. `pay` is told how many
    tokens, of prompts and answers, were computed; of what several ask at once, the first pays.
    """

    tenant: str = ""
    priority: Priority = "interactive"
    deadline: float | None = None
    pay: Callable[[int], None] = nobody_pays


class UnitAnswer(msgspec.Struct, frozen=True):
    """What the student wrote about a unit, and the raw confidence of each finding in it.

    `unfinished`: the text broke off, for this reason, and would do so again.
    """

    text: str
    confidences: tuple[float, ...]
    usage: Usage
    unfinished: str | None = None

    def from_cache(self) -> "UnitAnswer":
        """The same, nothing of its prompt computed."""
        return msgspec.structs.replace(self, usage=self.usage.from_cache())


class NotAnswered(Exception):
    """The unit has no answer this time; the message is the reason a report gives."""


class Observer(Protocol):
    """Who wants to know how long the engine took."""

    def answered(self, timeline: Timeline, ended: float, tokens: int) -> None:
        """An engine request has ended.

        Args:
            timeline: the engine's; without an end where the stream was left early.
            ended: when it was left, on the same clock.
            tokens: how many came.
        """
        ...


class Asker:
    """Asks the engine about units; the same question at the same time is asked once, and later not at all."""

    def __init__(self, engine: Engine, cache: AnswerCache | None = None, observer: Observer | None = None) -> None:
        """
        Args:
            engine: who answers.
            cache: where answers are kept; None keeps none.
            observer: told of every engine request.
        """
        self.engine = engine
        self._cache, self._observer = cache, observer

    async def ask(
        self, unit: Unit, prompt: Sequence[int], rules: tuple[str, ...], with_summary: bool, call: Call
    ) -> UnitAnswer:
        """The answer about one unit.

        Args:
            unit: what it is about.
            prompt: the unit's prompt in tokens.
            rules: what the answer may name.
            with_summary: whether anybody reads the unit's sentence; without, it is not written.
            call: whose request it is.

        Raises:
            NotAnswered: it has no answer, and why.
            EngineClosed: nothing has an answer any more, or for now.
        """
        if self._cache is None:
            return await self._generate(unit, prompt, rules, with_summary, call)
        cache, key = self._cache, self._cache.key(call.tenant, "unit", unit.texts, rules, with_summary)

        async def make() -> UnitAnswer:
            kept = await cache.get(key, UnitAnswer)
            if kept is not None:
                return kept.from_cache()
            answer = await self._generate(unit, prompt, rules, with_summary, call)
            await cache.put(key, answer)
            return answer

        while True:
            try:
                # Not across priorities: who is interactive does not wait for a batch.
                answer, own = await cache.once((key, call.priority), make)
            except NotAnswered as error:
                out_of_time = call.deadline is not None and time.monotonic() >= call.deadline
                if out_of_time or not isinstance(error.__cause__, DeadlineExceeded):
                    raise
                continue  # it was the deadline of another request
            return answer if own else answer.from_cache()

    async def _generate(
        self, unit: Unit, prompt: Sequence[int], rules: tuple[str, ...], with_summary: bool, call: Call
    ) -> UnitAnswer:
        end = CLOSING_FINDINGS.encode()
        request = GenerationRequest(
            prompt_ids=prompt,
            rules=rules,
            lines=unit.texts,
            priority=call.priority,
            deadline=call.deadline,
            max_tokens=LONGEST_ANSWER_TOKENS,
            until=None if with_summary else end,
            salt=call.tenant,
        )
        try:
            async with self.engine.submit(request) as stream:
                try:
                    tokens = await stream.whole()
                finally:
                    if stream.written:  # also when the client leaves in the middle
                        call.pay(len(prompt) - stream.cached_tokens + stream.written)
                if self._observer is not None:
                    self._observer.answered(stream.timeline, time.monotonic(), len(tokens))
        except EngineClosed:
            raise
        except DeadlineExceeded as error:
            raise NotAnswered("the time limit of the analysis was reached before it was answered") from error
        except EngineError as error:
            raise NotAnswered(f"the engine could not answer: {error}") from error
        usage = Usage(prompt_tokens=len(prompt), cached_tokens=stream.cached_tokens, completion_tokens=len(tokens))
        if stream.finish_reason == "length":
            what = f"{LONGEST_ANSWER_TOKENS} tokens" if len(tokens) == LONGEST_ANSWER_TOKENS else "the context"
            return UnitAnswer("", (), usage, unfinished=f"the answer did not fit {what}")
        text = b"".join(token.data for token in tokens)
        if not with_summary and end in text:  # the last token may go on behind it; nobody reads this unit's sentence
            text = text.partition(end)[0] + end + CLOSING.encode()
        confidences = finding_confidences((token.data, token.logprob) for token in tokens)
        return UnitAnswer(text.decode(), tuple(confidences), usage)
