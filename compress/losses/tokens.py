"""Which positions are learnt from, cross-entropy over them, and sums over chunks of them."""

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


def in_chunks(loss: Callable[..., Tensor], hidden: Tensor, rows: tuple[Tensor, ...], chunk: int = 1024) -> Tensor:
    """Sum `loss(hidden_chunk, *row_chunks)` over chunks of rows, recomputing each chunk's logits backwards.

    With a `loss` that starts by projecting hidden states to logits, no more than [chunk, V] logits exist
    at a time, forward or backward.

    Args:
        loss: gives a sum over its rows, or a vector of several such sums.
        hidden: [N, H]; rows: tensors whose first dimension is N.

    Returns:
        What `loss` gives, over all N rows, in float32; a zero scalar when N is 0.
    """
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, hidden.shape[0], chunk):
        parts = [tensor[start : start + chunk] for tensor in rows]
        total = total + checkpoint(loss, hidden[start : start + chunk], *parts, use_reentrant=False)
    return total
