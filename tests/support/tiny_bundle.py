"""A real bundle of a few hundred kilobytes: random weights, but every part of it is what compress makes.

The student is a random Qwen2, so its answers mean nothing; everything around them (grammar, KV slots,
spans, checks) must hold for any answer, and this one gives all kinds.
"""

import json
import tempfile
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from bundle.answer import BETWEEN_FINDINGS, CLOSING, CLOSING_FINDINGS, OPENING
from bundle.rules import load_catalogue
from compress.assemble import write_bundle
from compress.evaluate import unmeasured
from compress.export.onnx import export_onnx, export_onnx_for_cuda
from compress.recipe import Cuda, Data, Onnx, Recipe, Teacher

Precision = Literal["int4", "int8", "fp32"]
CONTEXT_LENGTH = 1024
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of a student's shape: special tokens, and whole answer parts as single tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    package = Path(json.__file__).parent  # no text of ours: a change of it would change every answer
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(file) for file in sorted(package.glob("*.py"))], trainer)
    openings = [f'{{"rule":"{rule}","line":' for rule in load_catalogue().ids]
    parts = [OPENING, BETWEEN_FINDINGS, CLOSING_FINDINGS, CLOSING, ',"at":"', '","fix":"', *openings]
    tokenizer.add_tokens(parts)
    return tokenizer


def make_tiny_checkpoint(folder: Path, seed: int = 0, heads: int = 4) -> None:
    """A random Qwen2 checkpoint beside its tokenizer. `seed` decides the weights; `heads` are 64 wide together."""
    tokenizer = make_tiny_tokenizer()
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.3,  # far from uniform, so that greedy decoding has clear winners
        bos_token_id=tokenizer.token_to_id("<|endoftext|>"),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)


def make_tiny_bundle(checkpoint: Path, folder: Path, precision: Precision = "int4", for_cuda: bool = False) -> Path:
    """Write a bundle of `checkpoint` with one ONNX export of `precision`. Returns the bundle's folder.

    With 4 bits it has a graph of its own for prompts. With `for_cuda` the graph for GPUs is in its place, which a CPU
    computes in 16 bits as well.
    """
    random = torch.Generator().manual_seed(0)
    examples = torch.randint(len(SPECIAL_TOKENS), 500, (32, 100), generator=random).tolist()
    options = Onnx(precision=precision, prefill="int8" if precision == "int4" else None)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        export, no_report = Path(scratch) / "onnx", Path(scratch) / "report"
        if for_cuda:
            export_onnx_for_cuda(checkpoint, Cuda(), export)
        else:
            export_onnx(checkpoint, options, export, examples)
        no_report.mkdir()
        recipe = Recipe(name="tiny", data=Data(corpus=("stdlib",)), teacher=Teacher(model=str(checkpoint)))
        exports = {"onnx": (export, precision)}
        write_bundle(recipe, load_catalogue(), checkpoint, exports, unmeasured(recipe.name), no_report, {}, folder)
    return folder
