"""Examples as token ids with labels, and batches filled by a token budget."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch
from torch.utils.data import Dataset, Sampler
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bundle.answer import CLOSING_FINDINGS
from bundle.prompt import TEMPLATES, Prompt
from bundle.rules import Catalogue
from compress.data.examples import Example
from compress.errors import RecipeError
from compress.losses import IGNORED


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


def tokenize_example(example: Example, prompt: Prompt, eos_token_id: int) -> Tokens:
    """Prompt and answer as ids.

    The answer ends with EOS, except where the unit has no docstring to learn a summary from: then it
    ends where the summary would begin, and nothing is learnt about what follows.
    """
    ids = prompt.encode(example.unit)
    answer = example.answer_text
    if example.has_summary:
        answer_ids = [*prompt.encode_data(answer), eos_token_id]
    else:
        answer_ids = prompt.encode_data(answer[: answer.rindex(CLOSING_FINDINGS) + len(CLOSING_FINDINGS)])
    return Tokens(ids=ids + answer_ids, answer_start=len(ids))


class TokenDataset(Dataset):
    """Tokenised examples; longer ones than `max_tokens` are left out."""

    def __init__(self, examples: list[Example], prompt: Prompt, eos_token_id: int, max_tokens: int) -> None:
        tokenised = (tokenize_example(example, prompt, eos_token_id) for example in examples)
        self.rows = [tokens for tokens in tokenised if len(tokens.ids) <= max_tokens]
        self.lengths = [len(tokens.ids) for tokens in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"index": index, "tokens": self.rows[index]}


def padded_width(length: int) -> int:
    """A batch's width: a multiple of 32, so that kernels are prepared for few shapes and not for every length."""
    return -(-length // 32) * 32


def collate(rows: list[dict], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch.

    Returns:
        input_ids, attention_mask, labels (prompt and padding IGNORED): int64 [B, S]; index: [B], the
        rows' places in the dataset, by which soft labels are looked up.
    """
    width = padded_width(max(len(row["tokens"].ids) for row in rows))
    input_ids = torch.full((len(rows), width), pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    for place, row in enumerate(rows):
        tokens: Tokens = row["tokens"]
        length = len(tokens.ids)
        input_ids[place, :length] = torch.tensor(tokens.ids)
        attention_mask[place, :length] = 1
        labels[place, tokens.answer_start : length] = input_ids[place, tokens.answer_start : length]
    index = torch.tensor([row["index"] for row in rows])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "index": index}


class TokenBudgetBatches(Sampler[list[int]]):
    """Batches of rows of about one length, each of at most `budget` tokens with padding.

    Rows are shuffled, sorted by length within windows, cut into batches, and the batches shuffled: little
    padding, and an order that depends only on the seed and the epoch.
    """

    def __init__(self, lengths: list[int], budget: int, seed: int, window: int = 2048) -> None:
        self.lengths, self.budget, self.seed, self.window = lengths, budget, seed, window
        self.epoch = 0
        self._count = len(self._batches())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[: self._count])

    def _batches(self) -> list[list[int]]:
        rng = random.Random(f"{self.seed}:{self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), self.window):
            batch: list[int] = []
            for index in sorted(order[start : start + self.window], key=lambda row: (self.lengths[row], row)):
                if batch and padded_width(self.lengths[index]) * (len(batch) + 1) > self.budget:
                    batches.append(batch)
                    batch = []
                batch.append(index)
            batches.append(batch)
        rng.shuffle(batches)
        return batches
