"""What can go wrong while training: it stops, says why, and leaves what is needed to see it again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from compress.data.tokens import TokenDataset, Tokens
from compress.distill import train_student
from compress.distilling import Distilling
from compress.errors import RecipeError, StageError
from compress.mishaps import memory_advice
from compress.recipe import Distill, HiddenLoss, Train
from compress.training import AnswerTrainer

ONLINE = Distill(teacher="online", temperature=2.0, alpha=0.25, hidden=HiddenLoss(weight=0.5, kind="cosine"))


def train(**changes) -> Train:
    return Train(**{"max_steps": 4, "per_device_train_batch_size": 4, "bf16": False, "save_steps": 2, **changes})


def trained(model, tokenizer, dataset, out: Path, options: Train) -> AnswerTrainer:
    return AnswerTrainer(
        model=model, tokenizer=tokenizer, train=options, dataset=dataset, out=out, seed=1, description="student"
    )


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fourth optimiser step on the temperature is not a number, and with it the divergence."""
    temperature = Distilling.temperature.fget
    assert temperature is not None

    def spoilt(self: Distilling) -> float:
        return temperature(self) if self.state.global_step < 3 else float("nan")

    monkeypatch.setattr(Distilling, "temperature", property(spoilt))


def test_a_loss_that_is_no_number_stops_the_run_and_the_batch_can_be_looked_at(
    poisoned, dataset, tiny_checkpoint, tokenizer, model, tmp_path
) -> None:
    with pytest.raises(StageError, match=r"loss of optimiser step 4 is not a finite number.*learning_rate") as failed:
        train_student(tiny_checkpoint, tokenizer, dataset, train(), ONLINE, model, 1, tmp_path)
    file = tmp_path / "checkpoints" / "not-finite-step-3.safetensors"
    assert str(file) in str(failed.value) and "checkpoint-2" in str(failed.value)
    batch = load_file(file)
    assert batch["input_ids"].shape == batch["labels"].shape
    for place, ids in zip(batch["index"].tolist(), batch["input_ids"].tolist(), strict=True):
        assert ids[: dataset.lengths[place]] == dataset.rows[place].ids
    with safe_open(file, framework="pt") as opened:
        assert (
            opened.metadata() | {"step": "3", "temperature": "nan", "alpha": "0.25", "seed": "1"} == opened.metadata()
        )
    assert not (tmp_path / "model").exists()


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(dataset, tokenizer, model, tmp_path) -> None:
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(StageError, match="the gradient of optimiser step 1 is not a finite number"):
        trained(model, tokenizer, dataset, tmp_path, train()).train()
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert (tmp_path / "not-finite-step-0.safetensors").is_file()


def test_memory_that_runs_out_names_the_three_knobs(dataset, tokenizer, model, tmp_path) -> None:
    """A real allocation that no machine can serve."""
    model.model.layers[1].register_forward_hook(lambda *_: torch.empty(1 << 60))
    with pytest.raises(StageError, match="student ran out of memory") as failed:
        trained(model, tokenizer, dataset, tmp_path, train()).train_resuming(tmp_path / "model")
    for knob in ("per_device_train_batch_size", "gradient_checkpointing: true", "optim: adamw_bnb_8bit"):
        assert knob in str(failed.value)


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_advice("training", "less"):
        raise RuntimeError("shapes differ")


def test_examples_beyond_the_limit_are_counted(examples, prompt, tokenizer, dataset) -> None:
    limit = sorted(dataset.lengths)[len(dataset) // 2]
    short = TokenDataset(examples, prompt, tokenizer.eos_token_id, max_tokens=limit)
    longer = [length for length in dataset.lengths if length > limit]
    assert sorted(short.too_long) == sorted(longer)
    assert f"{len(longer)} longer than data.max_tokens: {limit} are left out" in short.summary
    assert f"the longest has {max(longer)}" in short.summary
    assert "none is longer than data.max_tokens: 512" in dataset.summary


def test_a_limit_that_leaves_nothing_is_refused(examples, prompt, tokenizer, dataset) -> None:
    with pytest.raises(RecipeError, match=f"the shortest has {min(dataset.lengths)}"):
        TokenDataset(examples, prompt, tokenizer.eos_token_id, max_tokens=5)


def test_an_empty_answer_is_refused(dataset, tokenizer, model, tmp_path) -> None:
    ids = dataset.rows[3].ids[: dataset.rows[3].answer_start]
    dataset.rows[3] = Tokens(ids=ids, answer_start=len(ids))
    with pytest.raises(RecipeError, match="1 of 24 examples have an empty answer, the first is number 3"):
        trained(model, tokenizer, dataset, tmp_path, train())


def scalars(folder: Path) -> dict[str, list[int]]:
    """The steps of every scalar that was written for TensorBoard."""
    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("events.*")):
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")  # then a checksum, the event, and its checksum
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append(event.step)
    return found


def test_every_term_is_there_to_be_watched(dataset, tiny_checkpoint, tokenizer, model, tmp_path) -> None:
    train_student(tiny_checkpoint, tokenizer, dataset, train(max_steps=10), ONLINE, model, 1, tmp_path)
    watched = scalars(tmp_path / "checkpoints" / "events")
    terms = ("loss", "cross_entropy", "divergence", "hidden", "alpha", "temperature", "teacher_entropy")
    for name in (*terms, "grad_norm", "learning_rate", "tokens_per_second"):
        assert watched[f"train/{name}"] == [10], name
    logged = json.loads((tmp_path / "model" / "training.json").read_text())["log_history"]
    assert next(entry for entry in logged if "loss" in entry)["tokens_per_second"] > 0
