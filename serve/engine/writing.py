"""Answers being written: how one begins, which token is next, and when it is complete."""

import time
from collections.abc import Sequence

import numpy as np

from bundle.grammar import AnswerGrammar
from serve.engine.base import EngineError, FinishReason, GenerationRequest, Token
from serve.engine.counters import Counters
from serve.engine.delivery import Answering, Outbox
from serve.engine.rows import Row
from serve.engine.sampling import Scores, choose_token


class AnswerWriter:
    """Writes the tokens of every row's answer into the outbox."""

    def __init__(
        self, grammar: AnswerGrammar, eos_token_ids: Sequence[int], context: int, outbox: Outbox, counters: Counters
    ) -> None:
        """
        Args:
            grammar: of the bundle's tokenizer.
            eos_token_ids: tokens that end an answer.
            context: tokens that a prompt and its answer may have together.
            outbox: where tokens go.
            counters: where they are counted.
        """
        self._grammar, self._eos, self._context = grammar, frozenset(eos_token_ids), context
        self._outbox, self._counters = outbox, counters

    def reservation(self, request: GenerationRequest) -> int:
        """The most tokens that the request's prompt and answer can have together."""
        prompt = len(request.prompt_ids)
        return self._context if request.max_tokens is None else min(prompt + request.max_tokens, self._context)

    def open(self, answering: Answering) -> tuple[Row, FinishReason | None]:
        """Begin an answer with what its grammar forces.

        Returns:
            The row, its prompt still to be computed; and why the answer is complete, if it is already.

        Raises:
            EngineError: the prompt is empty, too long, or holds what is no token.
            GrammarError: the grammar does not compile.
        """
        request = answering.request
        matcher = self._grammar.matcher(request.rules, request.lines) if request.constrained else None
        opening = [] if matcher is None else matcher.take_forced()
        prompt = whole_prompt(request, opening, self._grammar.vocab_size, self._context)
        reserved = self.reservation(request)
        row = Row(
            answering,
            matcher,
            np.random.default_rng(request.seed % 2**64),
            pending=prompt,
            room=reserved - len(request.prompt_ids),
            reserved=reserved,
        )
        self._counters.prompt_tokens += len(request.prompt_ids)
        return row, self._force(row, opening)

    def choose(self, row: Row, scores: Scores) -> FinishReason | None:
        """Write the next token, and what the grammar forces after it; they are then the row's pending ones.

        Returns:
            Why the answer is complete, or None.

        Raises:
            ValueError: the logits are not finite, or no token is allowed.
        """
        request, timeline = row.answering.request, row.answering.timeline
        token, logprob = choose_token(scores, row.matcher, request.temperature, row.draws)
        if row.matcher is not None:
            row.matcher.consume(token)
        if timeline.first_token is None:
            timeline.first_token = time.monotonic()
        if token in self._eos:
            return "stop"
        self._counters.decoded_tokens += 1
        if self._write(row, token, logprob, forced=False):
            return "stop"
        forced = [] if row.matcher is None else row.matcher.take_forced()
        row.pending = [token, *forced]
        return self._force(row, forced)

    def _force(self, row: Row, tokens: Sequence[int]) -> FinishReason | None:
        written = tokens[: row.room]
        for token in written:
            self._counters.forced_tokens += 1
            if self._write(row, token, 0.0, forced=True):
                return "stop"
        if row.matcher is not None and row.matcher.finished and len(written) == len(tokens):
            return "stop"
        return None if row.room > 0 else "length"

    def _write(self, row: Row, token: int, logprob: float, forced: bool) -> bool:
        """Add one token to an answer; returns whether it completes what the answer goes on until."""
        data = self._grammar.token_bytes[token]
        self._outbox.add(row.answering, Token(token, data, logprob, forced))
        row.room -= 1
        until = row.answering.request.until
        if not until:
            return False
        text = row.tail + data
        row.tail = text[max(0, len(text) - len(until) + 1) :]
        return until in text


def whole_prompt(request: GenerationRequest, opening: Sequence[int], vocabulary: int, context: int) -> list[int]:
    """What is computed before the first choice: the request's prompt, and the beginning of its answer.

    Args:
        request: whose prompt.
        opening: tokens that the answer must begin with.
        vocabulary: how many tokens there are. Nobody else checks: ONNX Runtime's quantised embedding would read
            whatever lies behind it.
        context: tokens that a prompt and its answer may have together.

    Raises:
        EngineError: the prompt is empty, too long, or holds what is no token.
    """
    ids = request.prompt_ids
    if ids and not (min(ids) >= 0 and max(ids) < vocabulary):
        raise EngineError(f"the prompt holds a token outside the vocabulary of {vocabulary}")
    prompt = [*ids, *opening]
    if not prompt:
        raise EngineError("the prompt is empty")
    if len(prompt) >= context:
        raise EngineError(f"a prompt of {len(prompt)} tokens leaves no room in {context}")
    return prompt
