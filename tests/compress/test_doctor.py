"""What `doctor` sees before any work: on stand-ins of the real recipe that have no weights at all."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from compress import doctor, fitting
from compress.checks import Check
from compress.cli import main
from compress.cost import Size
from compress.data.corpus import SourceFile, find_sources
from compress.doctor import diagnose, is_well, table
from compress.errors import RecipeError
from compress.fitting import recommendation
from compress.memory import activation_bytes
from compress.recipe import Train
from compress.recipe_file import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
REAL = RECIPES / "qwen-7b-to-1.5b.yaml"


def stand_in(folder: Path, tokenizer: PreTrainedTokenizerFast, padded_to: int, **shape: int) -> Path:
    """A Qwen2 without weights: its configuration and its tokenizer."""
    dimensions = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        **shape,
    }
    Qwen2Config(vocab_size=padded_to, dtype="bfloat16", **dimensions).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def models(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Path, Path]:
    """Teacher and student as Qwen's are: one tokenizer, vocabularies padded to different sizes."""
    tokens = len(tokenizer)
    teacher = stand_in(tmp_path / "teacher", tokenizer, tokens + 91)
    return teacher, stand_in(tmp_path / "student", tokenizer, tokens + 7, num_hidden_layers=2, hidden_size=32)


@pytest.fixture
def look(models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Check]]:
    """The checks of the real recipe with the stand-ins in place of its models, by what was looked at."""

    def few(corpus: list[str], cache: Path) -> tuple[list[SourceFile], list]:
        sources, projects = find_sources(corpus, cache)
        return sources[::40], projects

    monkeypatch.setattr(doctor, "find_sources", few)

    def checks(*overrides: str) -> dict[str, Check]:
        named = [f"teacher.model={models[0]}", f"student.model={models[1]}", "data.max_tokens=1024"]
        recipe = load_recipe(REAL, [*named, *overrides])
        return {check.about: check for check in diagnose(recipe, tmp_path / "run")}

    return checks


def test_the_real_recipe_is_well_on_stand_ins_and_every_plan_is_there(look: Callable[..., dict[str, Check]]) -> None:
    found = look()
    assert is_well(list(found.values())), found
    assert found["tokenizer"].found.endswith("the same for teacher and student")
    assert "cut to" in found["vocabulary"].found
    for about in (
        "memory: teacher",
        "memory: soft labels",
        "memory: training",
        "disk: soft labels",
        "disk: models",
        "work",
        "packages",
    ):
        assert found[about].verdict in ("ok", "note"), about
    assert "388 bytes for each of" in found["disk: soft labels"].found
    assert "left out" in found["length"].found
    assert "consider distill.labels: top_k" in found["teaching"].found, "the stand-ins' vocabulary is small"


def test_the_first_token_that_differs_is_named(look, models, tokenizer) -> None:
    other = PreTrainedTokenizerFast.from_pretrained(models[1])
    other.add_tokens(["only the student has this"])
    other.save_pretrained(models[1])
    found = look()
    assert found["tokenizer"].verdict == "wrong"
    assert f"token {len(tokenizer)} is 'nothing' for the teacher" in found["tokenizer"].found


def test_a_vocabulary_below_the_tokenizer_is_wrong(look, models, tokenizer) -> None:
    stand_in(models[1], tokenizer, len(tokenizer) - 1)
    assert look()["vocabulary"].verdict == "wrong"


def test_a_model_that_is_not_there_is_named(look) -> None:
    found = look("student.model=/no/such/model")
    assert found["models"].verdict == "wrong"
    assert "student.model" in found["models"].found and "/no/such/model" in found["models"].found


def test_layers_are_paired_by_depth_and_a_missing_one_is_wrong(look) -> None:
    online = "distill.teacher=online"
    assert look(online, "distill.hidden={layer_map: [1, 2]}")["hidden layers"].found == "1-2, 2-4"
    assert look(online, "distill.attention={layer_map: [3]}")["attention layers"].verdict == "wrong"


def test_a_prompt_of_another_family_is_noted(look, models) -> None:
    for folder in models:
        text = (folder / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|turn|>"))
    assert "<|im_start|> is no token here" in look()["prompt"].found


def test_examples_beyond_the_limit_are_counted_and_none_left_is_wrong(look) -> None:
    assert look("data.max_tokens=700")["length"].verdict in ("ok", "note")
    found = look("data.max_tokens=8")
    assert found["data"].verdict == "wrong" and found["length"].found.startswith("100.0% of examples")


def test_a_package_that_is_not_fetched_yet_is_not_fetched_for_a_look(look) -> None:
    found = look("data.corpus=['pypi:no-such-package==0.0.1']")["data"]
    assert (found.verdict, found.found) == ("note", "no code to sample here yet: the run fetches published packages")


def test_more_tokens_than_a_model_has_positions_is_wrong(look) -> None:
    found = look("data.max_tokens=4096")["length"]
    assert (found.verdict, found.found) == ("wrong", "the student has 2048 positions: lower data.max_tokens to that")


def test_too_little_memory_names_the_three_knobs(look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda: ("memory", 100_000))
    found = look()["memory: training"]
    assert found.verdict == "wrong"
    for knob in ("per_device_train_batch_size", "gradient_checkpointing", "adamw_bnb_8bit"):
        assert knob in found.found


def test_what_to_do_with_the_teacher_is_recommended() -> None:
    named = ["teacher.model=a", "student.model=b"]

    def advice(*overrides: str, **known) -> Check:
        situation = {"vocabulary": 4096, "together": True, "epochs": 3.0, "room": True, **known}
        return recommendation(
            load_recipe(REAL, [*named, "distill.temperature=1", "distill.labels=top_k", *overrides]), **situation
        )

    assert advice() == Check("teaching", "ok", advice().found)
    assert "labels: top_k" in advice().found
    assert "consider distill.labels: sampled" in advice("distill.temperature=3", vocabulary=151_936).found
    assert "consider distill.teacher: online" in advice(room=False).found
    assert advice(room=False, together=False).verdict == "ok", "an online teacher would not fit"
    assert advice("distill.teacher=online", "distill.hidden={}").verdict == "ok"
    assert "consider distill.labels: top_k" in advice("distill.teacher=online").found


@pytest.mark.parametrize(("overrides", "code"), [([], 0), (["--set", "data.max_tokens=8"], 1)])
def test_the_command_ends_with_one_when_something_is_wrong(look, models, overrides, code, capsys) -> None:
    named = ["--set", f"teacher.model={models[0]}", "--set", f"student.model={models[1]}"]
    assert main(["doctor", str(REAL), *named, "--set", "data.max_tokens=1024", *overrides]) == code
    assert "memory: training" in capsys.readouterr().out


def test_brackets_in_what_was_found_are_shown(look) -> None:
    page = io.StringIO()
    Console(file=page, width=200).print(table("real", [Check("x", "wrong", "[bold]as it is")]))
    assert "[bold]as it is" in page.getvalue()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_estimate_of_activations_is_near_what_autograd_keeps(checkpointing: bool) -> None:
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    held: list[torch.Tensor] = []  # so that no storage is freed and its place used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(keep(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=torch.randint(0, 64, (4, 64)), use_cache=False)
    train = Train(bf16=False, gradient_checkpointing=checkpointing)
    estimate = activation_bytes(config, Size.of(config), 256, 64, train, eager=True)
    if checkpointing:
        # What is kept, before one layer at a time is made again.
        one = activation_bytes(config, Size.of(config), 256, 64, Train(bf16=False), eager=True) / 6
        estimate -= int(one)
    assert 0.7 < estimate / sum(kept.values()) < 1.4


def test_a_recipe_error_still_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "no.yaml")]) == 2
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "no.yaml")
