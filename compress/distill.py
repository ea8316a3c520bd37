"""Distillation: loss = alpha * CE + (1 - alpha) * T^2 * divergence(teacher, student), over answer tokens.

Here the teacher speaks through its cached soft labels; in `compress.online` it is asked in every step, and
losses on its hidden states and attention are added.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from compress.data.tokens import TokenDataset
from compress.distilling import Distilling
from compress.logits import SoftLabels
from compress.losses import (
    cross_entropy_sum,
    divergence_sum,
    entropy_sum,
    in_chunks,
    sampled_kl_sum,
    top_k_log_probs,
)
from compress.online import OnlineDistillTrainer
from compress.recipe import Distill, Train
from compress.training import AnswerTrainer


class DistillTrainer(Distilling):
    """Learns the labels and the teacher's cached soft labels together."""

    def __init__(self, *args, soft_labels: SoftLabels, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.soft_labels = soft_labels

    def loss_sum(
        self, model: nn.Module, hidden: Tensor, targets: Tensor, mask: Tensor, inputs: dict[str, Tensor]
    ) -> Tensor:
        key, distill, temperature = self.soft_labels.key, self.distill, self.temperature
        labels = tuple(part.to(hidden.device) for part in self.soft_labels.rows(inputs["index"], temperature))

        def sums(rows: Tensor, targets: Tensor, ids: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
            student = model.lm_head(rows)[:, : key.vocab_size]  # type: ignore[operator]
            if key.labels == "sampled":
                divergence = sampled_kl_sum(student, ids, teacher, weights, temperature)
                entropy = -(weights * teacher).sum()
            else:
                classes = top_k_log_probs(student, ids, teacher, temperature)
                divergence = divergence_sum(*classes, distill.objective, distill.beta)
                entropy = entropy_sum(classes[1])
            return torch.stack([cross_entropy_sum(student, targets), divergence, entropy])

        if not len(targets):
            return hidden.sum() * 0.0
        cross_entropy, divergence, entropy = in_chunks(sums, hidden, (targets, *labels))
        noted = {"cross_entropy": cross_entropy, "divergence": divergence, "teacher_entropy": entropy}
        if key.labels == "top_k":
            noted["top_k_mass"] = labels[2].sum()
        self.note(len(targets), **noted)
        return self.alpha * cross_entropy + (1 - self.alpha) * temperature**2 * divergence


def train_student(
    start: Path,
    tokenizer: PreTrainedTokenizerFast,
    dataset: TokenDataset,
    train: Train,
    distill: Distill,
    teacher: SoftLabels | PreTrainedModel | None,
    seed: int,
    out: Path,
    description: str = "student",
) -> None:
    """Train the student that starts at `start`, with a teacher or, without one, on the labels alone.

    Writes `out`/model. A killed run goes on from its newest whole checkpoint.

    Args:
        teacher: its cached soft labels, or the model itself, which is then asked in every step.
        description: what the progress bar calls it.

    Raises:
        RecipeError: a loss names layers or parts that one of the models does not have.
    """
    if (out / "model").is_dir():
        return
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    make_trainer: Callable[..., AnswerTrainer] = AnswerTrainer
    if isinstance(teacher, SoftLabels):
        make_trainer = functools.partial(DistillTrainer, distill=distill, soft_labels=teacher)
    elif teacher is not None:
        make_trainer = functools.partial(OnlineDistillTrainer, distill=distill, teacher=teacher)
    trainer = make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=train,
        dataset=dataset,
        out=out / "checkpoints",
        seed=seed,
        description=description,
    )
    trainer.train_resuming(out / "model")
