"""Liger's fused projection and divergence, on a GPU where it is installed: no recomputing, the same sums."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from compress.losses.divergence import Objective


def can_fuse(objective: Objective, student_head: Any, teacher_head: Any, device: torch.device) -> bool:
    """Whether `fused_sums` can do what the recipe asks, here."""
    plain = all(type(head) is nn.Linear and head.bias is None for head in (student_head, teacher_head))
    same_type = plain and student_head.weight.dtype == teacher_head.weight.dtype
    return device.type == "cuda" and same_type and objective != "mse" and find_spec("liger_kernel") is not None


def fused_sums(
    hidden: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    targets: Tensor,
    temperature: float,
    objective: Objective,
    beta: float,
    factors: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted total, cross-entropy and divergence (without T²), each a sum over the N rows.

    Gradients are made with the loss, chunk by chunk, and never need [N, V].

    Args:
        hidden: the student's [N, H] and the teacher's [N, Ht]. weights: of their heads, [V, H] and [V, Ht].
        targets: int64 [N]. factors: of cross-entropy and of the divergence in the total.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=factors[0],
        weight_soft_loss=factors[1],
        beta={"forward_kl": 0.0, "reverse_kl": 1.0}.get(objective, beta),
        temperature=temperature,
        compiled=False,  # alpha and T are constants of the compiled graph: a schedule would compile every step anew
        return_soft_hard_loss=True,
    )
    total, divergence, cross_entropy = loss(hidden[0], weights[0], hidden[1], weights[1], targets, None, None)
    rows = len(targets)  # Liger divides by them
    return total * rows, cross_entropy * rows, divergence * rows
