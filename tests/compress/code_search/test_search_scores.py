"""Ranks and what is counted of them, against plain counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.fusion import HybridRanking
from compress.code_search.recipe import SearchGate
from compress.code_search.scores import hybrid_ranks, own_ranks, rankings, score_ranks
from compress.gate import gate_failures

MATRICES = st.integers(1, 6).flatmap(
    lambda rows: st.lists(st.lists(st.integers(0, 3), min_size=rows, max_size=rows), min_size=rows, max_size=rows)
)


def test_mrr_stops_at_the_tenth_and_recall_counts_those_within() -> None:
    scores = score_ranks(np.array([1, 2, 10, 11, np.inf]), seed=0)
    assert scores.mrr.value == pytest.approx((1 + 0.5 + 0.1) / 5)
    assert [scores.recall_at_1.value, scores.recall_at_5.value, scores.recall_at_10.value] == [0.2, 0.4, 0.6]


def test_the_interval_is_around_the_value_and_narrower_with_more_queries() -> None:
    few, many = (score_ranks(np.tile([1.0, 3.0, np.inf, 7.0], times), seed=0).mrr for times in (5, 500))
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low


@given(MATRICES)
def test_a_query_s_rank_counts_all_that_score_as_much(matrix: list[list[int]]) -> None:
    ranks = own_ranks(np.array(matrix, dtype=np.float32))
    expected = [sum(score >= row[query] for score in row) for query, row in enumerate(matrix)]
    assert ranks.tolist() == expected


def test_a_method_that_tells_nothing_apart_finds_nothing_first() -> None:
    assert score_ranks(own_ranks(np.zeros((20, 20), np.float32)), seed=0).mrr.value == 0.0


def test_a_ranking_holds_only_what_scores_above_the_least() -> None:
    scores = np.array([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0]], np.float32)
    assert [ranking.tolist() for ranking in rankings(scores, least=0.0)] == [[1, 2], []]


@settings(deadline=None, max_examples=30)
@given(MATRICES, MATRICES)
def test_without_weight_the_other_ranking_changes_no_order(dense: list[list[int]], lexical: list[list[int]]) -> None:
    scores = np.array(dense, np.float32)
    own = rankings(scores)
    other = rankings(np.resize(np.array(lexical, np.float32), scores.shape))
    expected = [ranking.tolist().index(query) + 1 for query, ranking in enumerate(own)]
    assert hybrid_ranks(own, other, HybridRanking(0.0)).tolist() == expected


def test_what_neither_ranking_has_is_not_found() -> None:
    assert hybrid_ranks([np.array([1])], [np.array([2])], HybridRanking()).tolist() == [np.inf]


def test_the_gate_names_what_is_below_it() -> None:
    retention = {"mrr_retention": 0.9, "recall_at_10_retention": 0.99}
    assert gate_failures(SearchGate(mrr_retention=0.97, recall_at_10_retention=0.97), retention) == [
        "mrr retention is 0.900, below the gate's 0.970"
    ]
    assert gate_failures(SearchGate(), retention) == []
