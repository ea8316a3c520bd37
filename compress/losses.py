"""The losses of distillation: pure functions, sums over tokens.

Every function returns a *sum* over the N rows it is given. The caller divides once by the number of
valid tokens of the whole accumulation window (all micro-batches, all ranks), so that cutting a batch
into micro-batches changes nothing. Rows are positions that predict a valid token: position t of the
logits belongs with the label at t + 1 (`predicting_positions`), for cross-entropy and divergence alike.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100


def predicting_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions predict a valid label, and those labels.

    Args:
        labels: int64 [B, S]; IGNORED where nothing is to be learnt.

    Returns:
        mask: bool [B, S], True at t where labels[t + 1] is valid (never at the last position);
        targets: int64 [N], the labels those positions predict, in row-major order.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    return mask, labels[:, 1:][mask[:, :-1]]


def cross_entropy_sum(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of -log p(target) at temperature 1, in float32.

    Args:
        logits: [N, V]; targets: int64 [N]; weights: float [N], one factor a row.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return losses.sum() if weights is None else (losses * weights).sum()


def kl_sum(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Sum of T² · KL(teacher_T ‖ student_T) over full vocabularies (Hinton et al., 2015, section 2.1).

    T² keeps the gradient's size about constant over T. It belongs to this term only.

    Args:
        student_logits, teacher_logits: [N, V] over the same V tokens.

    Raises:
        ValueError: the vocabularies differ in size; slice both to len(tokenizer) first.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} "
            "must cover the same tokens; slice both to len(tokenizer) before the softmax"
        )
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def top_k_kl_sum(
    student_logits: Tensor,
    top_ids: Tensor,
    top_logits: Tensor,
    logsumexp: Tensor,
    temperature: float,
) -> Tensor:
    """Sum of T² · KL between k + 1 classes: the teacher's k likeliest tokens, and all others as one.

    The tail bucket closes the distribution, so the teacher's probabilities need no renormalising and the
    student learns how much mass the tail deserves. It is a lower bound of the full divergence, and equal
    to it when k covers the vocabulary but one.

    Args:
        student_logits: [N, V]. top_ids: int64 [N, k]. top_logits: raw teacher logits [N, k].
        logsumexp: float32 [N], of the teacher's logits *at this temperature*: logsumexp(z / T). Top-k
            values taken at another temperature can not be re-tempered.
    """
    student_logits = student_logits.float() / temperature
    student_normaliser = student_logits.logsumexp(dim=-1, keepdim=True)
    student_top = student_logits.gather(-1, top_ids) - student_normaliser
    teacher_top = top_logits.float() / temperature - logsumexp.unsqueeze(-1)
    top_term = (teacher_top.exp() * (teacher_top - student_top)).sum()

    teacher_tail = (1.0 - teacher_top.exp().sum(-1)).clamp_min(0.0)
    # Masked before the logsumexp, never after: -inf - -inf would be NaN in the backward pass.
    rest = student_logits.scatter(-1, top_ids, torch.finfo(student_logits.dtype).min)
    student_tail = rest.logsumexp(dim=-1) - student_normaliser.squeeze(-1)
    tail_term = torch.xlogy(teacher_tail, teacher_tail) - teacher_tail * student_tail
    return temperature**2 * (top_term + tail_term.sum())


def in_chunks(loss: Callable[..., Tensor], hidden: Tensor, rows: tuple[Tensor, ...], chunk: int = 1024) -> Tensor:
    """Sum `loss(hidden_chunk, *row_chunks)` over chunks of rows, recomputing each chunk's logits backwards.

    With a `loss` that starts by projecting hidden states to logits, no more than [chunk, V] logits exist
    at a time, forward or backward.

    Args:
        hidden: [N, H]; rows: tensors whose first dimension is N.
    """
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, hidden.shape[0], chunk):
        parts = [tensor[start : start + chunk] for tensor in rows]
        total = total + checkpoint(loss, hidden[start : start + chunk], *parts, use_reentrant=False)
    return total


def alpha_at(step: int, total_steps: int, alpha: float, schedule: list[float] | None) -> float:
    """The weight of cross-entropy at an optimiser step: constant, or one value for each equal span of steps."""
    if schedule is None:
        return alpha
    return schedule[min(step * len(schedule) // max(total_steps, 1), len(schedule) - 1)]
