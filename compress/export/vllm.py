"""The student for vLLM: weights in 4 bits, activations in 16, in compressed-tensors' pack-quantized format."""

import shutil
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.data.tokens import TokenDataset, load_tokenizer
from compress.errors import StageError
from compress.export.gptq import gptq
from compress.recipe import W4A16


@torch.no_grad()
def export_vllm(checkpoint: Path, dataset: TokenDataset, options: W4A16, out: Path) -> None:
    """Write a W4A16 checkpoint to `out`; transformers loads it as vLLM does.

    Every linear layer is quantised by GPTQ on training examples, prompts and answers, layer after layer: each sees
    what the quantised ones before it make of them. Embeddings, norms and head stay in bf16.

    Raises:
        StageError: a layer's inputs cannot be cut into groups of `group_size`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map=device).eval()
    _require_groups(model, options.group_size)
    examples = [torch.tensor([ids], device=device) for ids in dataset.spread(options.calibration_examples)]
    scales: dict[nn.Linear, Tensor] = {}
    for layer in model.model.layers:
        hessians = _input_hessians(model, layer, examples)
        for linear, hessian in hessians.items():
            levels, scales[linear] = gptq(linear.weight, hessian, options.group_size)
            spread = scales[linear].float().repeat_interleave(options.group_size, dim=1)
            linear.weight.data = (levels.float() * spread).bfloat16()
    _save(model, scales, options.group_size, checkpoint, out)


def _require_groups(model: PreTrainedModel, group_size: int) -> None:
    for name, module in model.model.layers.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % group_size:
            raise StageError(
                f"export.vllm: layer {name} has {module.in_features} inputs, which cannot be cut into groups of "
                f"{group_size}; set export.vllm.group_size to 32 or 64, or take a student of another shape"
            )


class _Enough(Exception):
    """The layer in question has seen its inputs; what follows need not run."""


def _input_hessians(model: PreTrainedModel, layer: nn.Module, examples: list[Tensor]) -> dict[nn.Linear, Tensor]:
    """Σ x xᵀ over the inputs x of every linear layer in `layer`, float32 [in, in]."""
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    sums = {
        linear: torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device) for linear in linears
    }

    def add(linear: nn.Linear, inputs: tuple[Tensor]) -> None:
        rows = inputs[0].flatten(0, -2).float()
        sums[linear] += rows.T @ rows

    def stop(*_) -> None:
        raise _Enough

    hooks = [linear.register_forward_pre_hook(add) for linear in linears]
    hooks.append(layer.register_forward_hook(stop))
    try:
        for ids in examples:
            try:
                model.model(input_ids=ids, use_cache=False)
            except _Enough:
                continue
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _save(
    model: PreTrainedModel, scales: dict[nn.Linear, Tensor], group_size: int, checkpoint: Path, out: Path
) -> None:
    weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=group_size, symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]))
    for linear, scale in scales.items():
        linear.weight_scale.data = scale
    compressor = ModelCompressor.from_pretrained_model(model, "pack-quantized")
    compressor.compress_model(model)
    staged = out.with_name(f"{out.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    model.save_pretrained(staged)
    compressor.update_config(str(staged))
    load_tokenizer(checkpoint).save_pretrained(staged)
    shutil.rmtree(out, ignore_errors=True)
    staged.rename(out)
