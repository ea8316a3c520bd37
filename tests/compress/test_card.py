"""A teacher's model card says what its run measured and how its weights came about."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from bundle.rules import load_catalogue
from compress.card import publish_teacher, training_loops
from compress.data.build import DataSummary
from compress.data.corpus import ProjectInfo
from compress.data.examples import Example
from compress.evaluate import Baseline, Confidence, Evaluation, Row
from compress.evaluation.baselines import always_clean
from compress.evaluation.calibrate import choose_thresholds
from compress.evaluation.scores import score
from compress.recipe import Recipe
from compress.recipe_file import load_recipe

CATALOGUE = load_catalogue()
RECIPE = Path(__file__).parents[2] / "recipes" / "nano-teacher.yaml"


def write_history(checkpoint: Path, steps: int) -> None:
    checkpoint.mkdir(exist_ok=True)
    history = [{"step": step, "loss": 1 / step} for step in range(1, steps + 1)]
    (checkpoint / "training.json").write_text(json.dumps({"log_history": history}))


@pytest.fixture
def teacher(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of two loops, of 30 and 20 steps."""
    shutil.copytree(tiny_checkpoint, tmp_path / "teacher" / "model")
    write_history(tmp_path / "teacher" / "first", 30)
    write_history(tmp_path / "teacher" / "model", 20)
    return tmp_path / "teacher" / "model"


@pytest.fixture
def recipe() -> Recipe:
    recipe = load_recipe(RECIPE)
    assert recipe.teacher.focus is not None
    return msgspec.structs.replace(recipe, teacher=msgspec.structs.replace(recipe.teacher, continue_from=None))


def going_on(recipe: Recipe, weights: str) -> Recipe:
    return msgspec.structs.replace(recipe, teacher=msgspec.structs.replace(recipe.teacher, continue_from=weights))


def publish(recipe: Recipe, teacher: Path, examples: list[Example], out: Path) -> str:
    """The card of a teacher that finds nothing."""
    scores = score(examples, always_clean(examples), CATALOGUE)
    numbers = dict.fromkeys(("f1", "precision", "recall", "hygiene_f1", "length_retention", "term_retention"), 0.0)
    sizes = {"parameters": 1, "bytes_on_disk": 1, "kv_bytes_per_token": 1, "peak_memory_bytes": 1}
    row = Row(model="teacher", scores=scores, shown=scores, tokens_per_second=1, units_per_second=1, **numbers, **sizes)
    evaluation = Evaluation(
        name="nano-teacher",
        units={"natural": 1, "planted": 1, "projects": 1},
        rows=[row],
        baselines=[Baseline("always clean", scores)],
        confidence=Confidence({}, 3, 4, 0.25, None),
        thresholds=choose_thresholds([], CATALOGUE, 0.7, 1, 1.0),
        retention={},
        gate={},
        gate_passed=True,
        failures=[],
    )
    data = out.with_name("data")
    data.mkdir()
    split = {"train": 5, "validation": 1, "test": 1}
    project = ProjectInfo("shop", "a folder", "MIT")
    summary = DataSummary([project], ["held"], 7, 0, 2, split, {name: {} for name in split})
    (data / "summary.json").write_bytes(msgspec.json.encode(summary))
    publish_teacher(recipe, teacher, data, evaluation, out)
    return (out / "README.md").read_text()


def test_a_card_shows_both_loops_intervals_and_baselines(recipe, teacher: Path, examples, tmp_path: Path) -> None:
    card = publish(recipe, teacher, examples, tmp_path / "out")
    assert "the code above all: 30 optimiser steps" in card
    assert "the analysis above all: 20 optimiser steps" in card
    assert "| injected: joint rule and line | 0.000 (0.000-0.000) | 0.000 (0.000-0.000) |" in card
    assert "| always clean | 0.000 | 0.000 |" in card
    assert "| expected calibration error, raw | 0.250 |" in card
    assert "0.0 false findings are shown per 100 clean units" in card
    assert "| shop | a folder | MIT |" in card
    curve = (tmp_path / "out" / "learning-curve.svg").read_text()
    assert curve.count('id="axes_') == 2


def test_a_card_names_the_weights_it_went_on_from(recipe, teacher: Path, examples, tmp_path: Path) -> None:
    shutil.rmtree(teacher.with_name("first"))
    card = publish(going_on(recipe, "models/old"), teacher, examples, tmp_path / "out")
    assert "it went on from the weights that `teacher.continue_from` names: old" in card
    assert "the code above all" not in card
    assert (tmp_path / "out" / "learning-curve.svg").read_text().count('id="axes_') == 1


def test_a_card_shows_how_the_weights_it_went_on_from_were_made(
    recipe, teacher: Path, examples, tmp_path: Path
) -> None:
    write_history(tmp_path / "old", 40)
    card = publish(going_on(recipe, str(tmp_path / "old")), teacher, examples, tmp_path / "out")
    assert "the weights it went on from: 40 optimiser steps\n" in card
    assert (tmp_path / "out" / "learning-curve.svg").read_text().count('id="axes_') == 2


def test_a_teacher_of_one_loop_has_one(recipe, teacher: Path) -> None:
    alone = msgspec.structs.replace(recipe, teacher=msgspec.structs.replace(recipe.teacher, focus=None))
    assert [(loop.title, loop.steps) for loop in training_loops(alone, teacher)] == [("training", 20)]
