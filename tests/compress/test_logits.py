"""The soft-label cache is exact about what it holds, found by example, and never silently stale."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from compress import logits as logits_module
from compress.data.batches import collate
from compress.data.tokens import TokenDataset
from compress.errors import StageError
from compress.label_cache import StaleSoftLabels
from compress.logits import (
    SoftLabelKey,
    SoftLabels,
    require_room,
    sampled_labels,
    soft_label_key,
    top_k_labels,
    write_soft_labels,
)
from compress.losses import divergence_sum, predicting_positions, sampled_kl_sum, tempered_log_probs, top_k_log_probs
from compress.recipe import Distill

DISTILL = Distill(temperature=3.0, top_k=16)


@pytest.fixture
def key(dataset: TokenDataset, tiny_checkpoint: Path, tokenizer) -> SoftLabelKey:
    return soft_label_key(dataset, tiny_checkpoint, DISTILL, len(tokenizer))


@pytest.fixture
def cache(dataset, model, key, tokenizer, tmp_path) -> Path:
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, tmp_path / "labels")
    return tmp_path / "labels"


def teacher_logits(model, dataset, order: list[int], tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the predicting positions of some examples, and the examples' places."""
    batch = collate([dataset[place] for place in order], tokenizer.pad_token_id)
    mask, _ = predicting_positions(batch["labels"])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[mask][:, : len(tokenizer)], batch["index"]


def test_rows_are_the_teachers_own_whatever_the_order_of_reading(
    dataset: TokenDataset, model: Qwen2ForCausalLM, key, cache: Path, tokenizer
) -> None:
    teacher, index = teacher_logits(model, dataset, [7, 0, 3], tokenizer)
    ids, log_probs, weights = SoftLabels(cache, key).rows(index, 3.0)
    assert torch.equal(ids, teacher.topk(16).indices)
    expected = (teacher / 3.0).softmax(-1).gather(-1, ids)
    torch.testing.assert_close(log_probs.exp(), expected, rtol=2e-3, atol=1e-5)
    assert torch.equal(weights, log_probs.exp())


def test_every_temperature_of_a_schedule_is_exact(dataset, model, tiny_checkpoint, tokenizer, tmp_path) -> None:
    distill = Distill(temperature_schedule=[4.0, 2.0, 1.0, 2.0], top_k=16)
    key = soft_label_key(dataset, tiny_checkpoint, distill, len(tokenizer))
    assert key.temperatures == (1.0, 2.0, 4.0)
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, tmp_path)
    teacher, index = teacher_logits(model, dataset, [5, 2], tokenizer)
    held = SoftLabels(tmp_path, key)
    for temperature in key.temperatures:
        ids, log_probs, _ = held.rows(index, temperature)
        expected = (teacher / temperature).softmax(-1).gather(-1, ids)
        torch.testing.assert_close(log_probs.exp(), expected, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_the_cached_divergence_is_the_dense_one_when_everything_is_kept(objective, dataset, model, tokenizer) -> None:
    teacher, _ = teacher_logits(model, dataset, [0, 1], tokenizer)
    student = teacher + torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    ids, kept, logsumexp = top_k_labels(teacher, (3.0,), teacher.shape[1] - 1)
    cached = divergence_sum(*top_k_log_probs(student, ids, kept / 3.0 - logsumexp, 3.0), objective)
    dense = divergence_sum(tempered_log_probs(student, 3.0), tempered_log_probs(teacher, 3.0), objective)
    assert cached.item() == pytest.approx(dense.item(), rel=5e-3)


def test_the_mass_of_what_is_not_kept_is_exact() -> None:
    """Rounding the kept logits to 16 bits must not eat a small tail, which a reverse KL divides by."""
    logits = torch.randn(20, 500, generator=torch.Generator().manual_seed(1)) * 6
    ids, kept, logsumexp = top_k_labels(logits, (1.0,), 100)
    tail = 1 - (kept.double() - logsumexp.double()).exp().sum(-1)
    others = logits.double().scatter(-1, ids, -torch.inf).logsumexp(-1)
    expected = (others - logits.double().logsumexp(-1)).exp()
    assert expected.max() < 1e-2
    torch.testing.assert_close(tail, expected, rtol=5e-3, atol=5e-7)


def test_sampled_labels_estimate_the_full_divergence_without_bias_where_top_k_does_not() -> None:
    """Over many draws, at the temperature they were drawn at and at another: within five standard errors."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(1, 40, generator=generator) * scale for scale in (2.0, 1.0))
    draws = 4000
    ids, kept, logsumexp = sampled_labels(teacher.expand(draws, -1), (1.0, 3.0), 8, generator)
    for place, temperature in enumerate((1.0, 3.0)):
        log_probs = kept.float() / temperature - logsumexp[:, place, None]
        proposal = kept.float() / 3.0 - logsumexp[:, 1, None]
        weights = (log_probs - proposal).exp() / 8
        p, q = ((logits.double() / temperature).softmax(-1)[0] for logits in (teacher, student))
        own = (student / temperature).log_softmax(-1)[0]
        estimates = (weights * (log_probs - own[ids])).sum(-1).double()
        value = (p * (p / q).log()).sum()
        assert (estimates.mean() - value).abs() < 5 * estimates.std() / draws**0.5

        leaf = student.clone().requires_grad_()
        sampled_kl_sum(leaf.expand(draws, -1), ids, log_probs, weights, temperature).backward()
        slope = (q - p) / temperature  # of KL(p ‖ q) with respect to the student's logits
        spread = (p / draws / 8).sqrt() * weights.max() * 8 / temperature
        assert leaf.grad is not None
        assert ((leaf.grad[0].double() / draws - slope).abs() < 5 * spread + 1e-4).all()

        biased = student.clone().requires_grad_()
        top, top_kept, _ = top_k_labels(teacher, (temperature,), 8)
        renormalised = (top_kept.float() / temperature).log_softmax(-1)
        sampled_kl_sum(biased, top, renormalised, renormalised.exp(), temperature).backward()
        assert biased.grad is not None
        assert not ((biased.grad[0].double() - slope).abs() < 5 * spread + 1e-4).all()


def test_a_cache_of_sampled_labels_holds_weights_that_count_every_draw(
    dataset, model, tiny_checkpoint, tokenizer, tmp_path
) -> None:
    distill = Distill(temperature=2.0, labels="sampled", samples=24)
    key = soft_label_key(dataset, tiny_checkpoint, distill, len(tokenizer))
    for folder in (tmp_path / "first", tmp_path / "again"):
        write_soft_labels(model, dataset, key, tokenizer.pad_token_id, folder)
    teacher, index = teacher_logits(model, dataset, [4, 1], tokenizer)
    ids, log_probs, weights = SoftLabels(tmp_path / "first", key).rows(index, 2.0)
    assert ids.shape == (len(teacher), 24)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 24))
    expected = (teacher / 2.0).log_softmax(-1).gather(-1, ids)
    torch.testing.assert_close(log_probs, expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(ids, SoftLabels(tmp_path / "again", key).rows(index, 2.0)[0]), "drawn the same each time"


def test_a_killed_pass_goes_on_with_the_missing_shards(dataset, model, key, tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(logits_module, "_EXAMPLES_PER_SHARD", 8)
    folder = tmp_path / "labels"
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, folder)
    shards = sorted(folder.glob("shard-*.npy"))
    assert len(shards) == 3
    whole = {shard.name: shard.read_bytes() for shard in shards}
    shards[1].unlink()
    (folder / "shard-000000008.tmp").write_bytes(b"half a shard")
    times = {shard.name: shard.stat().st_mtime_ns for shard in (shards[0], shards[2])}
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, folder)
    assert {shard.name: shard.read_bytes() for shard in sorted(folder.glob("shard-*.npy"))} == whole
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times


def test_shards_are_mapped_and_found_across_their_borders(
    dataset, model, key, cache, tokenizer, tmp_path, monkeypatch
) -> None:
    index = torch.tensor([9, 0, 23, 8])
    expected = SoftLabels(cache, key).rows(index, 3.0)
    monkeypatch.setattr(logits_module, "_EXAMPLES_PER_SHARD", 8)
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, tmp_path / "small")
    held = SoftLabels(tmp_path / "small", key)
    for whole, cut in zip(expected, held.rows(index, 3.0), strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-3)
    assert sorted(held._shards) == [0, 8, 16]
    assert all(isinstance(shard, np.memmap) for shard in held._shards.values())


def test_the_estimate_is_what_is_written(dataset, model, key, tokenizer, tmp_path) -> None:
    said = require_room(tmp_path / "not" / "yet", dataset, key)
    answer_tokens = sum(len(row.ids) - row.answer_start for row in dataset.rows)
    row = 16 * (4 + 2) + 4
    assert f"{answer_tokens:,} answer tokens of {row} bytes: {answer_tokens * row / 1e6:,.1f} MB to write" in said
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, tmp_path)
    written = sum(shard.stat().st_size for shard in tmp_path.glob("shard-*.npy"))
    assert 0 <= written - answer_tokens * row < 1000, "beyond the rows there are only numpy's headers"
    assert ": 0.0 MB to write" in require_room(tmp_path, dataset, key)


def test_a_disk_without_room_is_an_error_before_any_work(dataset, key, tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StageError, match=r"do not fit into .*labels: .* 0\.0 MB are free.*distill\.top_k.*online"):
        write_soft_labels(None, dataset, key, tokenizer.pad_token_id, tmp_path / "labels")  # type: ignore[arg-type]
    assert not list((tmp_path / "labels").glob("shard-*"))


@pytest.mark.parametrize(
    "change",
    [
        {"temperatures": (2.0,)},
        {"kept": 8},
        {"labels": "sampled"},
        {"teacher": "another"},
        {"tokens": "another"},
        {"tokenizer": "x"},
    ],
)
def test_a_stale_cache_is_an_error_that_names_what_changed(cache: Path, key, change: dict) -> None:
    with pytest.raises(StaleSoftLabels, match=next(iter(change))):
        SoftLabels(cache, msgspec.structs.replace(key, **change))


def test_a_cache_of_another_version_is_stale(cache: Path, key) -> None:
    (cache / "key.json").write_text('{"tokens": "x", "temperature": 3.0}')
    with pytest.raises(StaleSoftLabels, match="of another version; delete the folder"):
        SoftLabels(cache, key)


def test_the_key_changes_with_tokens_teacher_and_temperature(
    dataset, tiny_checkpoint, tokenizer, examples, prompt, tmp_path
) -> None:
    def key(data=dataset, folder=tiny_checkpoint, **changes):
        return soft_label_key(data, folder, Distill(**{"temperature": 3.0, "top_k": 16, **changes}), len(tokenizer))

    other_data = TokenDataset(examples[1:], prompt, tokenizer.eos_token_id, max_tokens=512)
    other = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    other.model.norm.weight.data += 0.5
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    keys = [
        key(),
        key(data=other_data),
        key(folder=tmp_path / "other"),
        key(temperature=2.0),
        key(temperature_schedule=[3.0, 2.0]),
        key(top_k=8),
        key(labels="sampled", samples=16),
    ]
    assert len({msgspec.json.encode(each) for each in keys}) == len(keys)
    assert key() == key(alpha=0.9), "alpha is the student's affair"
