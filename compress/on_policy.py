"""On-policy distillation: the student writes, and learns what the teacher would have written at every token of it.

Off-policy the student only sees prefixes that others wrote, and never its own mistakes (GKD, 2306.13649). So this
comes after distilling, when the student's answers are worth judging. TRL's DistillationTrainer does the work; what is
ours is that prompts are the token ids the student is served with, and that both models speak over one vocabulary.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback
from trl import DistillationConfig, DistillationTrainer

from compress.data.tokens import TokenDataset, load_tokenizer
from compress.mishaps import TRAINING_KNOBS, memory_advice
from compress.recipe import OnPolicy
from compress.training import ProgressBar, events_in, last_whole_checkpoint, training_arguments
from compress.training_log import TRAINING_LOG


class OnPolicyTrainer(DistillationTrainer):
    """TRL's trainer over prompts that are token ids already: code that spells a special token must not become it."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict]:
        return prompts, None, {}


def train_on_policy(
    student: Path, teacher: Path, dataset: TokenDataset, options: OnPolicy, seed: int, out: Path
) -> None:
    """Train the checkpoint `student` on its own answers, judged by the checkpoint `teacher`, and write `out`/model.

    A killed run goes on from its newest whole checkpoint.

    Args:
        dataset: only its prompts are used.

    Raises:
        StageError: memory ran out.
    """
    if (out / "model").is_dir():
        return
    tokenizer = load_tokenizer(student)
    trainer = OnPolicyTrainer(
        model=_over(tokenizer, AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)),
        teacher_model=_over(tokenizer, AutoModelForCausalLM.from_pretrained(teacher, dtype="auto")),
        args=_configuration(options, seed, out / "checkpoints"),
        train_dataset=_Prompts(dataset),
        processing_class=tokenizer,
        callbacks=[ProgressBar("student, on-policy"), events_in(out / "checkpoints" / "events")],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    with memory_advice("on-policy distillation", TRAINING_KNOBS):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    staged = out / "model.partial"
    shutil.rmtree(staged, ignore_errors=True)
    trained: Any = trainer.model
    trained.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    trainer.state.save_to_json(str(staged / TRAINING_LOG))
    staged.rename(out / "model")


class _Prompts(Dataset):
    """The prompts of tokenised examples, as TRL reads them."""

    def __init__(self, dataset: TokenDataset) -> None:
        # Draws of one unit that differ in their labels alone ask the same.
        prompts = dict.fromkeys(tuple(row.ids[: row.answer_start]) for row in dataset.rows)
        self.prompts = [list(ids) for ids in prompts]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        return {"prompt": self.prompts[place]}


def _configuration(options: OnPolicy, seed: int, out: Path) -> DistillationConfig:
    """The recipe's `train` in TRL's terms. Its loss is already a sum over the answer tokens of the whole window."""
    arguments = training_arguments(
        options.train,
        out,
        seed,
        DistillationConfig,
        temperature=options.temperature,
        beta=options.beta,
        max_completion_length=options.max_answer_tokens,
    )
    arguments.include_num_input_tokens_seen = "no"  # TRL counts, once the answers are there
    return arguments


def _over(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> PreTrainedModel:
    """The model without the logits that pad its vocabulary: families pad differently, and padding means nothing."""
    if model.config.vocab_size != len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    return model
