"""A student is made of the teacher's own layers and weights, or says why it can not be."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, DistilBertConfig, DistilBertModel, PreTrainedModel

from compress.code_search.encoders import load_encoder
from compress.code_search.recipe import SearchStudent
from compress.code_search.student import cut, start_student
from compress.errors import RecipeError


@pytest.fixture(scope="module")
def teacher(tiny_encoder: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(tiny_encoder, dtype=torch.float32).eval()


def hidden_states(model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states


def test_a_student_of_all_layers_is_the_teacher(teacher: PreTrainedModel) -> None:
    same = cut(teacher, SearchStudent(layers=(1, 2, 3))).eval()
    torch.testing.assert_close(hidden_states(same)[-1], hidden_states(teacher)[-1])


def test_the_first_layers_alone_give_the_teacher_s_state_after_them(teacher: PreTrainedModel) -> None:
    student = cut(teacher, SearchStudent(layers=(1, 2))).eval()
    torch.testing.assert_close(hidden_states(student)[-1], hidden_states(teacher)[2])
    assert student.config.num_hidden_layers == 2


def test_a_student_in_training_sees_all_of_a_text(teacher: PreTrainedModel) -> None:
    """The teacher has dropout, its student none: two passes in training give the same."""
    student = cut(teacher, SearchStudent(layers=(1, 2))).train()
    once, again = (hidden_states(student)[-1] for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    assert teacher.config.hidden_dropout_prob > 0


def test_a_later_layer_reads_what_the_layer_before_it_is_now(teacher: PreTrainedModel) -> None:
    student = cut(teacher, SearchStudent(layers=(1, 3))).eval()
    states = hidden_states(student)
    mask = torch.ones(1, 1, 1, states[1].shape[1], dtype=torch.bool)
    with torch.no_grad():
        expected = teacher.encoder.layer[2](states[1], mask)
    torch.testing.assert_close(states[2], expected[0] if isinstance(expected, tuple) else expected)


def test_a_neuron_that_writes_nothing_goes_first(teacher: PreTrainedModel) -> None:
    silenced = AutoModel.from_config(teacher.config).eval()
    silenced.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        for layer in silenced.encoder.layer:
            layer.output.dense.weight[:, 7:39] = 0
    student = cut(silenced, SearchStudent(layers=(1, 2, 3), intermediate_size=96)).eval()
    torch.testing.assert_close(hidden_states(student)[-1], hidden_states(silenced)[-1])


def test_a_head_that_writes_nothing_goes_first(teacher: PreTrainedModel) -> None:
    narrow = cut(teacher, SearchStudent(layers=(1,), hidden_size=48))
    assert (narrow.config.hidden_size, narrow.config.num_attention_heads) == (48, 3)
    silenced = AutoModel.from_config(teacher.config)
    silenced.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        silenced.encoder.layer[0].attention.output.dense.weight[:, 16:32] = 0  # the second of four heads
    kept = cut(silenced, SearchStudent(layers=(1,), hidden_size=48))
    value = silenced.encoder.layer[0].attention.self.value.bias
    expected = torch.cat([value[:16], value[32:]])
    torch.testing.assert_close(kept.encoder.layer[0].attention.self.value.bias, expected)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (SearchStudent(layers=(1, 4)), "there is no layer 4, the teacher has 3"),
        (SearchStudent(layers=(1,), hidden_size=128), "hidden_size is 128: it must be 1 to the teacher's 64"),
        (SearchStudent(layers=(1,), hidden_size=40), "a multiple of a head's width, 16"),
        (SearchStudent(layers=(1,), intermediate_size=129), "intermediate_size is 129"),
    ],
)
def test_a_shape_that_can_not_be_cut_is_an_error(teacher: PreTrainedModel, student: SearchStudent, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        cut(teacher, student)


def test_another_layout_is_an_error_that_names_it() -> None:
    other = DistilBertModel(DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=16))
    with pytest.raises(RecipeError, match="the teacher is distilbert"):
        cut(other, SearchStudent(layers=(1,)))


def test_a_student_s_own_width_is_no_shorter_one(tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="64 is not below the student's width, 64"):
        start_student(tiny_encoder, SearchStudent(layers=(1,), dimensions=(64,)), 32, tmp_path)


def test_a_student_pools_as_its_teacher_and_reads_as_many_tokens(tiny_encoder: Path, tmp_path: Path) -> None:
    start_student(tiny_encoder, SearchStudent(layers=(1, 2, 3)), 32, tmp_path)
    texts = ["def parse(text): return text.split()", "x " * 100]
    student, teacher = (load_encoder(str(folder), 32) for folder in (tmp_path / "model", tiny_encoder))
    torch.testing.assert_close(
        student.encode(texts, convert_to_tensor=True), teacher.encode(texts, convert_to_tensor=True)
    )


@pytest.mark.parametrize(
    ("name", "max_tokens", "said"), [("absent-encoder", 32, "cannot load"), (None, 4096, "positions")]
)
def test_an_encoder_that_can_not_be_used_is_an_error(
    tiny_encoder: Path, tmp_path: Path, name: str | None, max_tokens: int, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_encoder(str(tmp_path / name) if name else str(tiny_encoder), max_tokens)
