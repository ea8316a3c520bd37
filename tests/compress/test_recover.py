"""Recovery after quantisation: what is trained is what is exported, and it is kept only where it helps."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from compress.data.tokens import TokenDataset
from compress.quantize import quantize_nf4
from compress.recipe import Recover, Train
from compress.recover import LowRankUnderNf4, mean_kl, nf4_rounded, read_recovery, recover_nf4
from compress.training import AnswerTrainer
from tests.support.cut_off import cut_off_before

TRAIN = Train(learning_rate=3e-3, max_steps=25, per_device_train_batch_size=4, save_steps=50, bf16=False)


@pytest.fixture
def halves(examples, prompt, tokenizer) -> tuple[TokenDataset, TokenDataset]:
    """Examples to train on, and others to measure on."""
    seen, unseen = (TokenDataset(part, prompt, tokenizer.eos_token_id, 512) for part in (examples[:8], examples[8:12]))
    return seen, unseen


@pytest.fixture
def quantised(tiny_checkpoint, dataset, tmp_path) -> Path:
    quantize_nf4(tiny_checkpoint, dataset, tmp_path / "nf4")
    return tmp_path / "nf4"


def bf16(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")


def test_training_rounds_weights_as_the_exported_checkpoint_does(tiny_checkpoint, quantised) -> None:
    plain = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    exported = bf16(quantised).dequantize()
    for ours, theirs in zip(plain.model.layers, exported.model.layers, strict=True):
        assert torch.equal(nf4_rounded(ours.mlp.up_proj.weight.data).bfloat16(), theirs.mlp.up_proj.weight)
        assert torch.equal(nf4_rounded(ours.self_attn.k_proj.weight.data).bfloat16(), theirs.self_attn.k_proj.weight)


def test_gradients_pass_through_the_rounding_as_if_it_were_not_there() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    change = LowRankUnderNf4(weight, r=4, lora_alpha=8)
    change.lora_B.data.normal_(generator=torch.Generator().manual_seed(1))
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    rounded = rows @ change(weight).T
    assert torch.equal(change(weight), nf4_rounded(change.merged(weight)))
    outer = torch.randn(rounded.shape, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad((rounded * outer).sum(), [change.lora_A, change.lora_B])
    theirs = torch.autograd.grad((rows @ change.merged(weight).T * outer).sum(), [change.lora_A, change.lora_B])
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected)


def test_mean_kl_is_a_loop_over_answer_tokens(tiny_checkpoint, quantised, halves) -> None:
    dataset = halves[1]
    source, model = (bf16(folder) for folder in (tiny_checkpoint, quantised))
    expected, tokens = 0.0, 0
    with torch.no_grad():
        for row in dataset.rows:
            ids = torch.tensor([row.ids])
            p, q = (each(ids).logits[0].double().log_softmax(-1) for each in (source, model))
            for place in range(row.answer_start - 1, len(row.ids) - 1):
                expected += float((p[place].exp() * (p[place] - q[place])).sum())
                tokens += 1
    assert mean_kl(source, model, dataset) == pytest.approx(expected / tokens, rel=0.05)  # padding moves bf16 sums
    assert mean_kl(source, source, dataset) == 0.0


def test_recovery_brings_the_4_bit_student_nearer(tiny_checkpoint, quantised, halves, tmp_path) -> None:
    """Measured where it was trained: a random student says nothing about one example that holds for another."""
    out = tmp_path / "recover"
    out.mkdir()
    options = Recover(train=TRAIN, max_kl=0.0, r=8, lora_alpha=16)
    seen, _ = halves
    recovery = recover_nf4(tiny_checkpoint, tiny_checkpoint, quantised, seen, seen, options, 1, out)
    assert recovery.kept and recovery.source_kl_after < 0.8 * recovery.source_kl_before
    assert recovery == read_recovery(out)
    # What the bundle would hold is what was measured, in the form that vLLM and transformers load.
    again = mean_kl(bf16(tiny_checkpoint), bf16(out / "nf4"), seen)
    assert again == pytest.approx(recovery.source_kl_after)
    assert load_file(out / "nf4" / "model.safetensors").keys() == load_file(quantised / "model.safetensors").keys()


def test_a_recovery_that_makes_it_worse_is_not_kept(tiny_checkpoint, quantised, halves, tmp_path) -> None:
    out = tmp_path / "recover"
    out.mkdir()
    wild = Train(learning_rate=1.0, max_steps=1, per_device_train_batch_size=2, bf16=False, max_grad_norm=0.0)
    recovery = recover_nf4(
        tiny_checkpoint, tiny_checkpoint, quantised, *halves, Recover(train=wild, max_kl=0.0), 1, out
    )
    assert not recovery.kept and recovery.source_kl_after > recovery.source_kl_before
    assert same(out / "nf4", quantised)


def test_below_the_limit_nothing_is_trained(tiny_checkpoint, quantised, halves, tmp_path) -> None:
    out = tmp_path / "recover"
    out.mkdir()
    options = Recover(train=TRAIN, max_kl=1e3)
    recovery = recover_nf4(tiny_checkpoint, tiny_checkpoint, quantised, *halves, options, 1, out)
    assert 0 < recovery.student_kl < 1e3 and not recovery.kept
    assert same(out / "nf4", quantised) and not (out / "checkpoints").exists()


def test_a_cut_off_recovery_ends_with_the_same_weights(
    tiny_checkpoint, quantised, halves, tmp_path, monkeypatch
) -> None:
    train = Train(max_steps=4, save_steps=2, per_device_train_batch_size=2, bf16=False, learning_rate=1e-2)
    options = Recover(train=train, max_kl=0.0)

    def run(out: Path) -> None:
        out.mkdir(exist_ok=True)
        recover_nf4(tiny_checkpoint, tiny_checkpoint, quantised, *halves, options, 1, out)

    run(tmp_path / "whole")
    with cut_off_before(3, AnswerTrainer):
        run(tmp_path / "cut")
    run(tmp_path / "cut")
    assert same(tmp_path / "cut" / "recovered", tmp_path / "whole" / "recovered")


def same(one: Path, other: Path) -> bool:
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
