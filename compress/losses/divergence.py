"""How far the student's distribution over the next token is from the teacher's.

Distributions are log-probabilities [N, C] over the same C classes: the whole vocabulary, or the k tokens
that a cache kept and all others as one class.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Literal["forward_kl", "reverse_kl", "jsd", "mse"]

# A teacher that bans a token gives it -inf, and 0 * -inf is NaN in the backward pass. At any usual temperature
# a softmax cannot tell this floor from it.
_LOGIT_FLOOR = -1e4
_SMALLEST_TAIL = torch.finfo(torch.float32).eps


def tempered_log_probs(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / T) in float32: [N, V] -> [N, V]."""
    return F.log_softmax(logits.float().clamp_min(_LOGIT_FLOOR) / temperature, dim=-1)


def divergence_sum(student: Tensor, teacher: Tensor, objective: Objective = "forward_kl", beta: float = 0.5) -> Tensor:
    """Sum over rows of a divergence between teacher p and student q.

    forward_kl: KL(p ‖ q). reverse_kl: KL(q ‖ p). jsd: beta · KL(p ‖ m) + (1 - beta) · KL(q ‖ m) with
    m = beta · p + (1 - beta) · q, the generalised Jensen-Shannon divergence (GKD, 2306.13649, equation 1);
    divided by beta it tends to forward KL at beta -> 0, divided by 1 - beta to reverse KL at beta -> 1.

    With distributions softened by T the caller multiplies by T² (Hinton et al., 2015, section 2.1), which
    keeps the gradient's size about constant over T.

    Args:
        student, teacher: log-probabilities [N, C].

    Raises:
        ValueError: the distributions are over different tokens, or `objective` compares no distributions (mse).
    """
    _require_same_tokens(student, teacher)
    if objective == "forward_kl":
        return F.kl_div(student, teacher, reduction="sum", log_target=True)
    if objective == "reverse_kl":
        return F.kl_div(teacher, student, reduction="sum", log_target=True)
    if objective == "jsd":
        mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
        of_teacher = F.kl_div(mixture, teacher, reduction="sum", log_target=True)
        of_student = F.kl_div(mixture, student, reduction="sum", log_target=True)
        return beta * of_teacher + (1 - beta) * of_student
    raise ValueError(f"{objective} does not compare distributions; use logit_mse_sum on raw logits")


def logit_mse_sum(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Sum over rows of the mean over tokens of (student - teacher)², raw logits [N, V] (Ba & Caruana, 2014).

    Raises:
        ValueError: the vocabularies differ in size.
    """
    _require_same_tokens(student_logits, teacher_logits)
    teacher_logits = teacher_logits.float().clamp_min(_LOGIT_FLOOR)
    return (student_logits.float().clamp_min(_LOGIT_FLOOR) - teacher_logits).square().mean(-1).sum()


def top_k_log_probs(
    student_logits: Tensor, top_ids: Tensor, teacher_top: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Student and teacher as distributions over k + 1 classes: the k tokens a cache kept, and all others as one.

    The tail class closes the distribution, so the teacher's probabilities need no renormalising and the
    student learns how much mass the tail deserves. Any f-divergence between these classes is a lower bound
    of the full one, and equal to it when k covers the vocabulary but one.

    Args:
        student_logits: [N, V]. top_ids: int64 [N, k], k < V.
        teacher_top: log-probabilities [N, k] of those tokens *at this temperature*, under the teacher's
            softmax over the whole vocabulary. Those of another temperature cannot be re-tempered.

    Returns:
        Log-probabilities [N, k + 1] of the student and of the teacher, float32.
    """
    softened = student_logits.float().clamp_min(_LOGIT_FLOOR) / temperature
    normaliser = softened.logsumexp(dim=-1, keepdim=True)
    rest = softened.scatter(-1, top_ids, torch.finfo(softened.dtype).min)
    student = torch.cat([softened.gather(-1, top_ids), rest.logsumexp(dim=-1, keepdim=True)], dim=-1) - normaliser
    teacher_top = teacher_top.float()
    tail = (1.0 - teacher_top.exp().sum(-1, keepdim=True)).clamp_min(_SMALLEST_TAIL)
    return student, torch.cat([teacher_top, tail.log()], dim=-1)


def sampled_kl_sum(student_logits: Tensor, ids: Tensor, teacher: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Sum over rows of an unbiased estimate of KL(teacher ‖ student), from tokens drawn at random.

    Random sampling knowledge distillation (Sparse Logit Sampling, 2503.16870): with tokens drawn from a
    proposal and weighted by p / proposal, the mean of weight · (log p - log q) is the divergence and its
    gradient the divergence's gradient, at any number of draws. The likeliest k tokens alone give neither.

    Args:
        student_logits: [N, V]. ids: int64 [N, m], drawn with replacement, so a token may be there twice.
        teacher: log p [N, m] of those tokens at this temperature.
        weights: p / (m · proposal) [N, m].
    """
    softened = student_logits.float().clamp_min(_LOGIT_FLOOR) / temperature
    student = softened.gather(-1, ids) - softened.logsumexp(dim=-1, keepdim=True)
    return (weights * (teacher - student)).sum()


def entropy_sum(log_probs: Tensor) -> Tensor:
    """Sum over rows of the entropy, in nats, of distributions given as log-probabilities [N, C]."""
    return -(log_probs.exp() * log_probs).sum()


def _require_same_tokens(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} "
            "must cover the same tokens; slice both to len(tokenizer) before the softmax"
        )
