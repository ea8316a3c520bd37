"""Distillation: loss = alpha * CE + (1 - alpha) * T^2 * KL(teacher || student), over answer tokens."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from compress.data.tokens import TokenDataset
from compress.logits import SoftLabels
from compress.losses import alpha_at, cross_entropy_sum, in_chunks, top_k_kl_sum
from compress.recipe import Distill, Train
from compress.training import AnswerTrainer


class DistillTrainer(AnswerTrainer):
    """Learns the labels and the teacher's cached soft labels together."""

    def __init__(self, *args, distill: Distill, soft_labels: SoftLabels, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.distill, self.soft_labels = distill, soft_labels

    def loss_sum(
        self, model: nn.Module, hidden: Tensor, targets: Tensor, mask: Tensor, inputs: dict[str, Tensor]
    ) -> Tensor:
        step, steps = self.state.global_step, self.state.max_steps
        alpha = alpha_at(step, steps, self.distill.alpha, self.distill.alpha_schedule)
        top_ids, top_logits, logsumexp = (part.to(hidden.device) for part in self.soft_labels.rows(inputs["index"]))
        vocabulary = self.soft_labels.key.vocab_size

        def loss(rows: Tensor, labels: Tensor, ids: Tensor, logits: Tensor, normaliser: Tensor) -> Tensor:
            student = model.lm_head(rows)[:, :vocabulary]  # type: ignore[operator]
            divergence = top_k_kl_sum(student, ids, logits, normaliser, self.distill.temperature)
            return alpha * cross_entropy_sum(student, labels) + (1 - alpha) * divergence

        return in_chunks(loss, hidden, (targets, top_ids, top_logits, logsumexp))

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            schedule = self.distill.alpha_schedule
            logs["alpha"] = alpha_at(self.state.global_step, self.state.max_steps, self.distill.alpha, schedule)
        super().log(logs, *args, **kwargs)


def train_student(
    start: Path,
    tokenizer: PreTrainedTokenizerFast,
    dataset: TokenDataset,
    train: Train,
    distill: Distill,
    soft_labels: SoftLabels | None,
    seed: int,
    out: Path,
) -> None:
    """Train the student that starts at `start`, with soft labels or, without them, on the labels alone.

    Writes `out`/model. A killed run goes on from its newest whole checkpoint.
    """
    if (out / "model").is_dir():
        return
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    make_trainer: Callable[..., AnswerTrainer] = AnswerTrainer
    if soft_labels is not None:
        make_trainer = functools.partial(DistillTrainer, distill=distill, soft_labels=soft_labels)
    trainer = make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=train,
        dataset=dataset,
        out=out / "checkpoints",
        seed=seed,
        description="student" if soft_labels is not None else "student, labels only",
    )
    trainer.train_resuming(out / "model")
