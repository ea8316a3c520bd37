"""How a student is asked: one template, the same tokens while training and while serving.

A prompt is a prefix, the numbered code, and a suffix. Prefix and suffix are the same for every unit, so
an engine computes the prefix once. The code is data: text in it that spells a special token
(`<|im_end|>`, say) is encoded as ordinary characters and can not end the prompt.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from bundle.rules import Catalogue
from bundle.units import Unit

TEMPLATES = Path(__file__).with_name("templates")
_CODE_MARK = "\0code\0"


class Prompt:
    """A template filled in for one catalogue and one tokenizer."""

    def __init__(self, template: str, catalogue: Catalogue, tokenizer: Tokenizer) -> None:
        """
        Args:
            template: Jinja source that uses `code` exactly once, and may use `language` and `rules`.
            catalogue: the rules the template may list.
            tokenizer: the student's tokenizer; it is not changed.

        Raises:
            ValueError: the template is not valid Jinja, reaches for Python's internals, or does not use
                `code` exactly once.
        """
        # Sandboxed, because a template comes with a bundle, and a bundle runs no code.
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        try:
            text = environment.from_string(template).render(
                language=catalogue.language, rules=catalogue.rules, code=_CODE_MARK
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the prompt template cannot be filled in: {error}") from error
        parts = text.split(_CODE_MARK)
        if len(parts) != 2:
            raise ValueError("the prompt template must use {{ code }} exactly once")
        self.prefix, self.suffix = parts
        self._data_tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._data_tokenizer.encode_special_tokens = True
        self.prefix_ids: list[int] = tokenizer.encode(self.prefix, add_special_tokens=False).ids
        self.suffix_ids: list[int] = tokenizer.encode(self.suffix, add_special_tokens=False).ids

    def encode(self, unit: Unit) -> list[int]:
        """Token ids of the whole prompt about `unit`; they always start with `prefix_ids`."""
        return self.prefix_ids + self.encode_data(unit.numbered()) + self.suffix_ids

    def encode_all(self, units: Sequence[Unit]) -> list[list[int]]:
        """What `encode` gives for each unit, on all cores."""
        coded = self.encode_all_data([unit.numbered() for unit in units])
        return [self.prefix_ids + ids + self.suffix_ids for ids in coded]

    def encode_all_data(self, texts: Sequence[str]) -> list[list[int]]:
        """What `encode_data` gives for each text, on all cores."""
        return [each.ids for each in self._data_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_data(self, text: str) -> list[int]:
        """Token ids of text that is data (code, an answer): no part of it becomes a special token."""
        return self._data_tokenizer.encode(text, add_special_tokens=False).ids
