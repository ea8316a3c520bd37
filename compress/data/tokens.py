"""Examples as token ids."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bundle.answer import CLOSING_FINDINGS
from bundle.prompt import TEMPLATES, Prompt
from bundle.rules import Catalogue
from compress.data.examples import Example
from compress.errors import RecipeError

_CHUNK = 4096


class Tokens(msgspec.Struct, frozen=True):
    """One example: ids of prompt and answer together, and where the answer starts."""

    ids: list[int]
    answer_start: int


def prompt_template(name: str) -> str:
    """The Jinja source of a built-in template (`compact`, `chat`) or of a file.

    Raises:
        RecipeError: there is no such template.
    """
    file = Path(name) if name.endswith(".jinja") else TEMPLATES / f"{name}.jinja"
    if not file.is_file():
        built_in = ", ".join(sorted(template.stem for template in TEMPLATES.glob("*.jinja")))
        raise RecipeError(f"data.prompt: no template {name!r}; name one of {built_in}, or a .jinja file")
    return file.read_text(encoding="utf-8")


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint on disk or of a hub name.

    Raises:
        RecipeError: there is none, it is not a fast one, or it lacks an EOS token or a pad token of its own.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load the tokenizer of {str(name)!r}: {str(error).splitlines()[0]}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token_id is None:
        raise RecipeError(f"{str(name)!r} needs a fast tokenizer (tokenizer.json) with an EOS token")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise RecipeError(f"the tokenizer of {str(name)!r} needs a pad token that is not its EOS token")
    return tokenizer


def make_prompt(name: str, catalogue: Catalogue, tokenizer: PreTrainedTokenizerFast) -> Prompt:
    """The prompt of a recipe for one tokenizer.

    Raises:
        RecipeError: there is no such template, or it cannot be used.
    """
    try:
        return Prompt(prompt_template(name), catalogue, tokenizer.backend_tokenizer)
    except ValueError as error:
        raise RecipeError(f"data.prompt: {name}: {error}") from error


def tokenize_examples(examples: Sequence[Example], prompt: Prompt, eos_token_id: int) -> list[Tokens]:
    """Prompt and answer of each example as ids.

    An answer ends with EOS, except where the unit has no docstring to learn a summary from: then it
    ends where the summary would begin, and nothing is learnt about what follows.
    """
    asked = prompt.encode_all([example.unit for example in examples])
    answered = prompt.encode_all_data([_answer_to_learn(example) for example in examples])
    return [
        Tokens(ids=ids + answer + ([eos_token_id] if example.has_summary else []), answer_start=len(ids))
        for example, ids, answer in zip(examples, asked, answered, strict=True)
    ]


def _answer_to_learn(example: Example) -> str:
    answer = example.answer_text
    return answer if example.has_summary else answer[: answer.rindex(CLOSING_FINDINGS) + len(CLOSING_FINDINGS)]


class TokenDataset(Dataset):
    """Tokenised examples; longer ones than `max_tokens` are left out, and counted."""

    def __init__(self, examples: list[Example], prompt: Prompt, eos_token_id: int, max_tokens: int) -> None:
        """
        Raises:
            RecipeError: all examples are longer than `max_tokens`.
        """
        chunks = (examples[start : start + _CHUNK] for start in range(0, len(examples), _CHUNK))
        tokenised = (tokens for chunk in chunks for tokens in tokenize_examples(chunk, prompt, eos_token_id))
        self.rows: list[Tokens] = []
        self.max_tokens = max_tokens
        self.too_long: list[int] = []  # how long those are that were left out
        for tokens in tokenised:
            if len(tokens.ids) <= max_tokens:
                self.rows.append(tokens)
            else:
                self.too_long.append(len(tokens.ids))
        if examples and not self.rows:
            raise RecipeError(
                f"data.max_tokens: all {len(examples)} examples are longer than {max_tokens} tokens; "
                f"the shortest has {min(self.too_long)}"
            )
        self.lengths = [len(tokens.ids) for tokens in self.rows]

    @property
    def summary(self) -> str:
        """How many examples there are and how many were left out, as a line to print."""
        count = f"{len(self.rows):,} training examples of {sum(self.lengths):,} tokens"
        if not self.too_long:
            return f"{count}; none is longer than data.max_tokens: {self.max_tokens}"
        return (
            f"{count}; {len(self.too_long):,} longer than data.max_tokens: {self.max_tokens} are left out "
            f"(the longest has {max(self.too_long):,})"
        )

    def spread(self, count: int) -> list[list[int]]:
        """Token ids of `count` examples, taken evenly from all; of all when there are fewer."""
        return [row.ids for row in self.rows[:: max(len(self.rows) // count, 1)]][:count]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"index": index, "tokens": self.rows[index]}
