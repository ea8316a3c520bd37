"""Losses of a bi-encoder, as pure functions of embeddings. Each is a mean over the queries of a batch, in float32.

Rows of length 1 throughout: a dot product is a cosine. `documents` holds each query's own function first, in the
order of the queries, and then whatever else they are compared with.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_MASKED = -1e9


def similarities(queries: Tensor, documents: Tensor, scale: float, repeated: Tensor) -> Tensor:
    """Logits [B, M] of every document for every query: scale times the cosine.

    Args:
        queries: [B, D]; documents: [M, D].
        repeated: bool [B, M], True where a document is the query's own over again: it is no wrong answer.
    """
    # Autocast would take the product in 16 bits.
    with torch.autocast(queries.device.type, enabled=False):
        return (scale * (queries.float() @ documents.float().T)).masked_fill(repeated, _MASKED)


def repeated_answers(numbers: Tensor, queries: int) -> Tensor:
    """Where a document is a query's own over again: bool [B, M].

    Args:
        numbers: int64 [M], which document each column is; the first B are the queries' own.
        queries: B.
    """
    own = torch.eye(queries, len(numbers), dtype=torch.bool, device=numbers.device)
    return (numbers[:queries, None] == numbers) & ~own


def info_nce(logits: Tensor) -> Tensor:
    """-log p(own document), over all documents of the batch (van den Oord et al., 1807.03748).

    Args:
        logits: [B, M]; a query's own document is in the column of its row's number.
    """
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def similarity_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) between the distributions over documents at a temperature; times T² by the caller.

    Args:
        student, teacher: logits [B, M] of the same documents.
    """
    log_student, log_teacher = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def embedding_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between embeddings, summed over the width: 0 for the same direction, 4 for the opposite.

    Args:
        student, teacher: [N, D].
    """
    return (student.float() - teacher.float()).square().sum(-1).mean()


def shortened(embeddings: Tensor, width: int) -> Tensor:
    """The first `width` columns, divided by their length: [N, width]."""
    return F.normalize(embeddings[:, :width].float(), dim=-1)


def principal_projection(embeddings: Tensor, width: int) -> Tensor:
    """Orthonormal columns [D, width] that keep as much of all dot products of `embeddings` [N, D] as so many can.

    What a narrower student's embeddings are compared with: the teacher's times this, divided by their length. It is
    computed and not learnt, so that no weight is needed that the student does not keep.
    """
    moments = embeddings.float().T @ embeddings.float()
    return torch.linalg.eigh(moments).eigenvectors[:, -width:].flip(-1)
