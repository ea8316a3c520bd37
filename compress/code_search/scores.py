"""From rankings to numbers: MRR@10 and recall, with their bootstrap intervals."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from bundle.fusion import HybridRanking
from compress.evaluation.measures import DRAWS, INTERVAL
from compress.evaluation.scores import Estimate

# Of each ranking that is fused; serving fuses as many.
FUSED = 100
_CUT = 10


class SearchScores(msgspec.Struct, frozen=True):
    """How well one way to search finds each query's own function among all. Shares are 0..1."""

    mrr: Estimate  # MRR@10: the mean of 1 / rank, 0 beyond the tenth
    recall_at_1: Estimate
    recall_at_5: Estimate
    recall_at_10: Estimate


def score_ranks(ranks: NDArray[np.float64], seed: int) -> SearchScores:
    """Scores of the ranks [Q] that the queries' own functions came at, from 1; infinite where not found.

    Args:
        seed: of the bootstrap, which resamples queries.
    """
    of_queries = {
        "mrr": np.where(ranks <= _CUT, 1.0 / ranks, 0.0),
        **{f"recall_at_{k}": (ranks <= k).astype(float) for k in (1, 5, 10)},
    }
    draws = np.random.default_rng(seed).multinomial(len(ranks), np.full(len(ranks), 1 / len(ranks)), size=DRAWS)
    estimates = {}
    for name, values in of_queries.items():
        low, high = np.percentile(draws @ values / len(ranks), INTERVAL)
        estimates[name] = Estimate(float(values.mean()), float(low), float(high))
    return SearchScores(**estimates)


def own_ranks(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """At which rank each query's own document comes: float [Q].

    Documents with the same score count as better: a method that can not tell them apart gets nothing for it.

    Args:
        scores: [Q, N] of every document for every query, larger is better; document i is query i's own.
    """
    own = scores[np.arange(len(scores)), np.arange(len(scores))]
    return (scores >= own[:, None]).sum(axis=1).astype(float)


def rankings(scores: NDArray[np.float32], least: float = -np.inf) -> list[NDArray[np.int64]]:
    """The best hundred documents of every query, the best first; only those with a score above `least`."""
    orders = np.argsort(-scores, axis=1, kind="stable")[:, :FUSED]
    return [order[row[order] > least] for order, row in zip(orders, scores, strict=True)]


def hybrid_ranks(
    dense: Sequence[NDArray[np.int64]], lexical: Sequence[NDArray[np.int64]], hybrid: HybridRanking
) -> NDArray[np.float64]:
    """At which rank each query's own document comes once both rankings are fused: float [Q], infinite if in neither."""
    ranks = np.full(len(dense), np.inf)
    for query, pair in enumerate(zip(dense, lexical, strict=True)):
        items, _ = hybrid.fuse(*pair)
        place = np.flatnonzero(items == query)
        if len(place):
            ranks[query] = place[0] + 1
    return ranks
