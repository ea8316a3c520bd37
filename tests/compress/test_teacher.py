"""The teacher: what an adapter adds is in the merged weights, and correction changes what it should."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Qwen2ForCausalLM

from compress.data.examples import write_examples
from compress.errors import RecipeError
from compress.qlora import load_in_nf4
from compress.recipe import Data, Lora, Recipe, Student, Teacher, Train
from compress.teacher import checkpoint_fingerprint, load_teacher, prepare_teacher


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


def test_only_what_a_teacher_is_made_of_counts_as_a_change_of_it(tiny_checkpoint, tmp_path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "teacher"))
    teacher = Teacher(model=str(folder))
    before = checkpoint_fingerprint(teacher)
    (folder / "README.md").write_text("its card")
    assert checkpoint_fingerprint(teacher) == before
    (folder / "config.json").write_text("{}")
    assert checkpoint_fingerprint(teacher) != before


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


def qlora_teacher(checkpoint: Path, **keys) -> Teacher:
    train = Train(learning_rate=2e-2, max_steps=6, per_device_train_batch_size=4, bf16=False)
    return Teacher(model=str(checkpoint), train=train, lora=Lora(r=4, lora_alpha=8, quantize="nf4"), **keys)


def test_an_adapter_trained_in_4_bits_is_merged_into_what_it_was_trained_on(
    tiny_checkpoint, data, catalogue, dataset, tmp_path
) -> None:
    from peft import PeftModel

    (tmp_path / "teacher").mkdir()
    prepare_teacher(recipe_with(qlora_teacher(tiny_checkpoint)), catalogue, data, tmp_path / "teacher")
    corrected = Qwen2ForCausalLM.from_pretrained(tmp_path / "teacher" / "model", dtype=torch.float32)
    assert corrected.config.to_dict().get("quantization_config") is None
    adapter = tmp_path / "teacher" / "checkpoints" / "adapter"
    unmerged = PeftModel.from_pretrained(load_in_nf4(str(tiny_checkpoint)), adapter)
    elsewhere = PeftModel.from_pretrained(
        Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32), adapter
    )
    ids = torch.tensor([dataset.rows[0].ids])
    with torch.no_grad():
        trained, merged, into_unquantised = (each(ids).logits.float() for each in (unmerged, corrected, elsewhere))
        plain = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)(ids).logits
    off = (merged - trained).pow(2).mean().sqrt()
    assert off < 0.2 * (into_unquantised - trained).pow(2).mean().sqrt()
    assert off < 0.1 * (trained - plain).pow(2).mean().sqrt()


def test_a_base_with_an_adapter_is_merged_before_it_is_quantised(tiny_checkpoint, adapter, data, catalogue, tmp_path):
    (tmp_path / "teacher").mkdir()
    teacher = qlora_teacher(tiny_checkpoint, adapter=str(adapter))
    prepare_teacher(recipe_with(teacher), catalogue, data, tmp_path / "teacher")
    base = Qwen2ForCausalLM.from_pretrained(tmp_path / "teacher" / "base", dtype=torch.bfloat16).state_dict()
    expected = load_teacher(str(tiny_checkpoint), str(adapter))[0].bfloat16().state_dict()
    assert all(torch.equal(base[name], expected[name]) for name in expected)
