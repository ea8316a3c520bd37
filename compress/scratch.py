"""A Qwen2 model and its tokenizer from nothing, for a teacher that needs no hub."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from bundle.answer import CLOSING, CLOSING_FINDINGS, OPENING
from bundle.rules import Catalogue
from compress.recipe import Scratch, Shape

PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Words with one leading character, numbers of up to three digits, punctuation with its line end,
# indentation: as GPT-4's tokenizer splits, which keeps a line number one token and an indent one token.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LINE_NUMBERS = 200


def answer_tokens(catalogue: Catalogue) -> list[str]:
    """Pieces of an answer that always occur whole. As single tokens they make "clean, or which rule" one
    choice, and leave little of an answer to be decoded."""
    pieces = [OPENING, CLOSING_FINDINGS, ',"at":"', '","fix":"', '","fix":null}', '"},', CLOSING]
    return pieces + [_rule_token(rule) for rule in catalogue.ids]


class AnswerParts(NamedTuple):
    """What the tokens of a vocabulary of V mean to a prompt and an answer."""

    rules: torch.Tensor  # int64 [rules]: ids that open a finding of each rule
    closing: int  # the id that closes the findings
    newline: torch.Tensor  # bool [V]: ends a line of the prompt
    number: torch.Tensor  # int64 [V]: the line number a token spells, 0 where it spells none


def answer_parts(tokenizer: PreTrainedTokenizerFast, catalogue: Catalogue) -> AnswerParts:
    """The parts in a tokenizer that `train_tokenizer` made."""
    opening = [_rule_token(rule) for rule in catalogue.ids]
    texts = [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
    return AnswerParts(
        rules=torch.tensor(tokenizer.convert_tokens_to_ids(opening)),
        closing=tokenizer.get_vocab()[CLOSING_FINDINGS],
        newline=torch.tensor([text.endswith("\n") for text in texts]),
        number=torch.tensor([int(text) if text.isascii() and text.isdigit() else 0 for text in texts]),
    )


def _rule_token(rule: str) -> str:
    return f'{{"rule":"{rule}","line":'


def train_tokenizer(texts: Iterable[str], vocab_size: int, catalogue: Catalogue) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab_size` tokens, line numbers and answer pieces included.

    PAD and EOS are different tokens, so that EOS is never masked away with the padding.
    """
    pieces = answer_tokens(catalogue)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(pieces) - _LINE_NUMBERS,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    known = tokenizer.get_vocab()
    numbers = [str(n) for n in range(1, 10 * _LINE_NUMBERS) if str(n) not in known]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    room = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(n, normalized=False, single_word=True) for n in numbers[:room]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        bos_token=None,
        clean_up_tokenization_spaces=False,
    )


def make_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 decoder over exactly the tokenizer's vocabulary, with tied embeddings."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def make_teacher(
    scratch: Scratch, texts: Iterable[str], catalogue: Catalogue, seed: int
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """Tokenizer and untrained model of a recipe's `teacher.scratch`."""
    tokenizer = train_tokenizer(texts, scratch.vocab_size, catalogue)
    return make_model(scratch, tokenizer, seed), tokenizer
