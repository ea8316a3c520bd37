"""Several rankings of the same things made one."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray


class HybridRanking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the ranking by embeddings and the one by words are made one."""

    lexical_weight: float = 1.0  # of the words (BM25), beside 1 of the embeddings
    constant: float = 60.0  # the smaller, the more the very first places count

    def fuse(self, by_embedding: ArrayLike, by_words: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """See `reciprocal_rank_fusion`."""
        return reciprocal_rank_fusion((by_embedding, by_words), (1.0, self.lexical_weight), self.constant)


def reciprocal_rank_fusion(
    rankings: Sequence[ArrayLike], weights: Sequence[float], constant: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Items by the sum of weight / (constant + rank) over the rankings they are in, ranks from 1; the best first.

    Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009, who take 60): it compares places and no scores,
    so the rankings' scores need nothing in common. Of equal sums the lower number is first.

    Args:
        rankings: items, as numbers from 0, each ranking the best first; one may lack items that another has.
        weights: one for each ranking, at least 0.
        constant: at least 0.

    Returns:
        items int64 [N], all that any ranking has, and their scores float64 [N].
    """
    ranked = [np.asarray(ranking, np.int64) for ranking in rankings]
    parts = [
        weight / (constant + np.arange(1, len(ranking) + 1)) for ranking, weight in zip(ranked, weights, strict=True)
    ]
    distinct, places = np.unique(np.concatenate(ranked), return_inverse=True)
    scores = np.zeros(len(distinct))
    np.add.at(scores, places, np.concatenate(parts))
    order = np.argsort(-scores, kind="stable")
    return distinct[order], scores[order]
