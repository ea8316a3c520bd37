"""Grammars: which tokens may come next, so that an answer can not be malformed.

llguidance compiles the answer's JSON schema against the bundle's tokenizer. One thing is ours: where the
grammar forces some bytes, llguidance offers only tokens *within* them, so a token that holds these bytes
and the choice after them (`{"rule":"bare-except","line":` where `{"rule":"` is forced) would be masked
out, though the student was trained to write exactly that token. Such tokens are added to the mask, and
nothing is forced where one of them could stand.
"""

from bisect import bisect_right
from functools import lru_cache
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from bundle.answer import answer_schema
from serve.engine.base import EngineError

COMPILED_GRAMMARS = 512


class AnswerGrammar:
    """Makes matchers for one tokenizer. Not thread-safe: it belongs to the engine's thread."""

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        """
        Args:
            tokenizer_file: the bundle's tokenizer.json.
            vocab_size: width of the student's logits; may exceed the tokenizer's own count.
            eos_token_ids: tokens that end an answer.
        """
        self._tokenizer = LLTokenizer(str(tokenizer_file), n_vocab=vocab_size, eos_token=list(eos_token_ids))
        self.vocab_size = vocab_size
        self.token_bytes = [self._tokenizer.decode_bytes([token]) for token in range(vocab_size)]
        self._vocabulary = sorted(
            (data, token)
            for token, data in enumerate(self.token_bytes)
            if data and not self._tokenizer.is_special_token(token)
        )
        self._compiled = lru_cache(COMPILED_GRAMMARS)(self._compile)
        self.extensions = lru_cache(COMPILED_GRAMMARS)(self._extensions)

    def matcher(self, rules: tuple[str, ...], lines: int) -> "AnswerMatcher":
        """A matcher at the start of an answer about a unit of `lines` lines.

        Raises:
            EngineError: the schema does not compile.
        """
        return AnswerMatcher(self, self._compiled(rules, lines).deep_copy())

    def _compile(self, rules: tuple[str, ...], lines: int) -> LLMatcher:
        schema = LLMatcher.grammar_from_json_schema(answer_schema(rules, lines))
        matcher = LLMatcher(self._tokenizer, schema, log_level=0)
        if matcher.is_error():
            raise EngineError(f"the answer's grammar does not compile: {matcher.get_error()}")
        return matcher

    def _extensions(self, data: bytes) -> tuple[int, ...]:
        """Tokens that start with `data` and go on."""
        found = []
        for candidate, token in self._vocabulary[bisect_right(self._vocabulary, (data, self.vocab_size)) :]:
            if not candidate.startswith(data):
                break
            found.append(token)
        return tuple(found)


class AnswerMatcher:
    """Where one answer stands in its grammar."""

    def __init__(self, grammar: AnswerGrammar, matcher: LLMatcher) -> None:
        self._grammar = grammar
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        """The answer is complete: nothing can follow."""
        return self._matcher.is_stopped()

    def fill_mask(self, masks: NDArray[np.int32], row: int) -> None:
        """Set the bits of the tokens that may come next.

        Args:
            masks: [rows, ceil(vocab_size / 32)]; bit `t % 32` of word `t // 32` stands for token t.
            row: which row to fill.
        """
        fill_next_token_bitmask(self._matcher, masks, row)
        forced = self._matcher.compute_ff_bytes()
        if forced:
            bits = masks[row].view(np.uint32)
            for token in self._grammar.extensions(forced):
                if self._matcher.validate_tokens([token]) == 1:
                    bits[token // 32] |= np.uint32(1 << (token % 32))

    def consume(self, token: int) -> None:
        """Move past `token`.

        Raises:
            EngineError: the grammar does not allow it here.
        """
        if not self._matcher.consume_token(token):
            raise EngineError(f"token {token} does not fit the answer's grammar: {self._matcher.get_error()}")

    def take_forced(self) -> list[int]:
        """Tokens that are the only way on, already moved past; empty where the student has a choice."""
        rest = self._matcher.compute_ff_bytes()
        taken: list[int] = []
        for token in self._matcher.compute_ff_tokens():
            if self._grammar.extensions(rest):
                break
            taken.append(token)
            rest = rest[len(self._grammar.token_bytes[token]) :]
        for token in taken:
            self.consume(token)
        return taken
