"""The teacher: what an adapter adds is in the merged weights, and correction changes what it should."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Qwen2ForCausalLM

from compress.data.examples import write_examples
from compress.errors import RecipeError
from compress.recipe import Data, Lora, Recipe, Student, Teacher, Train
from compress.teacher import load_teacher, prepare_teacher


def recipe_with(teacher: Teacher) -> Recipe:
    return Recipe(name="test", data=Data(corpus=["stdlib"]), teacher=teacher, student=Student(model="unused"))


@pytest.fixture
def data(examples, tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    write_examples(tmp_path / "data" / "train.jsonl", examples)
    return tmp_path / "data"


@pytest.fixture
def adapter(model: Qwen2ForCausalLM, tmp_path: Path) -> Path:
    """A LoRA adapter whose effect is large enough to see."""
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_merged_adapter_says_what_the_unmerged_one_says(tiny_checkpoint, adapter, dataset) -> None:
    from peft import PeftModel

    ids = torch.tensor([dataset.rows[0].ids])
    base = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    with torch.no_grad():
        plain = base(ids).logits
        unmerged = PeftModel.from_pretrained(base, adapter)(ids).logits
        merged = load_teacher(str(tiny_checkpoint), str(adapter))[0].float()(ids).logits
    torch.testing.assert_close(merged, unmerged, rtol=1e-3, atol=1e-3)
    assert (merged - plain).abs().max() > 0.1


@pytest.mark.parametrize("lora", [None, Lora(r=4, lora_alpha=8)])
def test_correction_learns_the_domain_and_ends_as_a_plain_checkpoint(
    lora, tiny_checkpoint, data, catalogue, tmp_path
) -> None:
    train = Train(learning_rate=5e-3, max_steps=30, per_device_train_batch_size=4, bf16=False)
    teacher = Teacher(model=str(tiny_checkpoint), train=train, lora=lora)
    (tmp_path / "teacher").mkdir()
    prepare_teacher(recipe_with(teacher), catalogue, data, tmp_path / "teacher")
    corrected = tmp_path / "teacher" / "model"
    losses = [
        entry["loss"]
        for entry in json.loads((corrected / "training.json").read_text())["log_history"]
        if "loss" in entry
    ]
    assert losses[-1] < 0.9 * losses[0]
    names = {name for name, _ in Qwen2ForCausalLM.from_pretrained(corrected).named_parameters()}
    assert names == {name for name, _ in Qwen2ForCausalLM.from_pretrained(tiny_checkpoint).named_parameters()}


def test_what_cannot_be_loaded_is_named(tiny_checkpoint, tmp_path) -> None:
    with pytest.raises(RecipeError, match="absent"):
        load_teacher(str(tmp_path / "absent"), None)
    with pytest.raises(RecipeError, match=r"teacher\.adapter: cannot load '.*no-adapter'"):
        load_teacher(str(tiny_checkpoint), str(tmp_path / "no-adapter"))


def test_a_tokenizer_whose_padding_is_its_eos_is_refused(tiny_checkpoint, model, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "padded")
    model.save_pretrained(tmp_path / "padded")
    with pytest.raises(RecipeError, match="pad token that is not its EOS"):
        load_teacher(str(tmp_path / "padded"), None)
