"""Each loss against a float64 reference that is written out, in value and, where it is learnt from, in gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.code_search.losses import (
    embedding_mse,
    info_nce,
    principal_projection,
    repeated_answers,
    shortened,
    similarities,
    similarity_kl,
)

SHAPES = st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(2, 6), st.integers(0, 2**31))


def unit_rows(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=-1)


def softmax(row: list[float]) -> list[float]:
    most = max(row)
    weights = [math.exp(value - most) for value in row]
    return [weight / sum(weights) for weight in weights]


@settings(deadline=None, max_examples=30)
@given(SHAPES)
def test_info_nce_is_the_mean_surprise_at_the_own_document(shape: tuple[int, int, int, int]) -> None:
    queries, more, width, seed = shape
    asked, held = unit_rows(queries, width, seed), unit_rows(queries + more, width, seed + 1)
    expected = 0.0
    for query in range(queries):
        row = [20.0 * float(asked[query].double() @ each.double()) for each in held]
        expected -= math.log(softmax(row)[query]) / queries
    none = torch.zeros(queries, queries + more, dtype=torch.bool)
    assert float(info_nce(similarities(asked, held, 20.0, none))) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_similarities_are_in_32_bits_whatever_training_is_in() -> None:
    asked, held = unit_rows(4, 32, 9), unit_rows(6, 32, 10)
    none = torch.zeros(4, 6, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = similarities(asked, held, 20.0, none)
    assert torch.equal(mixed, similarities(asked, held, 20.0, none))


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.sampled_from([0.5, 1.0, 3.0]))
def test_the_divergence_is_teacher_to_student_over_the_documents(
    shape: tuple[int, int, int, int], temperature: float
) -> None:
    queries, more, _, seed = shape
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(queries, queries + more, generator=generator) for _ in range(2))
    expected = 0.0
    for mine, taught in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        p, q = (softmax([value / temperature for value in row]) for row in (taught, mine))
        expected += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)) / queries
    assert float(similarity_kl(student, teacher, temperature)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_divergence_with_itself_is_zero_and_so_is_its_gradient() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = similarity_kl(logits, logits.detach(), 2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-7)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-6, rtol=0.0)


def test_its_gradient_times_t_squared_is_the_difference_of_the_softmaxes_times_t() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, 6, generator=generator)
    student.requires_grad_()
    temperature = 3.0
    (temperature**2 * similarity_kl(student, teacher, temperature)).backward()
    expected = (temperature / 4) * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected.detach())


@pytest.mark.parametrize("width", [3, 48])
def test_the_squared_distance_is_between_0_and_4_at_any_width(width: int) -> None:
    rows = unit_rows(6, width, 2)
    assert float(embedding_mse(rows, rows)) == 0.0
    assert float(embedding_mse(rows, -rows)) == pytest.approx(4.0, rel=1e-5)
    other = unit_rows(6, width, 3)
    cosines = (rows.double() * other.double()).sum(-1)
    assert float(embedding_mse(rows, other)) == pytest.approx(float((2 - 2 * cosines).mean()), rel=1e-5)


def test_a_query_s_own_document_over_again_is_no_wrong_answer() -> None:
    numbers = torch.tensor([10, 11, 12, 11, 10])  # of three queries; the last two columns are hard negatives
    repeated = repeated_answers(numbers, 3)
    assert repeated.nonzero().tolist() == [[0, 4], [1, 3]]
    asked, held = unit_rows(3, 4, 4), unit_rows(5, 4, 5)
    logits = similarities(asked, held, 20.0, repeated)
    without = torch.cat([logits[0, :4], torch.tensor([-torch.inf])])
    assert float(info_nce(logits)) == pytest.approx(
        float(info_nce(torch.stack([without, logits[1], logits[2]]))), rel=1e-6
    )


def test_a_shortened_embedding_is_its_first_columns_with_length_one() -> None:
    rows = unit_rows(5, 8, 6)
    for row, short in zip(rows.double().tolist(), shortened(rows, 3).tolist(), strict=True):
        length = math.sqrt(sum(value * value for value in row[:3]))
        assert short == pytest.approx([value / length for value in row[:3]], rel=1e-5)


def test_a_projection_keeps_all_dot_products_that_its_width_can_hold() -> None:
    basis = torch.linalg.qr(torch.randn(10, 4, generator=torch.Generator().manual_seed(7))).Q
    flat = torch.nn.functional.normalize(unit_rows(20, 4, 8) @ basis.T, dim=-1)  # ten columns, four directions
    projection = principal_projection(flat, 4)
    torch.testing.assert_close(projection.T @ projection, torch.eye(4), atol=1e-5, rtol=0.0)
    torch.testing.assert_close((flat @ projection) @ (flat @ projection).T, flat @ flat.T, atol=1e-5, rtol=0.0)
