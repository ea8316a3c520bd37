"""Rows of random tokens and a tokenizer for them: data whose only property is its size."""

import random

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from compress.data.tokens import TokenDataset, Tokens


def plain_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly so many tokens."""
    words = {"<pad>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


class RandomRows(TokenDataset):
    """Examples of one length, without padding, the same each time."""

    def __init__(self, count: int, length: int, answer: int, vocabulary: int) -> None:
        rng = random.Random(0)
        self.length, self.max_tokens, self.too_long = length, length, []
        self.rows = [
            Tokens([rng.randrange(2, vocabulary) for _ in range(length)], answer_start=length - answer)
            for _ in range(count)
        ]
        self.lengths = [length] * count
