"""A LoRA adapter on a base in 4 bits (QLoRA, 2305.14314), merged into the base it was trained on.

The adapter is learnt beside NF4(W), so what was learnt is NF4(W) + BA. Merging it into the unquantised W would leave
in W the error that BA was trained to live with, and merging into NF4 weights would round BA away. So the base is
dequantised first: the merged weights are NF4(W) + BA, rounded once, to bf16.
"""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.errors import RecipeError
from compress.quantize import nf4_config
from compress.recipe import Lora
from compress.training import AnswerTrainer


class QloraTrainer(AnswerTrainer):
    """Trains what `qlora_model` made; the finished model is a plain one in bf16."""

    def __init__(self, *args, base: str, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.base = base

    def finished_model(self) -> PreTrainedModel:
        adapter = self.out / "adapter"
        trained: Any = self.accelerator.unwrap_model(self.model)
        trained.save_pretrained(adapter)
        return merged_into_dequantised(self.base, str(adapter))


def lora_config(lora: Lora) -> LoraConfig:
    """A recipe's `lora` section as peft sees it."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )


def qlora_model(base: str, lora: Lora, gradient_checkpointing: bool) -> PeftModel:
    """The base in NF4, frozen, under an untrained adapter.

    Args:
        base: a checkpoint's folder, or a hub name.

    Raises:
        RecipeError: nothing loadable is there.
    """
    quantised = prepare_model_for_kbit_training(
        load_in_nf4(base),
        use_gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    return get_peft_model(quantised, lora_config(lora))


def merged_into_dequantised(base: str, adapter: str) -> PreTrainedModel:
    """NF4(W) + BA for every adapted weight, in bf16.

    Args:
        base: what `qlora_model` was given.
        adapter: a folder that peft saved.
    """
    return PeftModel.from_pretrained(load_in_nf4(base).dequantize(), adapter).merge_and_unload()


def load_in_nf4(base: str) -> PreTrainedModel:
    """A checkpoint quantised as it is loaded.

    Raises:
        RecipeError: nothing loadable is there; no remote code is ever run.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return AutoModelForCausalLM.from_pretrained(
            base, quantization_config=nf4_config(), dtype=torch.bfloat16, device_map=device, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"teacher.model: cannot load {base!r}: {str(error).splitlines()[0]}") from error
