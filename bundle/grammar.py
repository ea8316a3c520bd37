"""Grammars: which tokens may come next, so that an answer can not be malformed.

llguidance compiles the answer's JSON schema against the bundle's tokenizer. Two things are ours. One: where the
grammar forces some bytes, llguidance offers only tokens *within* them, so a token that holds these bytes
and the choice after them (`{"rule":"bare-except","line":` where `{"rule":"` is forced) would be masked
out, though the student was trained to write exactly that token. Such tokens are added to the mask, and
nothing is forced where one of them could stand. The other is `bundle.quoting`: a finding quotes its line.

A trained student mostly wants what it may write, and asking about one token takes a tenth of the time of a mask: see
`AnswerMatcher.permits`.

It needs llguidance and numpy, which the bare install does not have: what asks a student imports it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from bundle.answer import answer_schema
from bundle.quoting import Quote, open_quote, quotable

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
        self._by_bytes: dict[bytes, list[int]] = defaultdict(list)
        for data, token in self._vocabulary:
            self._by_bytes[data].append(token)
        self._longest = max(map(len, self._by_bytes))
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

    def quoting(self, quote: Quote, written: bytes) -> set[int]:
        """Tokens that go on with an open quote: see `Quote.continuations`."""
        tokens: set[int] = set()
        for data, anything_follows in set(quote.continuations(written, self._longest)):
            tokens.update(self._by_bytes.get(data, ()))
            if anything_follows:
                tokens.update(self.extensions(data))
        return tokens

    def _compile(self, rules: tuple[str, ...], lines: int) -> LLMatcher:
        schema = LLMatcher.grammar_from_json_schema(answer_schema(rules, lines))
        matcher = LLMatcher(self._tokenizer, schema, log_level=0)
        if matcher.is_error():
            raise GrammarError(f"the answer's grammar does not compile: {matcher.get_error()}")
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
    """Where one answer stands: in its schema and, while a quote is open, in that quote."""

    def __init__(self, grammar: AnswerGrammar, schema: LLMatcher, lines: Sequence[str]) -> None:
        self._grammar = grammar
        self._schema = schema
        self._lines = lines
        self._written = b""
        self._quote: Quote | None = None
        self._quoted = b""
        """What is written behind the line that the quote is of."""

    @property
    def finished(self) -> bool:
        """The answer is complete: nothing can follow."""
        return self._schema.is_stopped()

    def permits(self, token: int) -> bool:
        """Whether it is certain at a glance that a token may come next; `allowed` knows where this does not."""
        if self._schema.compute_ff_bytes() or self._schema.validate_tokens([token]) != 1:
            return False
        return self._quote is None or self._quote.allows(self._quoted + self._grammar.token_bytes[token])

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, [vocab_size]."""
        size = self._grammar.vocab_size
        mask = np.zeros((1, (size + 31) // 32), np.int32)
        fill_next_token_bitmask(self._schema, mask, 0)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little", count=size).view(np.bool_)
        if forced := self._schema.compute_ff_bytes():
            for token in self._grammar.extensions(forced):
                allowed[token] |= self._schema.validate_tokens([token]) == 1
        if self._quote is not None:
            quoted = np.zeros(size, np.bool_)
            quoted[list(self._grammar.quoting(self._quote, self._quoted))] = True
            quoted &= allowed
            if quoted.any():  # else the schema leaves no way on: the quote is too long, or holds control characters
                return quoted
        return allowed

    def consume(self, token: int) -> None:
        """Move past `token`.

        Raises:
            GrammarError: the answer's schema does not allow it here.
        """
        if not self._schema.consume_token(token):
            raise GrammarError(f"token {token} does not fit the answer's grammar: {self._schema.get_error()}")
        self._written += self._grammar.token_bytes[token]
        self._follow_quote()

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

    def _follow_quote(self) -> None:
        opened = open_quote(self._written)
        if opened is None:
            self._quote = None
        elif self._quote is not None:
            if not self._quote.allows(opened.written):
                self._quote = None
        elif not opened.has_text and quotable(self._lines, opened.line):
            self._quote = Quote(self._lines[opened.line - 1])
        self._quoted = b"" if opened is None else opened.written
