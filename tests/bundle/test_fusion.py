"""Rankings are fused by places alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.fusion import reciprocal_rank_fusion

RANKINGS = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=12), min_size=1, max_size=3)


def test_scores_are_the_sum_of_the_weighted_reciprocal_ranks() -> None:
    items, scores = reciprocal_rank_fusion([[7, 3], [3, 9]], [1.0, 0.5], 60.0)
    assert items.tolist() == [3, 7, 9]
    assert scores.tolist() == pytest.approx([1 / 62 + 0.5 / 61, 1 / 61, 0.5 / 62])


def test_of_equal_scores_the_lower_number_is_first() -> None:
    assert reciprocal_rank_fusion([[5, 1], [1, 5]], [1.0, 1.0], 60.0)[0].tolist() == [1, 5]


@given(RANKINGS, st.data())
def test_it_agrees_with_a_sum_item_by_item(rankings: list[list[int]], data: st.DataObject) -> None:
    weights = [data.draw(st.floats(0, 4)) for _ in rankings]
    constant = data.draw(st.floats(0, 100))
    items, scores = reciprocal_rank_fusion(rankings, weights, constant)
    expected = {
        item: sum(
            w / (constant + 1 + ranking.index(item))
            for ranking, w in zip(rankings, weights, strict=True)
            if item in ranking
        )
        for ranking in rankings
        for item in ranking
    }
    assert dict(zip(items.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected)
    assert np.all(np.diff(scores) <= 0)


@given(st.lists(st.integers(0, 30), unique=True))
def test_one_ranking_alone_stays_as_it_is(ranking: list[int]) -> None:
    assert reciprocal_rank_fusion([ranking, []], [1.0, 1.0], 60.0)[0].tolist() == ranking
