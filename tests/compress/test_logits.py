"""The soft-label cache is exact about what it holds, found by example, and never silently stale."""

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from compress import logits as logits_module
from compress.data.tokens import TokenDataset, collate
from compress.logits import SoftLabels, StaleSoftLabels, soft_label_key, soft_labels, write_soft_labels
from compress.losses import kl_sum, predicting_positions, top_k_kl_sum


@pytest.fixture
def key(dataset: TokenDataset, tiny_checkpoint: Path, tokenizer):
    return soft_label_key(dataset, tiny_checkpoint, temperature=3.0, top_k=16, vocab_size=len(tokenizer))


@pytest.fixture
def cache(dataset, model, key, tokenizer, tmp_path) -> Path:
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, tmp_path / "labels")
    return tmp_path / "labels"


def test_rows_are_the_teachers_own_whatever_the_order_of_reading(
    dataset: TokenDataset, model: Qwen2ForCausalLM, key, cache: Path, tokenizer
) -> None:
    held = SoftLabels(cache, key)
    order = [7, 0, 3]
    batch = collate([dataset[place] for place in order], tokenizer.pad_token_id)
    mask, _ = predicting_positions(batch["labels"])
    with torch.no_grad():
        teacher = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[mask]
    ids, kept, logsumexp = held.rows(batch["index"])
    assert torch.equal(ids, teacher.topk(16).indices)
    probabilities = ((kept / 3.0) - logsumexp[:, None]).exp()
    expected = (teacher / 3.0).softmax(-1).gather(-1, ids)
    torch.testing.assert_close(probabilities, expected, rtol=2e-3, atol=1e-5)


def test_the_cached_divergence_is_the_dense_one_when_everything_is_kept(dataset, model, tokenizer) -> None:
    batch = collate([dataset[0], dataset[1]], tokenizer.pad_token_id)
    mask, _ = predicting_positions(batch["labels"])
    with torch.no_grad():
        teacher = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[mask]
    student = teacher + torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    cached = top_k_kl_sum(student, *soft_labels(teacher, 3.0, teacher.shape[1] - 1), 3.0)
    assert cached.item() == pytest.approx(kl_sum(student, teacher, 3.0).item(), rel=5e-3)


def test_a_killed_pass_goes_on_with_the_missing_shards(dataset, model, key, tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(logits_module, "_EXAMPLES_PER_SHARD", 8)
    folder = tmp_path / "labels"
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, folder)
    shards = sorted(folder.glob("shard-*.npz"))
    assert len(shards) == 3
    whole = {shard.name: shard.read_bytes() for shard in shards}
    shards[1].unlink()
    (folder / "shard-000000008.tmp").write_bytes(b"half a shard")
    times = {shard.name: shard.stat().st_mtime_ns for shard in (shards[0], shards[2])}
    write_soft_labels(model, dataset, key, tokenizer.pad_token_id, folder)
    assert {shard.name: shard.read_bytes() for shard in sorted(folder.glob("shard-*.npz"))} == whole
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times


@pytest.mark.parametrize(
    "change", [{"temperature": 2.0}, {"top_k": 8}, {"teacher": "another"}, {"tokens": "another"}, {"tokenizer": "x"}]
)
def test_a_stale_cache_is_an_error_that_names_what_changed(cache: Path, key, change: dict) -> None:
    with pytest.raises(StaleSoftLabels, match=next(iter(change))):
        SoftLabels(cache, msgspec.structs.replace(key, **change))


def test_the_key_changes_with_tokens_teacher_and_temperature(
    dataset, tiny_checkpoint, tokenizer, examples, prompt, tmp_path
) -> None:
    def key(data=dataset, folder=tiny_checkpoint, temperature=3.0, top_k=16):
        return soft_label_key(data, folder, temperature, top_k, len(tokenizer))

    other_data = TokenDataset(examples[1:], prompt, tokenizer.eos_token_id, max_tokens=512)
    other = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    other.model.norm.weight.data += 0.5
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    keys = [key(), key(data=other_data), key(folder=tmp_path / "other"), key(temperature=2.0), key(top_k=8)]
    assert len({msgspec.json.encode(each) for each in keys}) == len(keys)
    assert key() == key()
