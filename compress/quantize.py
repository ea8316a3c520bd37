"""The student in 4 bits: bitsandbytes NF4 with double quantisation (QLoRA, 2305.14314, section 3)."""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from compress.data.batches import collate
from compress.data.tokens import TokenDataset, load_tokenizer
from compress.errors import StageError


class QuantizeError(StageError):
    """The saved NF4 checkpoint does not give back what was quantised."""


def nf4_config() -> BitsAndBytesConfig:
    """Blocks of 64 with double quantisation, bf16 compute; uint8 storage, the only one vLLM loads."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=["lm_head"],
    )


@torch.no_grad()
def quantize_nf4(checkpoint: Path, dataset: TokenDataset, out: Path) -> None:
    """Write the NF4 checkpoint to `out`, load it again, and compare its logits with those before saving.

    Raises:
        QuantizeError: the logits differ after the round trip.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=nf4_config(), dtype=torch.bfloat16, device_map=device
    )
    tokenizer = load_tokenizer(checkpoint)
    staged = out.with_name(f"{out.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    again = AutoModelForCausalLM.from_pretrained(staged, dtype=torch.bfloat16, device_map=device)
    batch = collate([dataset[index] for index in range(min(4, len(dataset)))], tokenizer.pad_token_id)
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    before, after = model(**inputs).logits, again(**inputs).logits
    if not torch.equal(before, after):
        worst = (before - after).abs().max().item()
        raise QuantizeError(f"{staged}: logits differ by up to {worst:.3g} after saving and loading NF4")
    shutil.rmtree(out, ignore_errors=True)
    staged.rename(out)
