"""Training a bi-encoder: the terms of its loss, and a loop that goes on where it was cut off."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compress.code_search.data import Pair
from compress.code_search.encoders import load_encoder
from compress.code_search.recipe import SearchDistill, SearchTrain
from compress.code_search.train import PairLoss, PairTrainer, Taught, train_encoder
from compress.recipe import Ramp
from compress.training_log import training_history
from tests.support.cut_off import cut_off_before

MAX_TOKENS = 24
VERBS = ("read", "parse", "write", "sort", "count", "drop", "join", "split")
PAIRS = [
    Pair("paper", "p.py", number, f"How to {verb} lines", f"p.{verb}\ndef {verb}(lines): return {verb}_all(lines)")
    for number, verb in enumerate(VERBS)
]
TRAIN = SearchTrain(learning_rate=2e-3, max_steps=6, per_device_train_batch_size=4, bf16=False, save_steps=2)
DISTILL = SearchDistill(temperature=2.0, alpha_schedule=Ramp(start=0.9, end=0.1), embedding_weight=0.5)


@pytest.fixture(scope="module")
def taught(tiny_encoder: Path) -> Taught:
    teacher = load_encoder(str(tiny_encoder), MAX_TOKENS)
    queries, documents = (teacher.encode(texts) for texts in zip(*((p.query, p.document) for p in PAIRS), strict=True))
    return Taught(queries, documents, np.array([[(number + 1) % 8] for number in range(8)]))


def log_shares(asked: np.ndarray, held: np.ndarray, own: int, numbers: list[int], softness: float) -> dict[int, float]:
    """log p of each document for one query, in float64; its own document over again is none of them."""
    logits = {}
    for column, document in enumerate(held):
        if column == own or numbers[column] != numbers[own]:
            lengths = math.sqrt(sum(a * a for a in asked)) * math.sqrt(sum(b * b for b in document))
            cosine = sum(a * b for a, b in zip(asked, document, strict=True)) / lengths
            logits[column] = 20.0 * cosine / softness
    together = math.log(sum(math.exp(logit) for logit in logits.values()))
    return {column: logit - together for column, logit in logits.items()}


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_loss_is_its_terms_over_the_batch_s_documents_at_every_width(
    tiny_encoder: Path, taught: Taught, alpha: float
) -> None:
    student = load_encoder(str(tiny_encoder), MAX_TOKENS).eval()
    torch.nn.init.normal_(next(student.parameters()), generator=torch.Generator().manual_seed(1))
    distill = SearchDistill(temperature=2.0, alpha=alpha, embedding_weight=0.5)
    loss = PairLoss(student, distill, taught, (32,))
    numbers = [2, 5, 3]
    negatives = [3, 6, 4]  # and 3 is the third pair's own
    columns = [
        [PAIRS[number].query for number in numbers],
        [PAIRS[number].document for number in numbers],
        [PAIRS[number].document for number in negatives],
    ]
    with torch.no_grad():
        terms = loss([student.preprocess(texts) for texts in columns], torch.tensor(numbers))
        asked = student.encode(columns[0]).astype(float)
        held = student.encode(columns[1] + columns[2]).astype(float)

    places = numbers + negatives
    taught_asked, taught_held = taught.queries[numbers].astype(float), taught.documents[places].astype(float)
    surprise = divergence = 0.0
    for query in range(3):
        teacher = log_shares(taught_asked[query], taught_held, query, places, 2.0)
        assert len(teacher) == (5 if query == 2 else 6)
        for width in (64, 32):
            surprise -= log_shares(asked[query, :width], held[:, :width], query, places, 1.0)[query] / 6
            own = log_shares(asked[query, :width], held[:, :width], query, places, 2.0)
            divergence += sum(math.exp(p) * (p - own[column]) for column, p in teacher.items()) / 6
    apart = np.concatenate([asked - taught_asked, held - taught_held])
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(
        {
            "info_nce": alpha * surprise,
            "kl": (1 - alpha) * 2.0**2 * divergence,
            "embedding_mse": 0.5 * sum(float(row @ row) for row in apart) / len(apart),
        },
        rel=1e-4,
    )


def train(start: Path, taught: Taught | None, out: Path) -> dict[str, torch.Tensor]:
    out.mkdir(exist_ok=True)
    train_encoder(str(start), PAIRS, TRAIN, DISTILL, taught, (32,), MAX_TOKENS, 7, out, "student")
    return load_file(out / "model" / "model.safetensors")


def test_a_loop_that_was_cut_off_ends_as_one_that_was_not(tiny_encoder: Path, taught: Taught, tmp_path: Path) -> None:
    whole = train(tiny_encoder, taught, tmp_path / "whole")
    with cut_off_before(3, PairTrainer):
        train(tiny_encoder, taught, tmp_path / "cut")
    assert not (tmp_path / "cut" / "model").exists()
    resumed = train(tiny_encoder, taught, tmp_path / "cut")
    torch.testing.assert_close(resumed, whole)
    assert training_history(tmp_path / "cut" / "model")


def test_a_loop_that_was_done_is_not_done_again(tiny_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    train_encoder(str(tiny_encoder), PAIRS, TRAIN, DISTILL, None, (), MAX_TOKENS, 7, tmp_path, "student")
    assert list((tmp_path / "model").iterdir()) == []


def test_a_student_comes_nearer_to_its_teacher(tiny_encoder: Path, taught: Taught, tmp_path: Path) -> None:
    start = load_encoder(str(tiny_encoder), MAX_TOKENS)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    start.save_pretrained(str(tmp_path / "start"), create_model_card=False)
    train(tmp_path / "start", taught, tmp_path)

    def distance(folder: Path) -> float:
        told = load_encoder(str(folder), MAX_TOKENS).encode([pair.document for pair in PAIRS])
        return float(np.square(told - taught.documents).sum(axis=1).mean())

    assert distance(tmp_path / "model") < distance(tmp_path / "start")


def test_a_narrower_student_is_near_to_what_its_width_can_hold_of_the_teacher(
    tiny_encoder: Path, taught: Taught
) -> None:
    student = load_encoder(str(tiny_encoder), MAX_TOKENS)
    wide = Taught(*(np.pad(part, ((0, 0), (0, 8))) for part in (taught.queries, taught.documents)), taught.negatives)
    loss = PairLoss(student, DISTILL, wide, ())
    assert loss.targets is not None
    for target, told in zip(loss.targets, (taught.queries, taught.documents), strict=True):
        assert target.shape == told.shape
    # The eight documents span eight directions, and all of them fit.
    documents = loss.targets[1]
    np.testing.assert_allclose(documents @ documents.T, taught.documents @ taught.documents.T, atol=1e-4)
