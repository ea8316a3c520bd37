"""How fast a distillation step is and what memory it takes, beside plain fine-tuning and beside other toolkits.

    python -m bench.distill                   # a student of 15M parameters, a teacher of four times that
    python -m bench.distill --scale gpu       # 0.5B from 2B, for a GPU

All train the same random weights on the same rows of random tokens, each in a process of its own: the same optimiser,
the same precision, no generation. A toolkit that is not installed is named as absent.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback

from bench.peak import forget_peak, peak
from bench.rows import RandomRows, plain_tokenizer
from compress.console import quiet_libraries
from compress.data.batches import collate
from compress.distill import DistillTrainer
from compress.logits import SoftLabels, soft_label_key, write_soft_labels
from compress.online import OnlineDistillTrainer
from compress.recipe import Distill, Train
from compress.throughput import Throughput
from compress.training import AnswerTrainer, training_arguments

Shape = dict[str, Any]
SCALES: dict[str, tuple[Shape, Shape, int, int]] = {  # student, teacher, vocabulary, tokens of an example
    "cpu": (
        {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4},
        {"hidden_size": 640, "intermediate_size": 1920, "num_hidden_layers": 8, "num_attention_heads": 10},
        32768,
        128,
    ),
    "gpu": (
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 16},
        151936,
        1024,
    ),
}
WARM_UP = 3  # steps that are not timed


class Work:
    """What every contender is given."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.folder)
        self.tokenizer = plain_tokenizer(SCALES[options.scale][2])
        self.rows = RandomRows(
            count=options.batch * (options.steps + WARM_UP),
            length=SCALES[options.scale][3],
            answer=max(int(SCALES[options.scale][3] * options.answer_share), 1),
            vocabulary=len(self.tokenizer),
        )
        self.train = Train(
            max_steps=options.steps + WARM_UP, per_device_train_batch_size=options.batch, save_steps=10**6
        )

    def model(self, name: str) -> Any:
        """The student in float32, the teacher in bf16."""
        dtype = torch.float32 if name == "student" else torch.bfloat16
        return AutoModelForCausalLM.from_pretrained(self.folder / name, dtype=dtype)

    def ours(self, kind: type[AnswerTrainer], **more: Any) -> AnswerTrainer:
        common: dict[str, Any] = {
            "tokenizer": self.tokenizer,
            "dataset": self.rows,
            "out": self.folder / "out",
            "seed": 1,
        }
        return kind(model=self.model("student"), train=self.train, description="step", **common, **more)

    def labels(self, distill: Distill) -> SoftLabels:
        folder = self.folder / f"labels-{distill.labels}"
        return SoftLabels(folder, soft_label_key(self.rows, self.folder / "teacher", distill, len(self.tokenizer)))

    def theirs(self, **more: Any) -> Any:
        """Arguments of a Trainer of transformers' kind: what ours has."""
        arguments = training_arguments(self.train, self.folder / "out", 1, **more)
        arguments.include_num_input_tokens_seen = "no"

        def batch(rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
            laid_out = collate([self.rows[row["place"]] for row in rows], self.tokenizer.pad_token_id)
            return {name: laid_out[name] for name in ("input_ids", "attention_mask", "labels")}

        places = Dataset.from_dict({"place": list(range(len(self.rows)))})
        return {"args": arguments, "train_dataset": places, "data_collator": batch}


def plain(work: Work) -> Trainer:
    return Trainer(model=work.model("student"), **work.theirs())


def ours_plain(work: Work) -> Trainer:
    return work.ours(AnswerTrainer)


def ours_cached(work: Work) -> Trainer:
    distill = Distill(temperature=2.0)
    return work.ours(DistillTrainer, distill=distill, soft_labels=work.labels(distill))


def ours_sampled(work: Work) -> Trainer:
    distill = Distill(temperature=2.0, labels="sampled")
    return work.ours(DistillTrainer, distill=distill, soft_labels=work.labels(distill))


def ours_online(work: Work) -> Trainer:
    return work.ours(
        OnlineDistillTrainer, distill=Distill(teacher="online", temperature=2.0), teacher=work.model("teacher")
    )


def trl(work: Work) -> Trainer:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    more = {"kind": GKDConfig, "lmbda": 0.0, "beta": 0.0, "temperature": 2.0, "max_length": None}
    models = {"model": work.model("student"), "teacher_model": work.model("teacher")}
    return GKDTrainer(**models, processing_class=work.tokenizer, **work.theirs(**more))


def model_optimizer(work: Work) -> Trainer:
    from modelopt.torch.distill.plugins.huggingface import KDTrainer

    asked = {"teacher_model": work.model("teacher"), "temperature": 2.0}
    return KDTrainer(model=work.model("student"), distill_args=asked, **work.theirs())


CONTENDERS: dict[str, tuple[Callable[[Work], Trainer], str]] = {
    "transformers Trainer, cross-entropy": (plain, "transformers"),
    "ours, cross-entropy": (ours_plain, "compress"),
    "ours, cached top-k": (ours_cached, "compress"),
    "ours, cached samples": (ours_sampled, "compress"),
    "ours, online teacher": (ours_online, "compress"),
    "TRL GKDTrainer, lmbda=0": (trl, "trl"),
    "NVIDIA Model-Optimizer KDTrainer": (model_optimizer, "modelopt"),
}


class _Clock(TrainerCallback):
    """When each optimiser step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure(name: str, work: Work) -> dict[str, float]:
    """Tokens a second after the warm-up, and the memory training took beyond models that were just loaded."""
    trainer = CONTENDERS[name][0](work)
    trainer.remove_callback(Throughput)  # it multiplies large matrices at the end
    clock = _Clock()
    trainer.add_callback(clock)
    gc.collect()
    before = forget_peak()
    trainer.train()
    tokens = work.options.batch * work.options.steps * work.rows.length
    return {
        "tokens_per_second": tokens / (clock.ends[-1] - clock.ends[WARM_UP - 1]),
        "models": before,
        "training": peak() - before,
    }


def prepare(options: argparse.Namespace) -> tuple[int, int]:
    """Random models and the teacher's soft labels in the working folder; parameters of student and teacher."""
    sizes = []
    for name, shape in zip(("student", "teacher"), SCALES[options.scale][:2], strict=True):
        torch.manual_seed(1)
        config = Qwen2Config(
            vocab_size=SCALES[options.scale][2], num_key_value_heads=2, tie_word_embeddings=True, **shape
        )
        model = Qwen2ForCausalLM(config)
        sizes.append(model.num_parameters())
        model.bfloat16().save_pretrained(Path(options.folder) / name)
    work = Work(options)
    work.tokenizer.save_pretrained(work.folder / "teacher")
    teacher = work.model("teacher").to("cuda" if torch.cuda.is_available() else "cpu")
    for distill in (Distill(temperature=2.0), Distill(temperature=2.0, labels="sampled")):
        key = soft_label_key(work.rows, work.folder / "teacher", distill, len(work.tokenizer))
        write_soft_labels(
            teacher, work.rows, key, work.tokenizer.pad_token_id, work.folder / f"labels-{distill.labels}"
        )
    return sizes[0], sizes[1]


def compare(options: argparse.Namespace, console: Console) -> None:
    """All contenders one after another, and the table."""
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        student, teacher = prepare(options)
        gc.collect()
        table = Table(title=f"{student / 1e6:.0f}M from {teacher / 1e6:.0f}M parameters, {options.scale}")
        for column in ("", "tokens/s", "time of a step", "models, MB", "training's peak, MB"):
            table.add_column(column, justify="left" if not column else "right")
        slowest: float | None = None
        for name, (_, module) in CONTENDERS.items():
            if find_spec(module) is None:
                table.add_row(name, "absent: not installed", "", "", "")
                continue
            found = _in_own_process(name, options, console)
            if found is None:
                table.add_row(name, "failed, see above", "", "", "")
                continue
            slowest = slowest or found["tokens_per_second"]
            speed, models, training = found["tokens_per_second"], found["models"] / 1e6, found["training"] / 1e6
            table.add_row(name, f"{speed:,.0f}", f"{slowest / speed:.2f}x", f"{models:,.0f}", f"{training:,.0f}")
        console.print(table)


def _in_own_process(name: str, options: argparse.Namespace, console: Console) -> dict[str, float] | None:
    command = [sys.executable, "-m", "bench.distill", "--only", name, "--folder", options.folder, *_same(options)]
    with console.status(name):
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        console.print(f"{name}: {result.stderr[-2000:]}", markup=False)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def _same(options: argparse.Namespace) -> list[str]:
    names = ("scale", "steps", "batch", "answer_share")
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(vars(options)[name]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--steps", type=int, default=10, help="timed optimiser steps")
    parser.add_argument("--batch", type=int, default=8, help="examples to a step")
    parser.add_argument("--answer-share", type=float, default=0.15, help="of an example's tokens")
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.only:
        print(json.dumps(measure(options.only, Work(options))))
    else:
        compare(options, Console(width=120))


if __name__ == "__main__":
    main()
