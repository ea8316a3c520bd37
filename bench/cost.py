"""What distilling 7B into 1.5B costs on paper, and the same arithmetic beside a run that was made.

python -m bench.cost                      # Qwen2.5 7B into 1.5B on a billion tokens
python -m bench.cost --run runs/nano      # predicted and measured, for a finished run
"""

import argparse
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, Qwen2Config

from compress.cost import Size, Tokens, forward_flops, label_bytes, training_flops
from compress.recipe import Distill, Recipe
from compress.training_log import TRAINING_LOG

# As Qwen published them.
_TEACHER: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
_STUDENT: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def on_paper(options: argparse.Namespace) -> Table:
    """Each way to ask the teacher: FLOPs, GPU hours and bytes on disk."""
    teacher, student = (Size.of(Qwen2Config(**shape)) for shape in (_TEACHER, _STUDENT))
    tokens = Tokens(options.tokens, options.tokens * options.answer_share, options.length)
    training = options.epochs * training_flops(student, tokens, gradient_checkpointing=True)
    reading = forward_flops(teacher, tokens)
    ways = [
        ("labels only", 0.0, 0.0),
        ("cached, top 64 at one T", reading, tokens.answer * label_bytes(Distill(top_k=64))),
        ("cached, 64 sampled", reading, tokens.answer * label_bytes(Distill(labels="sampled", samples=64))),
        ("cached, every logit in 16 bits", reading, tokens.answer * 2 * _STUDENT["vocab_size"]),
        ("online", options.epochs * reading, 0.0),
    ]
    table = Table(
        title=f"{teacher.parameters / 1e9:.2f}B into {student.parameters / 1e9:.2f}B: {options.epochs:g} epoch(s) of "
        f"{options.tokens:.0e} tokens, {options.answer_share:.0%} of them answers; GPUs of {options.tflops:g} TFLOP/s "
        f"used to {options.utilisation:.0%}",
        title_justify="left",
    )
    for name in ("the teacher is", "teacher FLOP", "student FLOP", "GPU hours", "on disk"):
        table.add_column(name, justify="left" if name == "the teacher is" else "right")
    for name, asked, stored in ways:
        hours = (asked + training) / (options.tflops * 1e12 * options.utilisation) / 3600
        table.add_row(name, f"{asked:.2e}", f"{training:.2e}", f"{hours:,.0f}", f"{stored / 1e9:,.1f} GB")
    return table


class _Done(msgspec.Struct):
    seconds: float


def beside(run: Path) -> Table:
    """What the arithmetic says about a finished run with cached labels, and what the run took."""
    recipe = _recipe_of(run)
    teacher_folder, student_folder = run / "teacher" / "model", run / "distill" / "model"
    teacher, student = (Size.of(AutoConfig.from_pretrained(folder)) for folder in (teacher_folder, student_folder))
    history = msgspec.json.decode((student_folder / TRAINING_LOG).read_bytes())
    ended = history["log_history"][-2]
    shards = list((run / "logits" / "labels").glob("shard-*.npy"))
    stored = sum(file.stat().st_size for file in shards)
    offsets = np.load(run / "logits" / "labels" / "offsets.npy")
    answers, examples = int(offsets[-1]), len(offsets) - 1
    epochs, seen = history["epoch"], history["num_input_tokens_seen"]
    tokens = Tokens(seen / epochs, answers, seen / epochs / examples)
    training = epochs * training_flops(student, tokens, recipe.train.gradient_checkpointing)
    reading = forward_flops(teacher, tokens)
    asked = msgspec.json.decode((run / "stages" / "logits.done.json").read_bytes(), type=_Done).seconds
    table = Table(title=f"{recipe.name}: predicted and measured", title_justify="left")
    for name in ("", "predicted", "measured"):
        table.add_column(name, justify="left" if not name else "right")
    predicted = answers * label_bytes(recipe.distill)
    table.add_row("soft labels, bytes", f"{predicted:,}", f"{stored:,}")
    table.add_row("tokens in one epoch", f"{tokens.all:,.0f}", "")
    table.add_row("training, FLOP (transformers' own count)", f"{training:.2e}", f"{ended['total_flos']:.2e}")
    rate = training / ended["train_runtime"]
    table.add_row("training, seconds", "", f"{ended['train_runtime']:.0f} ({rate / 1e9:,.0f} GFLOP/s)")
    table.add_row("soft labels, FLOP", f"{reading:.2e}", "")
    table.add_row("soft labels, seconds at the training's rate", f"{reading / rate:.0f}", f"{asked:.0f}")
    return table


def _recipe_of(run: Path) -> Recipe:
    manifest = msgspec.json.decode((run / "bundle" / "manifest.json").read_bytes())
    return msgspec.convert(manifest["lineage"]["recipe"], Recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run's folder")
    parser.add_argument("--tokens", type=float, default=1e9, help="prompts and answers, once through")
    parser.add_argument("--answer-share", type=float, default=0.15, help="of the tokens")
    parser.add_argument("--length", type=float, default=512, help="mean tokens of an example")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--tflops", type=float, default=989.0, help="of one GPU in bf16, as its maker says")
    parser.add_argument("--utilisation", type=float, default=0.4, help="of that, reached")
    options = parser.parse_args()
    Console(width=140).print(beside(options.run) if options.run else on_paper(options))


if __name__ == "__main__":
    main()
