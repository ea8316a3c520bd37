"""Losses on what happens inside: hidden states and attention of chosen layers, at the predicting positions."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from compress.errors import RecipeError

LayerMap = Literal["depth"] | Sequence[int] | Mapping[int, int]

_MASKED = -1e9


def map_layers(layer_map: LayerMap, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer), numbered from 1; the last is taken after the final norm.

    Args:
        layer_map: `depth` pairs every student layer with the teacher layer at the same share of the depth;
            a list does so for the student layers it names ([6, 12, 18] of 24 with [8, 16, 24] of 32);
            a mapping says the teacher layer itself.

    Raises:
        RecipeError: a layer is named that one of the models does not have.
    """
    if layer_map == "depth":
        layer_map = range(1, student_layers + 1)
    if isinstance(layer_map, Mapping):
        pairs = sorted(layer_map.items())
    else:
        # Halves are rounded up, as a person would; Python rounds them to even.
        pairs = [(layer, max(int(layer * teacher_layers / student_layers + 0.5), 1)) for layer in layer_map]
    for whose, place, count in (("student", 0, student_layers), ("teacher", 1, teacher_layers)):
        for pair in pairs:
            if not 1 <= pair[place] <= count:
                raise RecipeError(
                    f"distill: layer_map names layer {pair[place]} of the {whose}, which has layers 1 to {count}"
                )
    return pairs


def hidden_mse_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over rows of the mean over features of (student - teacher)², in float32.

    Args:
        student: [N, H], projected to the teacher's width where theirs differ; teacher: [N, H].
    """
    return (student.float() - teacher.float()).square().mean(-1).sum()


def hidden_cosine_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over rows of 1 - cos(student, teacher) (DistilBERT, 1910.01108), in float32. Both [N, H]."""
    return (1.0 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()


def attention_map_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over rows of KL(teacher ‖ student) between attention distributions, averaged over heads.

    Averages can be compared between models that have different numbers of heads.

    Args:
        student, teacher: probabilities [N, S] over the positions attended to; 0 at those that cannot be seen.
    """
    student, teacher = student.float(), teacher.float()
    log_student = student.clamp_min(torch.finfo(torch.float32).tiny).log()
    return (torch.xlogy(teacher, teacher) - teacher * log_student).sum()


def relation_sum(
    student: Tensor, teacher: Tensor, mask: Tensor, heads: int, position_ids: Tensor | None = None
) -> Tensor:
    """Sum over predicting positions of KL between self-attention relations, averaged over relation heads.

    A relation is softmax(A Aᵀ / √d) of queries, keys or values with themselves: values in MiniLM
    (2002.10957, section 3.2), all three in MiniLMv2 (2012.15828), whose relation heads let models of
    different widths and head counts be compared. A position is related to itself and those before it, which
    are all the model sees. Rows are taken one by one and recomputed backwards, so that [B, S, S] never exists.

    Args:
        student: [B, S, Ws]; teacher: [B, S, Wt]; both projections of all heads side by side.
        mask: bool [B, S], the predicting positions; sequences are padded on the right.
        heads: relation heads; divides Ws and Wt.
        position_ids: int64 [B, S], with several examples to a row: they start again where an example starts,
            and no example is related to another.
    """
    total = student.new_zeros((), dtype=torch.float32)
    for row in range(student.shape[0]):
        places = mask[row].nonzero().squeeze(-1)
        if len(places):
            end = int(places[-1]) + 1
            keys = torch.arange(end, device=places.device)
            hidden = keys > places[:, None]
            if position_ids is not None:
                hidden |= keys < (places - position_ids[row, places])[:, None]
            pair = student[row, :end], teacher[row, :end]
            total = total + checkpoint(_relation_kl, *pair, places, hidden, heads, use_reentrant=False)
    return total / heads


def _relation_kl(student: Tensor, teacher: Tensor, places: Tensor, hidden: Tensor, heads: int) -> Tensor:
    # Autocast would take the products in 16 bits.
    with torch.autocast(student.device.type, enabled=False):
        relations = [_relation_log_probs(vectors.float(), places, hidden, heads) for vectors in (student, teacher)]
        return F.kl_div(relations[0], relations[1], reduction="sum", log_target=True)


def _relation_log_probs(vectors: Tensor, places: Tensor, hidden: Tensor, heads: int) -> Tensor:
    """[S, W] -> log-probabilities [heads, n, S] of the n places, of no weight where `hidden` [n, S]."""
    by_head = vectors.unflatten(-1, (heads, -1)).transpose(0, 1)
    scores = by_head[:, places] @ by_head.transpose(1, 2) / math.sqrt(by_head.shape[-1])
    return scores.masked_fill(hidden, _MASKED).log_softmax(dim=-1)
