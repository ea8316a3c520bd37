"""Where students start: pruning keeps what the teacher does, and vocabularies must be one."""

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from compress.data.tokens import TokenDataset
from compress.errors import RecipeError
from compress.recipe import Shape
from compress.student import calibration_batch, prune, require_equal_tokenizers

FULL = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def teacher_of(kind: type, config: type, vocabulary: int, tied: bool):
    torch.manual_seed(0)
    model = kind(
        config(**FULL, vocab_size=vocabulary, head_dim=16, tie_word_embeddings=tied, initializer_range=0.2)
    ).eval()
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight") and name != "model.norm.weight":
            weight.data.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(("kind", "config"), [(Qwen2ForCausalLM, Qwen2Config), (Qwen3ForCausalLM, Qwen3Config)])
@pytest.mark.parametrize("tied", [True, False])
def test_pruning_to_the_full_shape_changes_nothing(kind, config, tied, dataset: TokenDataset, tokenizer) -> None:
    """Rotating the residual stream and folding the norms is exact; only cutting loses something."""
    teacher = teacher_of(kind, config, len(tokenizer), tied)
    batch = calibration_batch(dataset, tokenizer)
    student = prune(teacher, Shape(**FULL), batch).eval()
    inputs = {"input_ids": batch["input_ids"][:4, :40]}
    with torch.no_grad():
        torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits, rtol=1e-3, atol=1e-3)


def test_a_cut_student_has_the_shape_and_starts_nearer_than_noise(dataset: TokenDataset, tokenizer) -> None:
    teacher = teacher_of(Qwen2ForCausalLM, Qwen2Config, len(tokenizer), True)
    batch = calibration_batch(dataset, tokenizer)
    small = {**FULL, "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64}
    student = prune(teacher, Shape(**small), batch).eval()
    assert {name: getattr(student.config, name) for name in small} == small
    torch.manual_seed(1)
    noise = Qwen2ForCausalLM(student.config).eval()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    valid = batch["attention_mask"].bool()

    def distance(model) -> float:
        with torch.no_grad():
            ours, theirs = model(**inputs).logits[valid], teacher(**inputs).logits[valid]
        return 1 - torch.cosine_similarity(ours, theirs, dim=-1).mean().item()

    assert distance(student) < 0.8 * distance(noise)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 128}, "student.prune.hidden_size is 128, more than the teacher's 64"),
        ({"num_attention_heads": 3}, "3 heads over 2 key-value heads"),
        ({"num_attention_heads": 4, "num_key_value_heads": 1}, "4 heads over 1 key-value heads"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict, said: str, dataset: TokenDataset, tokenizer) -> None:
    teacher = teacher_of(Qwen2ForCausalLM, Qwen2Config, len(tokenizer), True)
    with pytest.raises(RecipeError, match=said):
        prune(teacher, Shape(**{**FULL, **change}), calibration_batch(dataset, tokenizer))


def test_different_tokenizers_are_refused_by_their_first_difference(tiny_checkpoint, tokenizer) -> None:
    other = AutoTokenizer.from_pretrained(tiny_checkpoint)
    require_equal_tokenizers(tokenizer, other)
    other.add_tokens(["<new>"])
    with pytest.raises(RecipeError, match=rf"token {len(tokenizer)} is 'nothing' for the teacher and '<new>'"):
        require_equal_tokenizers(tokenizer, other)
