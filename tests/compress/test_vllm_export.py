"""W4A16 for vLLM: GPTQ rounds better than rounding does, and what is saved is what transformers loads."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from compress.errors import StageError
from compress.export.gptq import HIGHEST, LOWEST, best_scales, gptq
from compress.export.vllm import export_vllm
from compress.recipe import W4A16
from compress.recover import mean_kl


def weight_and_inputs(seed: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs whose features depend on each other as a layer's do."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(4 * columns, columns, generator=generator) @ (mixed + 0.5 * torch.eye(columns))
    return torch.randn(rows, columns, generator=generator), inputs


def dequantised(levels: torch.Tensor, scales: torch.Tensor, group_size: int) -> torch.Tensor:
    return levels.float() * scales.float().repeat_interleave(group_size, dim=1)


def rounded(weight: torch.Tensor, group_size: int, importance: torch.Tensor) -> torch.Tensor:
    """Plain rounding to the nearest level of the same scales."""
    parts = []
    for start in range(0, weight.shape[1], group_size):
        group = weight[:, start : start + group_size]
        scale = best_scales(group, importance[start : start + group_size]).float()[:, None]
        parts.append((group / scale).round().clamp(LOWEST, HIGHEST) * scale)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_the_layers_output_changes_less_than_by_rounding(seed: int) -> None:
    weight, inputs = weight_and_inputs(seed, rows=24, columns=64)
    hessian = inputs.T @ inputs
    levels, scales = gptq(weight, hessian, group_size=32)
    assert levels.min() >= LOWEST and levels.max() <= HIGHEST
    exact = inputs @ weight.T
    ours, plain = (
        (inputs @ quantised.T - exact).square().sum()
        for quantised in (dequantised(levels, scales, 32), rounded(weight, 32, hessian.diagonal()))
    )
    assert ours < 0.8 * plain


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    weight, _ = weight_and_inputs(0, rows=8, columns=64)
    levels, scales = gptq(weight, torch.eye(64), group_size=32)
    torch.testing.assert_close(dequantised(levels, scales, 32), rounded(weight, 32, torch.ones(64)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_no_other_scale_on_offer_rounds_better(seed: int) -> None:
    group = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))
    importance = torch.rand(32, generator=torch.Generator().manual_seed(seed + 1))

    def error(scale: torch.Tensor) -> torch.Tensor:
        scale = scale.float()[:, None]
        return ((group - (group / scale).round().clamp(LOWEST, HIGHEST) * scale).square() * importance).sum(1)

    least = error(best_scales(group, importance))
    largest = (group.abs().amax(1) / 7.5).bfloat16()
    assert (least <= error(largest) + 1e-6).all()


def test_an_input_that_is_always_zero_breaks_nothing() -> None:
    weight, inputs = weight_and_inputs(1, rows=8, columns=32)
    inputs[:, 5] = 0.0
    levels, scales = gptq(weight, inputs.T @ inputs, group_size=32)
    assert scales.isfinite().all() and (levels != 0).any()


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, examples, prompt, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from compress.data.tokens import TokenDataset

    out = tmp_path_factory.mktemp("export") / "vllm"
    dataset = TokenDataset(examples, prompt, tokenizer.eos_token_id, 512)
    export_vllm(tiny_checkpoint, dataset, W4A16(group_size=32, calibration_examples=8), out)
    return out


@torch.no_grad()
def unpacked(checkpoint: Path) -> PreTrainedModel:
    """The checkpoint as transformers loads it; compressed-tensors unpacks on the first forward pass."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model(torch.tensor([[5, 6, 7]]))
    return model


def test_transformers_loads_what_was_packed(exported: Path) -> None:
    """The nibbles, unpacked here one by one, times their scales are the weights that transformers computes with."""
    saved = load_file(exported / "model.safetensors")
    model = unpacked(exported)
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"):
        packed, scales = saved[f"{name}.weight_packed"], saved[f"{name}.weight_scale"]
        assert packed.dtype == torch.int32 and scales.dtype == torch.bfloat16
        nibbles = torch.stack([(packed >> (4 * place)) & 15 for place in range(8)], dim=-1).flatten(1) - 8
        expected = dequantised(nibbles, scales, 32).bfloat16()
        assert torch.equal(model.get_submodule(name).weight, expected), name


def test_it_is_what_vllm_reads_as_w4a16(exported: Path, tiny_checkpoint: Path) -> None:
    settings_ = AutoModelForCausalLM.from_pretrained(exported).config.to_dict()["quantization_config"]
    assert (settings_["quant_method"], settings_["format"]) == ("compressed-tensors", "pack-quantized")
    weights = settings_["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 32, True)
    assert settings_["ignore"] == ["lm_head"]
    saved = load_file(exported / "model.safetensors")
    assert saved["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert not any(name.startswith("lm_head") for name in saved), "tied to the embeddings"


def test_it_says_nearly_what_the_student_says(exported: Path, tiny_checkpoint: Path, dataset) -> None:
    student = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    noisy = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in noisy.named_parameters():
            if "proj.weight" in name:
                weight.copy_(rounded(weight.float(), 32, torch.ones(weight.shape[1])))
    assert 0 < mean_kl(student, unpacked(exported), dataset) < mean_kl(student, noisy, dataset)


def test_a_shape_that_cannot_be_cut_into_groups_is_named(tiny_checkpoint: Path, dataset, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"0\.self_attn\.q_proj has 64 inputs.*group_size to 32 or 64"):
        export_vllm(tiny_checkpoint, dataset, W4A16(group_size=128), tmp_path / "vllm")
    assert not (tmp_path / "vllm").exists()
