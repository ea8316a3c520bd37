"""A real bundle of a few hundred kilobytes: random weights, but every part of it is what compress makes.

The student is a random Qwen2, so its answers mean nothing; everything around them (grammar, KV slots,
spans, checks) must hold for any answer, and this one gives all kinds.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import bundle
from bundle.answer import BETWEEN_FINDINGS, CLOSING, CLOSING_FINDINGS, OPENING, answer_schema
from bundle.manifest import (
    PROMPT_FILE,
    RULES_FILE,
    SCHEMA_FILE,
    SCHEMA_VERSION,
    TOKENIZER_FILE,
    Export,
    Manifest,
    ModelShape,
    describe_files,
    weights_sha256,
    write_manifest,
)
from bundle.rules import CATALOGUE_FILE, load_catalogue

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


def make_tiny_checkpoint(folder: Path, seed: int = 0) -> None:
    """A random Qwen2 checkpoint beside its tokenizer. `seed` decides the weights."""
    tokenizer = make_tiny_tokenizer()
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
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


def export_onnx(checkpoint: Path, folder: Path, precision: str) -> None:
    """Build `folder`/model.onnx from a checkpoint with KV cache inputs; `precision` is "int4" or "fp32"."""
    cache = folder.with_name(f"{folder.name}.cache")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "tiny", "-i", str(checkpoint)]
    command += ["-o", str(folder), "-p", precision, "-e", "cpu", "-c", str(cache)]
    command += ["--extra_options", "prune_lm_head=true"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the ONNX builder failed:\n{done.stdout}\n{done.stderr}")
    shutil.rmtree(cache, ignore_errors=True)
    for file in folder.iterdir():
        if not file.name.startswith("model.onnx"):
            file.unlink()


def make_tiny_bundle(checkpoint: Path, folder: Path, precision: str = "int4") -> Path:
    """Write a bundle of `checkpoint` with one ONNX export of `precision`. Returns the bundle's folder."""
    folder.mkdir(parents=True)
    export_onnx(checkpoint, folder / "onnx", precision)
    catalogue = load_catalogue()
    shutil.copy(checkpoint / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    shutil.copy(Path(bundle.__file__).parent / "templates" / "compact.jinja", folder / PROMPT_FILE)
    shutil.copy(CATALOGUE_FILE, folder / RULES_FILE)
    (folder / SCHEMA_FILE).write_bytes(msgspec.json.encode(answer_schema(catalogue.ids, lines=1)))
    config = Qwen2Config.from_pretrained(checkpoint)
    files = describe_files(folder)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="tiny",
        language=catalogue.language,
        context_length=CONTEXT_LENGTH,
        eos_token_ids=(config.eos_token_id,),
        model=ModelShape(
            architecture="Qwen2ForCausalLM",
            parameters=sum(p.numel() for p in Qwen2ForCausalLM.from_pretrained(checkpoint).parameters()),
            vocab_size=config.vocab_size,
            layers=config.num_hidden_layers,
            kv_heads=config.num_key_value_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
        ),
        exports={"onnx": Export(path="onnx", quantization=precision)},
        weights_sha256=weights_sha256(files, "onnx"),
        thresholds={},
        lineage={},
        scores={},
        files=files,
    )
    write_manifest(folder, manifest)
    return folder
