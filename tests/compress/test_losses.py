"""The losses on logits against plain float64 loops, and the rules a distillation loss must hold."""

import math
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from compress.losses import (
    IGNORED,
    cross_entropy_sum,
    divergence_sum,
    entropy_sum,
    in_chunks,
    logit_mse_sum,
    predicting_positions,
    sampled_kl_sum,
    scheduled,
    tempered_log_probs,
    top_k_log_probs,
)
from compress.losses.fused import can_fuse, fused_sums
from compress.recipe import Ramp
from tests.compress import naive

SIZES = st.tuples(st.integers(1, 4), st.integers(3, 9))
OBJECTIVES = st.sampled_from(["forward_kl", "reverse_kl", "jsd"])
TEMPERATURES = st.sampled_from([1.0, 2.0, 3.0])
SEEDS = st.integers(0, 99)

needs_liger = pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger_kernel is not installed")


def logits_pair(rows: int, vocabulary: int, seed: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, vocabulary, generator=generator) * scale for _ in range(2))
    return student, teacher


def softened(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, objective="forward_kl", beta: float = 0.5
) -> torch.Tensor:
    pair = tempered_log_probs(student, temperature), tempered_log_probs(teacher, temperature)
    return divergence_sum(*pair, objective, beta)


def top_k_of(teacher: torch.Tensor, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    ids = teacher.topk(k, dim=-1).indices
    return ids, (teacher / temperature).log_softmax(-1).gather(-1, ids)


@settings(deadline=None, max_examples=50)
@given(SIZES, OBJECTIVES, TEMPERATURES, st.sampled_from([0.1, 0.5, 0.9]), SEEDS)
def test_divergences_are_the_plain_sums(size, objective: str, temperature: float, beta: float, seed: int) -> None:
    student, teacher = logits_pair(*size, seed)
    naive.assert_same(
        lambda logits: softened(logits, teacher, temperature, objective, beta),
        lambda rows: naive.of_logits(rows, teacher.double().tolist(), temperature, objective, beta),
        student,
    )


@settings(deadline=None, max_examples=30)
@given(SIZES, SEEDS)
def test_cross_entropy_is_the_plain_sum(size: tuple[int, int], seed: int) -> None:
    rows, vocabulary = size
    logits, _ = logits_pair(rows, vocabulary, seed)
    targets = torch.arange(rows) % vocabulary
    naive.assert_same(
        lambda leaf: cross_entropy_sum(leaf, targets),
        lambda rows: -sum(math.log(naive.softmax(row)[target]) for row, target in zip(rows, targets, strict=True)),
        logits,
    )


@settings(deadline=None, max_examples=30)
@given(SIZES, SEEDS)
def test_mse_is_the_mean_over_tokens_of_the_squared_difference(size: tuple[int, int], seed: int) -> None:
    student, teacher = logits_pair(*size, seed)
    naive.assert_same(
        lambda logits: logit_mse_sum(logits, teacher),
        lambda rows: sum(
            sum((a - b) ** 2 for a, b in zip(own, taught, strict=True)) / len(own)
            for own, taught in zip(rows, teacher.double().tolist(), strict=True)
        ),
        student,
    )


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_equal_logits_have_no_divergence_and_no_gradient(objective: str) -> None:
    _, teacher = logits_pair(5, 40, 1)
    student = teacher.clone().requires_grad_()
    loss = softened(student, teacher, 3.0, objective)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert student.grad is not None and student.grad.abs().max() < 1e-5


def test_jsd_tends_to_the_two_divergences_at_its_ends() -> None:
    student, teacher = logits_pair(4, 12, 3, scale=1.0)
    forward, reverse = (softened(student, teacher, 1.0, name) for name in ("forward_kl", "reverse_kl"))
    near_forward = softened(student, teacher, 1.0, "jsd", beta=1e-3) / 1e-3
    near_reverse = softened(student, teacher, 1.0, "jsd", beta=1 - 1e-3) / 1e-3
    assert near_forward.item() == pytest.approx(forward.item(), rel=1e-2)
    assert near_reverse.item() == pytest.approx(reverse.item(), rel=1e-2)
    assert forward.item() != pytest.approx(reverse.item(), rel=3e-2)


def test_mse_is_no_divergence_between_distributions() -> None:
    with pytest.raises(ValueError, match="logit_mse_sum"):
        divergence_sum(torch.zeros(1, 3), torch.zeros(1, 3), "mse")


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_the_gradient_keeps_its_size_over_temperature(objective: str) -> None:
    """T² undoes the 1/T² of the softened gradient, for logits that are small against T."""
    norms = []
    for temperature in (1.0, 2.0, 4.0, 8.0):
        student, teacher = (logits * 0.05 for logits in logits_pair(16, 50, 3, scale=1.0))
        student.requires_grad_()
        (temperature**2 * softened(student, teacher, temperature, objective)).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert max(norms) / min(norms) < 1.1


@pytest.mark.parametrize("loss", [divergence_sum, logit_mse_sum])
def test_vocabularies_of_different_size_are_refused(loss) -> None:
    with pytest.raises(ValueError, match=r"len\(tokenizer\)"):
        loss(torch.zeros(2, 8), torch.zeros(2, 9))


def test_a_token_that_the_teacher_bans_leaves_loss_and_gradient_finite() -> None:
    """-inf in the teacher's logits: 0 · -inf must not become NaN, forward or backward."""
    student, teacher = logits_pair(3, 8, 4)
    teacher[:, 2] = -math.inf
    student.requires_grad_()
    loss = softened(student, teacher, 2.0)
    loss.backward()
    kept = [column for column in range(8) if column != 2]
    expected = sum(
        sum(a * math.log(a / b) for a, b in zip(naive.softmax(taught, 2.0), own, strict=True))
        for taught, own in zip(
            teacher[:, kept].double().tolist(),
            (student.detach().double() / 2).softmax(-1)[:, kept].tolist(),
            strict=True,
        )
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert student.grad is not None and torch.isfinite(student.grad).all()


@settings(deadline=None, max_examples=50)
@given(SIZES, OBJECTIVES, TEMPERATURES, SEEDS)
def test_top_k_of_all_but_one_token_is_the_full_divergence(size, objective: str, temperature: float, seed: int) -> None:
    student, teacher = logits_pair(*size, seed)
    classes = top_k_log_probs(student, *top_k_of(teacher, size[1] - 1, temperature), temperature)
    assert divergence_sum(*classes, objective).item() == pytest.approx(
        softened(student, teacher, temperature, objective).item(), rel=2e-3, abs=1e-3
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), OBJECTIVES, TEMPERATURES, SEEDS)
def test_top_k_is_the_divergence_between_k_plus_one_classes(
    k: int, objective: str, temperature: float, seed: int
) -> None:
    student, teacher = logits_pair(3, 9, seed, scale=2.0)
    ids, kept = top_k_of(teacher, k, temperature)

    def classes(rows: naive.Rows) -> naive.Rows:
        found = []
        for row, tokens in zip(rows, ids.tolist(), strict=True):
            p = naive.softmax(row, temperature)
            found.append([p[token] for token in tokens] + [sum(p) - sum(p[token] for token in tokens)])
        return found

    taught = classes(teacher.double().tolist())
    naive.assert_same(
        lambda logits: divergence_sum(*top_k_log_probs(logits, ids, kept, temperature), objective),
        lambda rows: sum(naive.divergence(p, q, objective) for p, q in zip(taught, classes(rows), strict=True)),
        student,
    )


def test_labels_kept_at_one_temperature_are_wrong_at_another() -> None:
    """Why the logsumexp is stored for the temperature in use: re-tempering renormalises over k tokens."""
    student, teacher = logits_pair(8, 200, 5)
    ids, at_three = top_k_of(teacher, 8, 3.0)
    re_tempered = (teacher.gather(-1, ids) / 3.0).log_softmax(-1)
    right = divergence_sum(*top_k_log_probs(student, ids, at_three, 3.0))
    wrong = divergence_sum(*top_k_log_probs(student, ids, re_tempered, 3.0))
    assert (right - wrong).abs() > 0.1 * right


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_a_tail_without_mass_leaves_the_gradient_finite(objective: str) -> None:
    """A teacher so sure that the k kept tokens hold everything: 0 · log 0 must not become NaN."""
    teacher = torch.zeros(2, 6)
    teacher[:, 0] = 200.0
    student = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = divergence_sum(*top_k_log_probs(student, *top_k_of(teacher, 3, 1.0), 1.0), objective)
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


@settings(deadline=None, max_examples=20)
@given(TEMPERATURES, SEEDS)
def test_every_draw_weighted_by_its_chance_is_the_full_divergence(temperature: float, seed: int) -> None:
    """Unbiased, exactly: one drawn token, each possible one taken as often as the proposal draws it."""
    student, teacher = logits_pair(2, 6, seed)
    student, teacher = student.double(), teacher.double()
    log_p = (teacher / temperature).log_softmax(-1)
    proposal = (teacher / 3.0).softmax(-1)

    def mean(logits: torch.Tensor) -> torch.Tensor:
        total = logits.new_zeros((), dtype=torch.float64)
        for token in range(6):
            ids = torch.full((2, 1), token)
            chance = proposal.gather(-1, ids)
            weights = log_p.gather(-1, ids).exp() / chance
            for row in range(2):
                part = slice(row, row + 1)
                drawn = sampled_kl_sum(logits[part], ids[part], log_p.gather(-1, ids)[part], weights[part], temperature)
                total = total + chance[row, 0] * drawn
        return total

    naive.assert_same(
        mean,
        lambda rows: naive.of_logits(rows, teacher.tolist(), temperature, "forward_kl"),
        student,
    )


@settings(deadline=None, max_examples=30)
@given(SIZES, SEEDS)
def test_entropy_is_the_plain_sum(size: tuple[int, int], seed: int) -> None:
    logits, _ = logits_pair(*size, seed)
    expected = -sum(p * math.log(p) for row in logits.double().tolist() for p in naive.softmax(row, 2.0))
    assert entropy_sum(tempered_log_probs(logits, 2.0)).item() == pytest.approx(expected, rel=1e-4)


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


def every_loss(vocabulary: int, teacher: torch.Tensor) -> dict:
    """Each loss on logits as `in_chunks` wants it: of student logits, targets, and the teacher's logits."""
    ids = teacher.topk(3, dim=-1).indices

    def divergence(objective: str):
        return lambda student, targets, taught: softened(student, taught, 2.0, objective)

    def cached(student, targets, taught):
        return divergence_sum(*top_k_log_probs(student, *top_k_of(taught, 3, 2.0), 2.0), "jsd")

    def sampled(student, targets, taught):
        ids = taught.topk(3, dim=-1).indices
        log_p = tempered_log_probs(taught, 2.0).gather(-1, ids)
        return sampled_kl_sum(student, ids, log_p, torch.full(ids.shape, 1 / 3), 2.0)

    assert ids.shape[1] < vocabulary
    return {
        "cross_entropy": lambda student, targets, taught: cross_entropy_sum(student, targets),
        "mse": lambda student, targets, taught: logit_mse_sum(student, taught),
        "top_k": cached,
        "sampled": sampled,
        **{objective: divergence(objective) for objective in ("forward_kl", "reverse_kl", "jsd")},
    }


LOSSES = ("cross_entropy", "forward_kl", "reverse_kl", "jsd", "mse", "top_k", "sampled")


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=10)
@given(rows=st.integers(1, 40), chunk=st.integers(1, 17), seed=SEEDS)
def test_chunks_equal_the_whole_in_value_and_gradient(name: str, rows: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, generator=generator)
    head = torch.randn(20, 6, generator=generator).requires_grad_()
    teacher = torch.randn(rows, 20, generator=generator)
    targets = torch.arange(rows) % 20
    of_logits = every_loss(20, teacher)[name]

    def loss(part: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        return of_logits(part @ head.T, *args)

    results = []
    for total in (
        lambda h: loss(h, targets, teacher),
        lambda h: in_chunks(loss, h, (targets, teacher), chunk=chunk),
    ):
        leaf = hidden.clone().requires_grad_()
        head.grad = None
        value = total(leaf)
        value.backward()
        results.append((value.detach(), leaf.grad, head.grad.clone()))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-4)


class LargestTensor(TorchDispatchMode):
    """How many elements the largest tensor has that any operation makes, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


@pytest.mark.parametrize("name", LOSSES)
def test_no_more_than_a_chunk_of_logits_ever_exists(name: str) -> None:
    rows, vocabulary, width, chunk = 64, 100, 4, 8
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    head = torch.randn(vocabulary, width, generator=generator).requires_grad_()
    teacher_hidden = torch.randn(rows, width, generator=generator)
    of_logits = every_loss(vocabulary, torch.zeros(1, vocabulary))[name]
    calls = []

    def loss(part: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(len(part))
        with torch.no_grad():
            teacher = taught @ head.T
        return of_logits(part @ head.T, targets, teacher)

    with LargestTensor() as largest:
        in_chunks(loss, hidden, (teacher_hidden, torch.arange(rows)), chunk).backward()
    # logaddexp and cat hold at most two or so chunks side by side; all rows would be eight.
    assert chunk * vocabulary <= largest.elements <= 2 * chunk * vocabulary < rows * vocabulary
    assert calls == [chunk] * 16, "each chunk is made once forward and once more backward"


@needs_liger
@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_the_fused_kernel_gives_the_sums_and_gradients_of_the_plain_path(objective) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    hidden, teacher_hidden = torch.randn(50, 16, device=device), torch.randn(50, 24, device=device)
    heads = torch.randn(40, 16, device=device), torch.randn(40, 24, device=device)
    targets = torch.arange(50, device=device) % 40

    def plain(rows: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = rows @ head.T
        divergence = softened(logits, teacher_hidden @ heads[1].T, 2.0, objective, 0.3)
        cross_entropy = cross_entropy_sum(logits, targets)
        return 0.3 * cross_entropy + 2.8 * divergence, cross_entropy, divergence

    def fused(rows: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pair = rows, teacher_hidden
        return fused_sums(pair, (head, heads[1]), targets, 2.0, objective, 0.3, factors=(0.3, 2.8))

    results = []
    for path in (plain, fused):
        leaves = hidden.clone().requires_grad_(), heads[0].clone().requires_grad_()
        sums = path(*leaves)
        sums[0].backward()
        results.append([*(value.detach() for value in sums), *(leaf.grad for leaf in leaves)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@needs_liger
def test_the_fused_kernel_is_for_gpus_and_for_divergences() -> None:
    heads = torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(6, 8, bias=False)
    assert not can_fuse("forward_kl", *heads, torch.device("cpu"))
    assert not can_fuse("mse", *heads, torch.device("cuda"))
    assert not can_fuse("jsd", heads[0], torch.nn.Linear(6, 8), torch.device("cuda")), "a bias is not asked for"


def test_a_list_steps_through_its_values_in_equal_spans() -> None:
    schedule = [0.5, 0.3, 0.1]
    assert [scheduled(0.9, schedule, step, 9) for step in range(9)] == [0.5] * 3 + [0.3] * 3 + [0.1] * 3
    assert scheduled(0.9, schedule, 9, 9) == 0.1, "the step after the last keeps the last value"
    assert scheduled(0.9, None, 4, 9) == 0.9


def test_a_ramp_goes_from_its_start_at_the_first_step_to_its_end_at_the_last() -> None:
    linear, cosine = (Ramp(start=0.5, end=0.1, type=kind) for kind in ("linear", "cosine"))
    assert [scheduled(9, linear, step, 5) for step in range(6)] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    half = 0.1 + 0.4 * (1 + math.cos(math.pi / 4)) / 2
    assert [scheduled(9, cosine, step, 5) for step in (0, 1, 2, 4, 5)] == pytest.approx([0.5, half, 0.3, 0.1, 0.1])
    assert scheduled(9, linear, 0, 1) == 0.5, "a training of one step has its first value"
