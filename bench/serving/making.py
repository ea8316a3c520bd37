"""Checkpoints: the weights of a bundle restored, and random ones of Qwen2.5-0.5B's shape."""

import json
import shutil
import sysconfig
import tempfile
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from bundle.rules import load_catalogue
from compress.assemble import write_bundle
from compress.evaluate import unmeasured
from compress.export.onnx import export_onnx
from compress.recipe import Data, Onnx, Recipe, Teacher

# How Qwen2 cuts text before its merges; other engines know it by the name "qwen2".
QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MERGED_TOKENS = 16_384
_EXAMPLES, _EXAMPLE_TOKENS = 32, 256  # that prompts in 8 bits are calibrated on
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SHAPE = Qwen2Config(  # Qwen2.5-0.5B's
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    bos_token_id=None,
    eos_token_id=_SPECIAL_TOKENS.index("<|im_end|>"),
    pad_token_id=_SPECIAL_TOKENS.index("<|endoftext|>"),
)


def restore(nf4: Path, out: Path) -> None:
    """The weights that NF4 stands for, in bf16: every engine quantises anew what the bundle's own engine serves."""
    config = AutoConfig.from_pretrained(nf4)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(AutoModelForCausalLM.from_pretrained(nf4, device_map="cpu").dequantize().state_dict())
    staged = out.with_name(f"{out.name}.partial")
    model.save_pretrained(staged)
    AutoTokenizer.from_pretrained(nf4).save_pretrained(staged)
    staged.rename(out)


def make_random(folder: Path, name: str) -> None:
    """A checkpoint of random weights, and a bundle of it that holds what a server needs."""
    staged = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    checkpoint = staged / "checkpoint"
    torch.manual_seed(0)
    Qwen2ForCausalLM(_SHAPE).to(torch.bfloat16).save_pretrained(checkpoint)
    PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(checkpoint)
    make_bundle(checkpoint, Onnx(prefill="int8"), name, staged / "bundle")
    staged.rename(folder)


def make_bundle(checkpoint: Path, options: Onnx, name: str, out: Path) -> None:
    """A bundle of a checkpoint with nothing but an ONNX export, calibrated on the standard library."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    examples = [tokenizer.encode(file.read_text()).ids[:_EXAMPLE_TOKENS] for file in _stdlib()[:_EXAMPLES]]
    recipe = Recipe(name=name, data=Data(corpus=["stdlib"]), teacher=Teacher(model=str(checkpoint)))
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        onnx, no_report = Path(scratch) / "onnx", Path(scratch) / "report"
        no_report.mkdir()
        export_onnx(checkpoint, options, onnx, examples)
        exports = {"onnx": (onnx, options.precision)}
        write_bundle(recipe, load_catalogue(), checkpoint, exports, unmeasured(name), no_report, {}, out)


def _tokenizer() -> Tokenizer:
    """Trained on the standard library, and filled up to the vocabulary's size with tokens that no text has."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = NFC()
    cut = Split(Regex(QWEN2_PIECES), "isolated")
    tokenizer.pre_tokenizer = Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=_MERGED_TOKENS,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(file) for file in _stdlib()], trainer)
    # As tokens of the model and not as special ones: of those a tokenizer has dozens, and readers expect no more.
    described = json.loads(tokenizer.to_str())
    unused = range(tokenizer.get_vocab_size(), _SHAPE.vocab_size)
    described["model"]["vocab"] |= {f"<|unused_{number}|>": number for number in unused}
    return Tokenizer.from_str(json.dumps(described))


def _stdlib() -> list[Path]:
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
