"""On-policy distillation: the student learns from its own answers, and a run that was cut off ends the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

from compress.on_policy import OnPolicyTrainer, train_on_policy
from compress.recipe import OnPolicy, Train
from tests.support.cut_off import cut_off_before
from tests.support.tiny_bundle import make_tiny_checkpoint

OPTIONS = OnPolicy(
    train=Train(learning_rate=5e-4, max_steps=4, per_device_train_batch_size=2, save_steps=2, bf16=False),
    max_answer_tokens=8,
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random checkpoint with the same tokenizer, its vocabulary padded as families do."""
    folder = tmp_path_factory.mktemp("teacher") / "checkpoint"
    make_tiny_checkpoint(folder, seed=5)
    model = Qwen2ForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size + 9)
    model.save_pretrained(folder)
    return folder


def test_the_student_changes_and_a_cut_off_run_ends_with_the_same_weights(
    tiny_checkpoint, teacher, dataset, tmp_path, monkeypatch
) -> None:
    def run(out: Path) -> dict[str, torch.Tensor]:
        train_on_policy(tiny_checkpoint, teacher, dataset, OPTIONS, 1, out)
        return load_file(out / "model" / "model.safetensors")

    whole = run(tmp_path / "whole")
    before = load_file(tiny_checkpoint / "model.safetensors")
    assert whole.keys() == before.keys()
    assert any((whole[name] - before[name].float()).abs().max() > 1e-4 for name in before)
    assert all(weight.isfinite().all() for weight in whole.values())
    training = json.loads((tmp_path / "whole" / "model" / "training.json").read_text())
    assert training["global_step"] == 4

    with cut_off_before(3, OnPolicyTrainer):
        run(tmp_path / "cut")
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_divergence_from_the_teacher_falls(tiny_checkpoint, teacher, dataset, tmp_path) -> None:
    options = OnPolicy(
        train=Train(
            learning_rate=1e-2,
            max_steps=20,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            lr_scheduler_type="constant",
            bf16=False,
        ),
        max_answer_tokens=6,
    )
    train_on_policy(tiny_checkpoint, teacher, dataset, options, 1, tmp_path)
    history = json.loads((tmp_path / "model" / "training.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 2 and losses[1] < 0.95 * losses[0]


@pytest.mark.parametrize("wrong", [{"beta": 1.2}, {"temperature": 0.0}])
def test_what_makes_no_sense_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OnPolicy(train=Train(), **wrong)


def test_batches_cannot_be_filled_by_tokens_that_are_not_written_yet() -> None:
    with pytest.raises(ValueError, match="per_device_train_batch_size"):
        OnPolicy(train=Train(max_tokens_per_batch=1024))
