"""Grammars: which tokens may come next, so that an answer can not be malformed.

llguidance compiles the answer's JSON schema against the bundle's tokenizer. Two things are ours. One: where the
grammar forces some bytes, llguidance offers only tokens *within* them, so a token that holds these bytes
and the choice after them (`{"rule":"bare-except","line":` where `{"rule":"` is forced) would be masked
out, though the student was trained to write exactly that token. Such tokens are added to the mask, and
nothing is forced where one of them could stand. The other is `bundle.quoting`: a finding quotes its line.

It needs llguidance and numpy, which the bare install does not have: what asks a student imports it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from bundle.answer import answer_schema
from bundle.quoting import open_quote, quotable, quote_grammar

COMPILED_GRAMMARS = 512


class GrammarError(ValueError):
    """A grammar does not compile, or a token does not fit it."""


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

    def matcher(self, rules: tuple[str, ...], lines: Sequence[str]) -> "AnswerMatcher":
        """A matcher at the start of an answer.

        Args:
            rules: what the answer may name.
            lines: the unit's lines, as the prompt shows them.

        Raises:
            GrammarError: the schema does not compile.
        """
        return AnswerMatcher(self, self._compiled(rules, len(lines)).deep_copy(), lines)

    def compile(self, grammar: str) -> LLMatcher:
        """A matcher of one grammar, at its start.

        Raises:
            GrammarError: it does not compile.
        """
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(f"the answer's grammar does not compile: {matcher.get_error()}")
        return matcher

    def _compile(self, rules: tuple[str, ...], lines: int) -> LLMatcher:
        return self.compile(LLMatcher.grammar_from_json_schema(answer_schema(rules, lines)))

    def _extensions(self, data: bytes) -> tuple[int, ...]:
        """Tokens that start with `data` and go on."""
        found = []
        for candidate, token in self._vocabulary[bisect_right(self._vocabulary, (data, self.vocab_size)) :]:
            if not candidate.startswith(data):
                break
            found.append(token)
        return tuple(found)


def allowed_tokens(mask: NDArray[np.int32], count: int) -> NDArray[np.bool_]:
    """A row of a mask as [count] truth values: bit `t % 32` of word `t // 32` stands for token t."""
    return np.unpackbits(mask.view(np.uint8), bitorder="little", count=count).view(np.bool_)


class AnswerMatcher:
    """Where one answer stands: in its schema and, while a quote is open, in that quote's grammar."""

    def __init__(self, grammar: AnswerGrammar, schema: LLMatcher, lines: Sequence[str]) -> None:
        self._grammar = grammar
        self._schema = schema
        self._lines = lines
        self._written = b""
        self._quote: LLMatcher | None = None

    @property
    def finished(self) -> bool:
        """The answer is complete: nothing can follow."""
        return self._schema.is_stopped()

    def fill_mask(self, masks: NDArray[np.int32], row: int) -> None:
        """Set the bits of the tokens that may come next.

        Args:
            masks: [rows, ceil(vocab_size / 32)]; bit `t % 32` of word `t // 32` stands for token t.
            row: which row to fill.
        """
        self._fill(self._schema, masks, row)
        if self._quote is not None:
            quoted = np.zeros((1, masks.shape[1]), np.int32)
            self._fill(self._quote, quoted, 0)
            quoted &= masks[row]
            if quoted.any():  # else the schema leaves no way on: the quote is too long, or holds control characters
                masks[row] = quoted[0]

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, [vocab_size]."""
        masks = np.zeros((1, (self._grammar.vocab_size + 31) // 32), np.int32)
        self.fill_mask(masks, 0)
        return allowed_tokens(masks[0], self._grammar.vocab_size)

    def consume(self, token: int) -> None:
        """Move past `token`.

        Raises:
            GrammarError: the answer's schema does not allow it here.
        """
        if not self._schema.consume_token(token):
            raise GrammarError(f"token {token} does not fit the answer's grammar: {self._schema.get_error()}")
        self._written += self._grammar.token_bytes[token]
        quote = open_quote(self._written)
        if quote is None:
            self._quote = None
        elif self._quote is not None:
            if not self._quote.consume_token(token):
                self._quote = None
        elif quote.lead is not None and quotable(self._lines, quote.line):
            self._quote = self._grammar.compile(
                LLMatcher.grammar_from_lark(quote_grammar(self._lines[quote.line - 1], quote.lead))
            )

    def forced(self) -> list[int]:
        """Tokens that are the only way on; empty where the student has a choice."""
        rest = self._schema.compute_ff_bytes()
        forced: list[int] = []
        for token in self._schema.compute_ff_tokens():
            if self._grammar.extensions(rest):
                break
            forced.append(token)
            rest = rest[len(self._grammar.token_bytes[token]) :]
        return forced

    def take_forced(self) -> list[int]:
        """What is `forced`, already moved past."""
        taken = self.forced()
        for token in taken:
            self.consume(token)
        return taken

    def _fill(self, matcher: LLMatcher, masks: NDArray[np.int32], row: int) -> None:
        fill_next_token_bitmask(matcher, masks, row)
        forced = matcher.compute_ff_bytes()
        if forced:
            bits = masks[row].view(np.uint32)
            for token in self._grammar.extensions(forced):
                if matcher.validate_tokens([token]) == 1:
                    bits[token // 32] |= np.uint32(1 << (token % 32))
