"""Losses on hidden states and attention against plain float64 loops; which layers are compared."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import RecipeError
from compress.losses import attention_map_sum, hidden_cosine_sum, hidden_mse_sum, map_layers, relation_sum
from tests.compress import naive

SEEDS = st.integers(0, 99)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 6), SEEDS)
def test_mse_is_the_mean_over_features_summed_over_rows(rows: int, width: int, seed: int) -> None:
    teacher = random(rows, width, seed=seed + 1)
    naive.assert_same(
        lambda student: hidden_mse_sum(student, teacher),
        lambda rows: sum(
            sum((a - b) ** 2 for a, b in zip(own, taught, strict=True)) / width
            for own, taught in zip(rows, teacher.double().tolist(), strict=True)
        ),
        random(rows, width, seed=seed),
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(2, 6), SEEDS)
def test_cosine_is_one_less_the_cosine_summed_over_rows(rows: int, width: int, seed: int) -> None:
    teacher = random(rows, width, seed=seed + 1)

    def cosine(own: list[float], taught: list[float]) -> float:
        return sum(a * b for a, b in zip(own, taught, strict=True)) / (math.hypot(*own) * math.hypot(*taught))

    naive.assert_same(
        lambda student: hidden_cosine_sum(student, teacher),
        lambda rows: sum(1 - cosine(own, taught) for own, taught in zip(rows, teacher.double().tolist(), strict=True)),
        random(rows, width, seed=seed),
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(2, 6), SEEDS)
def test_attention_maps_are_compared_by_kl(rows: int, width: int, seed: int) -> None:
    student, teacher = (random(rows, width, seed=seed + shift).softmax(-1) for shift in (0, 1))
    naive.assert_same(
        lambda maps: attention_map_sum(maps, teacher),
        # No renormalising: the gradient is with respect to each probability by itself.
        lambda rows: sum(naive.kl(taught, own) for own, taught in zip(rows, teacher.double().tolist(), strict=True)),
        student + 0.05,
    )


def test_positions_that_cannot_be_seen_add_nothing_to_an_attention_map() -> None:
    student = torch.tensor([[0.25, 0.75, 0.0, 0.0]], requires_grad=True)
    loss = attention_map_sum(student, torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(naive.kl([0.5, 0.5], [0.25, 0.75]))
    assert student.grad is not None and student.grad[0, 2:].tolist() == [0.0, 0.0]


def naive_relations(student: naive.Rows, teacher: naive.Rows, places: list[int], heads: int) -> float:
    """KL between softmax(a · b / √d) over b up to a, one example, mean over heads."""

    def relation(vectors: naive.Rows, head: int, place: int) -> list[float]:
        width = len(vectors[0]) // heads
        parts = [row[head * width : (head + 1) * width] for row in vectors[: place + 1]]
        scores = [sum(a * b for a, b in zip(parts[place], part, strict=True)) / math.sqrt(width) for part in parts]
        return naive.softmax(scores)

    return (
        sum(
            naive.kl(relation(teacher, head, place), relation(student, head, place))
            for head in range(heads)
            for place in places
        )
        / heads
    )


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([1, 2]), SEEDS)
def test_relations_are_the_plain_sums_for_models_of_different_width(heads: int, seed: int) -> None:
    student, teacher = random(2, 5, 4, seed=seed), random(2, 5, 6, seed=seed + 1)
    mask = torch.tensor([[False, True, True, False, False], [False, False, False, True, False]])
    naive.assert_same(
        lambda flat: relation_sum(flat.view(2, 5, 4), teacher, mask, heads),
        lambda rows: naive_relations(rows[:5], teacher[0].double().tolist(), [1, 2], heads)
        + naive_relations(rows[5:], teacher[1].double().tolist(), [3], heads),
        student.view(10, 4),
    )


def test_relations_see_neither_what_comes_later_nor_padding() -> None:
    student, teacher = random(1, 6, 4, seed=0), random(1, 6, 4, seed=1)
    mask = torch.tensor([[False, False, True, False, False, False]])
    before = relation_sum(student, teacher, mask, 2)
    student[:, 3:] += 5.0
    teacher[:, 3:] -= 5.0
    assert relation_sum(student, teacher, mask, 2) == before


def test_relations_of_packed_examples_are_those_of_each_by_itself() -> None:
    student, teacher = random(1, 7, 4, seed=0), random(1, 7, 6, seed=1)
    mask = torch.tensor([[False, True, False, False, True, True, False]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    apart = [relation_sum(student[:, part], teacher[:, part], mask[:, part], 2) for part in (slice(3), slice(3, 7))]
    packed = relation_sum(student, teacher, mask, 2, positions)
    assert packed.item() == pytest.approx(sum(apart).item(), rel=1e-5)
    assert packed.item() != pytest.approx(relation_sum(student, teacher, mask, 2).item(), rel=1e-3)


def test_an_example_without_answer_adds_nothing() -> None:
    vectors = random(2, 3, 4, seed=0)
    assert relation_sum(vectors, random(2, 3, 4, seed=1), torch.zeros(2, 3, dtype=torch.bool), 2) == 0


def test_layers_are_mapped_by_depth() -> None:
    assert map_layers([6, 12, 18], 24, 32) == [(6, 8), (12, 16), (18, 24)]
    assert map_layers("depth", 4, 6) == [(1, 2), (2, 3), (3, 5), (4, 6)]
    assert map_layers("depth", 3, 1) == [(1, 1), (2, 1), (3, 1)]
    assert map_layers({2: 5, 1: 1}, 4, 6) == [(1, 1), (2, 5)]


@given(st.integers(1, 40), st.integers(1, 80))
def test_by_depth_the_last_layer_teaches_the_last_and_order_is_kept(student: int, teacher: int) -> None:
    pairs = map_layers("depth", student, teacher)
    assert pairs[-1] == (student, teacher)
    assert [pair[1] for pair in pairs] == sorted(pair[1] for pair in pairs)
    assert all(1 <= taught <= teacher for _, taught in pairs)


@pytest.mark.parametrize(
    ("layer_map", "said"),
    [
        ([5], "layer 5 of the student, which has layers 1 to 4"),
        ([0], "layer 0 of the student"),
        ({1: 7}, "layer 7 of the teacher, which has layers 1 to 6"),
        ({1: 0}, "layer 0 of the teacher"),
    ],
)
def test_a_layer_that_is_not_there_is_named(layer_map, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        map_layers(layer_map, 4, 6)
