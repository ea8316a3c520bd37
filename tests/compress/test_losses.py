"""The losses against plain float64 loops, and the rules a distillation loss must hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.losses import (
    IGNORED,
    alpha_at,
    cross_entropy_sum,
    in_chunks,
    kl_sum,
    predicting_positions,
    top_k_kl_sum,
)

SIZES = st.tuples(st.integers(1, 7), st.integers(3, 30))


def logits_pair(rows: int, vocabulary: int, seed: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, vocabulary, generator=generator) * scale for _ in range(2))
    return student, teacher


def naive_softmax(row: list[float], temperature: float) -> list[float]:
    largest = max(row)
    weights = [math.exp((value - largest) / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


def naive_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """T² · sum over rows of sum over tokens of p · log(p / q), one float64 at a time."""
    total = 0.0
    for student_row, teacher_row in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        p, q = naive_softmax(teacher_row, temperature), naive_softmax(student_row, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    return temperature**2 * total


def top_k_of(teacher: torch.Tensor, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    top = teacher.topk(k, dim=-1)
    return top.indices, top.values, (teacher / temperature).logsumexp(-1)


@settings(deadline=None)
@given(SIZES, st.sampled_from([1.0, 2.0, 3.0]), st.integers(0, 99))
def test_kl_is_the_plain_sum(size: tuple[int, int], temperature: float, seed: int) -> None:
    student, teacher = logits_pair(*size, seed)
    assert kl_sum(student, teacher, temperature).item() == pytest.approx(
        naive_kl(student, teacher, temperature), rel=1e-4, abs=1e-4
    )


@settings(deadline=None)
@given(SIZES, st.integers(0, 99))
def test_cross_entropy_is_the_plain_sum(size: tuple[int, int], seed: int) -> None:
    rows, vocabulary = size
    logits, _ = logits_pair(rows, vocabulary, seed)
    targets = torch.arange(rows) % vocabulary
    expected = -sum(
        math.log(naive_softmax(row, 1.0)[target])
        for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True)
    )
    assert cross_entropy_sum(logits, targets).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_equal_logits_have_no_divergence_and_no_gradient() -> None:
    _, teacher = logits_pair(5, 40, 1)
    student = teacher.clone().requires_grad_()
    loss = kl_sum(student, teacher, 3.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert student.grad is not None and student.grad.abs().max() < 1e-5


def test_the_gradient_keeps_its_size_over_temperature() -> None:
    """T² undoes the 1/T² of the softened gradient, for logits that are small against T."""
    norms = []
    for temperature in (1.0, 2.0, 4.0, 8.0):
        student, teacher = (logits * 0.05 for logits in logits_pair(16, 50, 3, scale=1.0))
        student.requires_grad_()
        kl_sum(student, teacher, temperature).backward()
        norms.append(student.grad.norm().item())
    assert max(norms) / min(norms) < 1.1


def test_vocabularies_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"len\(tokenizer\)"):
        kl_sum(torch.zeros(2, 8), torch.zeros(2, 9), 1.0)


@settings(deadline=None)
@given(SIZES, st.sampled_from([1.0, 3.0]), st.integers(0, 99))
def test_top_k_of_all_but_one_token_is_the_full_divergence(
    size: tuple[int, int], temperature: float, seed: int
) -> None:
    student, teacher = logits_pair(*size, seed)
    kept = top_k_of(teacher, size[1] - 1, temperature)
    assert top_k_kl_sum(student, *kept, temperature).item() == pytest.approx(
        kl_sum(student, teacher, temperature).item(), rel=1e-3, abs=1e-3
    )


@settings(deadline=None)
@given(st.integers(1, 9), st.sampled_from([1.0, 2.0, 3.0]), st.integers(0, 99))
def test_top_k_is_the_divergence_between_k_plus_one_classes(k: int, temperature: float, seed: int) -> None:
    student, teacher = logits_pair(4, 12, seed)
    ids, values, logsumexp = top_k_of(teacher, k, temperature)
    expected = 0.0
    for row in range(4):
        p = naive_softmax(teacher[row].double().tolist(), temperature)
        q = naive_softmax(student[row].double().tolist(), temperature)
        kept = ids[row].tolist()
        p_classes = [p[token] for token in kept] + [1 - sum(p[token] for token in kept)]
        q_classes = [q[token] for token in kept] + [1 - sum(q[token] for token in kept)]
        expected += sum(a * math.log(a / b) for a, b in zip(p_classes, q_classes, strict=True) if a > 0)
    loss = top_k_kl_sum(student, ids, values, logsumexp, temperature)
    assert loss.item() == pytest.approx(temperature**2 * expected, rel=1e-3, abs=1e-3)


def test_labels_kept_at_one_temperature_are_wrong_at_another() -> None:
    """Why the logsumexp is stored for the temperature in use: re-tempering renormalises over k tokens."""
    student, teacher = logits_pair(8, 200, 5)
    ids, values, at_three = top_k_of(teacher, 8, 3.0)
    re_tempered = (values / 3.0).logsumexp(-1)
    right = top_k_kl_sum(student, ids, values, at_three, 3.0)
    wrong = top_k_kl_sum(student, ids, values, re_tempered, 3.0)
    assert (right - wrong).abs() > 0.1 * right


def test_a_tail_without_mass_leaves_the_gradient_finite() -> None:
    """A teacher so sure that the k kept tokens hold everything: 0 · log 0 must not become NaN."""
    teacher = torch.zeros(2, 6)
    teacher[:, 0] = 200.0
    student = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = top_k_kl_sum(student, *top_k_of(teacher, 3, 1.0), 1.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_positions_are_shifted_by_one_and_one_mask_serves_all() -> None:
    labels = torch.tensor([[IGNORED, IGNORED, 7, 8, IGNORED], [IGNORED, 5, IGNORED, IGNORED, 9]])
    mask, targets = predicting_positions(labels)
    assert mask.tolist() == [[False, True, True, False, False], [True, False, False, True, False]]
    assert targets.tolist() == [7, 8, 5, 9]


def test_the_last_prompt_position_counts_and_masked_ones_do_not() -> None:
    labels = torch.tensor([[IGNORED, IGNORED, 3, 4, IGNORED]])
    mask, targets = predicting_positions(labels)
    logits = torch.randn(1, 5, 9, generator=torch.Generator().manual_seed(2))

    def loss(changed: int | None) -> float:
        moved = logits.clone()
        if changed is not None:
            moved[0, changed, 0] += 2.0
        return cross_entropy_sum(moved[mask], targets).item()

    plain = loss(None)
    assert loss(1) != plain, "the last prompt position predicts the first answer token"
    assert [loss(position) for position in (0, 3, 4)] == [plain] * 3


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 99))
def test_chunks_equal_the_whole_in_value_and_gradient(rows: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    head = torch.randn(20, 6, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.arange(rows) % 20

    def loss(part: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy_sum(part @ head.T, labels)

    results = []
    for total in (lambda h: loss(h, targets), lambda h: in_chunks(loss, h, (targets,), chunk=chunk)):
        leaf = hidden.clone().requires_grad_()
        value = total(leaf)
        head.grad = None
        value.backward()
        results.append((value.item(), leaf.grad, head.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-4, atol=1e-6)


def test_alpha_steps_through_its_schedule_in_equal_spans() -> None:
    schedule = [0.5, 0.3, 0.1]
    assert [alpha_at(step, 9, 0.9, schedule) for step in range(9)] == [0.5] * 3 + [0.3] * 3 + [0.1] * 3
    assert alpha_at(9, 9, 0.9, schedule) == 0.1, "the step after the last keeps the last value"
    assert alpha_at(4, 9, 0.9, None) == 0.9
