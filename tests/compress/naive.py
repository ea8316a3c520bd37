"""Distances between distributions one float64 at a time, to compare fast losses with."""

import math
from collections.abc import Callable

import torch

Rows = list[list[float]]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    largest = max(row)
    weights = [math.exp((value - largest) / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def divergence(p: list[float], q: list[float], objective: str, beta: float = 0.5) -> float:
    """Between a teacher's p and a student's q."""
    if objective == "forward_kl":
        return kl(p, q)
    if objective == "reverse_kl":
        return kl(q, p)
    mixture = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


def of_logits(student: Rows, teacher: Rows, temperature: float, objective: str, beta: float = 0.5) -> float:
    """Sum over rows of a divergence between softened logits."""
    return sum(
        divergence(softmax(taught, temperature), softmax(own, temperature), objective, beta)
        for own, taught in zip(student, teacher, strict=True)
    )


def gradient(loss: Callable[[Rows], float], at: torch.Tensor, step: float = 1e-4) -> torch.Tensor:
    """Central differences of a loss over rows [N, C], one entry at a time."""
    rows = at.double().tolist()
    slopes = torch.zeros_like(at, dtype=torch.float64)
    for row in range(at.shape[0]):
        for column in range(at.shape[1]):
            kept = rows[row][column]
            rows[row][column] = kept + step
            above = loss(rows)
            rows[row][column] = kept - step
            slopes[row, column] = (above - loss(rows)) / (2 * step)
            rows[row][column] = kept
    return slopes


def assert_same(loss: Callable[[torch.Tensor], torch.Tensor], naive: Callable[[Rows], float], at: torch.Tensor) -> None:
    """Value and gradient of a fast loss at `at` [N, C] are those of the loop."""
    leaf = at.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    expected = naive(at.double().tolist())
    assert abs(value.item() - expected) <= 1e-4 + 1e-4 * abs(expected)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.double(), gradient(naive, at), rtol=1e-3, atol=1e-4)
