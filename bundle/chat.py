"""A conversation as a prompt, through the chat template that came with the student's tokenizer.

What people write is data, as code is in `bundle.prompt`: text in it that spells a special token stays text and can not
end a message or begin another one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

# No tokenizer's vocabulary holds NUL, and no request that is accepted does.
_MARK = "\0{}\0"


class ChatTemplateError(ValueError):
    """The template refuses a conversation, or can not be filled in; the message is the template's own."""


class ChatPrompt:
    """A student's chat template, filled in with conversations."""

    def __init__(self, template: str, special_tokens: Mapping[str, str], tokenizer: Tokenizer) -> None:
        """
        Args:
            template: Jinja source, as transformers keeps it.
            special_tokens: what the template may name: `bos_token`, `eos_token` and so on.
            tokenizer: the student's; it is not changed.

        Raises:
            ChatTemplateError: the template is not valid Jinja.
        """
        # Sandboxed, because a template comes with a bundle, and a bundle runs no code. Blocks are trimmed as
        # transformers does.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the bundle's chat template is not valid: {error}") from error
        self._special_tokens = dict(special_tokens)
        self._tokenizer = tokenizer
        self._data_tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._data_tokenizer.encode_special_tokens = True

    def encode(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the student's answer begins.

        Args:
            messages: (role, text) of each.

        Raises:
            ChatTemplateError: the template refuses these messages, such as a role it does not know.
        """
        marked = [{"role": role, "content": _MARK.format(index)} for index, (role, _) in enumerate(messages)]
        try:
            text = self._template.render(messages=marked, add_generation_prompt=True, **self._special_tokens)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ChatTemplateError(f"the bundle's chat template refuses the messages: {error}") from error
        ids: list[int] = []
        # Marks are between NULs, so every second part is one: the number of the message that stands there.
        for position, part in enumerate(text.split("\0")):
            if position % 2:
                ids += self._data_tokenizer.encode(messages[int(part)][1], add_special_tokens=False).ids
            else:
                ids += self._tokenizer.encode(part, add_special_tokens=False).ids
        return ids


def load_chat_prompt(bundle_root: Path, tokenizer: Tokenizer) -> ChatPrompt | None:
    """The chat template of a verified bundle; None when it has none.

    Raises:
        ChatTemplateError: the template is not valid.
    """
    config_file = bundle_root / TOKENIZER_CONFIG_FILE
    config: dict[str, Any] = json.loads(config_file.read_bytes()) if config_file.is_file() else {}
    template_file = bundle_root / TEMPLATE_FILE
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    if not isinstance(template, str):
        return None
    special_tokens = {
        name: token["content"] if isinstance(token, dict) else token
        for name, token in config.items()
        if name.endswith("_token") and isinstance(token, str | dict)
    }
    return ChatPrompt(template, special_tokens, tokenizer)


def _refuse(message: str) -> None:
    raise ChatTemplateError(message)
