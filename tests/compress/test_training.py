"""The training loop: micro-batches change nothing, alpha follows its schedule, a killed run goes on."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.data.batches import PackedBatches, TokenBudgetBatches, collate, collate_packed, first_fit, padded_width
from compress.data.tokens import tokenize_examples
from compress.distill import DistillTrainer, train_student
from compress.logits import SoftLabels, soft_label_key, write_soft_labels
from compress.losses import IGNORED
from compress.recipe import Distill, Train
from compress.training import AnswerTrainer, last_whole_checkpoint
from tests.support.cut_off import cut_off_before


@pytest.fixture
def soft_labels(dataset, model, tiny_checkpoint, tokenizer, tmp_path) -> SoftLabels:
    key = soft_label_key(dataset, tiny_checkpoint, Distill(temperature=2.0, top_k=16), len(tokenizer))
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, tmp_path / "labels")
    return SoftLabels(tmp_path / "labels", key)


def first_step(
    model, tokenizer, dataset, soft_labels, out, micro_batch: int, accumulation: int
) -> dict[str, torch.Tensor]:
    """The weights after one optimiser step of plain gradient descent over eight examples."""
    train = Train(
        learning_rate=1.0,
        max_steps=1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        bf16=False,
    )
    distill = Distill(temperature=2.0, alpha=0.3)
    trainer = DistillTrainer(
        model=model,
        tokenizer=tokenizer,
        train=train,
        dataset=dataset,
        out=out,
        seed=1,
        description="test",
        distill=distill,
        soft_labels=soft_labels,
    )
    trainer.train()
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def test_one_two_or_four_micro_batches_give_the_same_step(
    dataset, tiny_checkpoint, tokenizer, soft_labels, tmp_path
) -> None:
    from transformers import Qwen2ForCausalLM

    steps = []
    for micro_batch, accumulation in [(8, 1), (4, 2), (2, 4)]:
        model = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
        out = tmp_path / f"{micro_batch}"
        steps.append(first_step(model, tokenizer, dataset, soft_labels, out, micro_batch, accumulation))
    before = dict(Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).named_parameters())
    for name, whole in steps[0].items():
        moved = (whole - before[name]).abs().max()
        for other in steps[1:]:
            assert (whole - other[name]).abs().max() <= 1e-3 * moved + 1e-6, name
    assert any((steps[0][name] - before[name]).abs().max() > 1e-4 for name in before)


def test_only_answers_are_labelled_and_eos_is_one_of_them(examples, prompt, tokenizer) -> None:
    documented = next(example for example in examples if example.has_summary)
    plain = next(example for example in examples if not example.has_summary)
    rows = [
        {"index": place, "tokens": tokens}
        for place, tokens in enumerate(tokenize_examples([documented, plain], prompt, tokenizer.eos_token_id))
    ]
    batch = collate(rows, tokenizer.pad_token_id)
    texts = [tokenizer.decode(labels[labels != IGNORED], skip_special_tokens=False) for labels in batch["labels"]]
    assert texts[0] == documented.answer_text + tokenizer.eos_token
    assert texts[1].endswith('],"summary":"'), "without a docstring nothing is learnt about the summary"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_batches_hold_every_row_once_within_the_budget_and_repeat_by_seed() -> None:
    lengths = [5 + (7 * row) % 60 for row in range(200)]
    batches = TokenBudgetBatches(lengths, budget=256, seed=3)
    first = list(batches)
    assert sorted(row for batch in first for row in batch) == list(range(200))
    assert all(padded_width(max(lengths[row] for row in batch)) * len(batch) <= 256 for batch in first)
    assert list(TokenBudgetBatches(lengths, budget=256, seed=3)) == first
    batches.set_epoch(1)
    assert list(batches) != first


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), seed=st.integers(0, 9))
def test_packed_batches_hold_every_row_once_and_fit(lengths: list[int], seed: int) -> None:
    batches = list(PackedBatches(lengths, budget=160, width=40, seed=seed))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        places = first_fit([lengths[row] for row in batch], width=40)
        assert max(places) < 4
        for place in set(places):
            assert sum(lengths[row] for row, at in zip(batch, places, strict=True) if at == place) <= 40


def test_a_packed_example_gives_the_logits_it_gives_alone(dataset, model, tokenizer) -> None:
    width = max(dataset.lengths) * 2
    rows = [dataset[index] for index in range(6)]
    packed = collate_packed(rows, tokenizer.pad_token_id, width)
    assert packed["input_ids"].shape[0] < 6
    with torch.no_grad():
        together = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"], use_cache=False).logits
        places = first_fit([len(row["tokens"].ids) for row in rows], width)
        for row, place in zip(rows, places, strict=True):
            ids = torch.tensor([row["tokens"].ids])
            alone = model(input_ids=ids, use_cache=False).logits[0]
            starts = [
                start
                for start in range(width - ids.shape[1] + 1)
                if torch.equal(packed["input_ids"][place, start : start + ids.shape[1]], ids[0])
                and packed["position_ids"][place, start] == 0
            ]
            torch.testing.assert_close(
                together[place, starts[0] : starts[0] + ids.shape[1]], alone, atol=1e-4, rtol=1e-3
            )


def test_alpha_follows_its_schedule_and_is_logged(dataset, tiny_checkpoint, tokenizer, soft_labels, tmp_path) -> None:
    distill = Distill(temperature=2.0, alpha_schedule=[0.5, 0.1])
    train = Train(max_steps=40, per_device_train_batch_size=2, bf16=False)
    train_student(tiny_checkpoint, tokenizer, dataset, train, distill, soft_labels, 1, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "model" / "training.json").read_text())["log_history"]
    assert [entry["alpha"] for entry in history if "alpha" in entry] == [0.5, 0.1, 0.1, 0.1]


def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    dataset, tiny_checkpoint, tokenizer, soft_labels, tmp_path, monkeypatch
) -> None:
    train = Train(max_steps=8, max_tokens_per_batch=700, save_steps=3, bf16=False, learning_rate=1e-3)
    distill = Distill(temperature=2.0, alpha=0.3)

    def run(out: Path) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        train_student(tiny_checkpoint, tokenizer, dataset, train, distill, soft_labels, 1, out)
        return load_file(out / "model" / "model.safetensors")

    whole = run(tmp_path / "whole")
    with cut_off_before(5, AnswerTrainer):
        run(tmp_path / "cut")
    half = tmp_path / "cut" / "checkpoints" / "checkpoint-5"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half a checkpoint")
    assert last_whole_checkpoint(half.parent) == half.with_name("checkpoint-3")
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
