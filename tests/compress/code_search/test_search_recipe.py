"""A search recipe says what it asks for, or what is wrong with it."""

from pathlib import Path

import pytest

from compress.cli import main
from compress.code_search.encoders import encoder_folder
from compress.code_search.recipe import SearchRecipe
from compress.errors import RecipeError
from compress.recipe import Recipe
from compress.recipe_file import load_any_recipe, load_recipe

MINIMAL = """\
task: search
name: paper
data: {corpus: [stdlib]}
teacher: {model: some/encoder}
student: {layers: [1, 3]}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_the_task_says_which_recipe_it_is(tmp_path: Path) -> None:
    assert isinstance(load_any_recipe(written(tmp_path, MINIMAL)), SearchRecipe)
    analysis = "name: paper\ndata: {corpus: [stdlib]}\nteacher: {model: some/model}\n"
    assert isinstance(load_any_recipe(written(tmp_path, analysis)), Recipe)
    assert isinstance(load_any_recipe(written(tmp_path, f"task: analysis\n{analysis}")), Recipe)


def test_other_commands_say_who_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(written(tmp_path, MINIMAL))
    for command in (["search-shape", recipe, "--max-parameters", "1e6"], ["evaluate", "model", "--recipe", recipe]):
        assert main(command) == 2
        assert "has `task: search`, which only `deepcode-compress run` and `doctor` take" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL + "distil: {alpha: 0.5}", ["unknown key `distil`", "did you mean `distill`?"]),
        (MINIMAL + "train: {learning_rat: 1.0e-4}", ["unknown key `learning_rat` in `train`", "`learning_rate`?"]),
        (MINIMAL + "evaluate: {gate: {mrr: 0.9}}", ["unknown key `mrr` in `evaluate.gate`", "`mrr_retention`?"]),
        (MINIMAL + "quantize: {type: nf4}", ["unknown key `quantize`"]),
        (MINIMAL + "distill: {alpha: 1.5}", ["between 0 and 1", "distill"]),
        (MINIMAL + "distill: {alpha_schedule: []}", ["alpha_schedule needs at least one value"]),
        (MINIMAL + "distill: {temperature: 0}", ["must be above 0"]),
        (MINIMAL + "distill: {hard_negatives: -1}", ["must be at least 0"]),
        (MINIMAL + "train: {per_device_train_batch_size: 1}", ["at least 2"]),
        (MINIMAL.replace("[1, 3]", "[3, 1]"), ["rising"]),
        (MINIMAL.replace("[1, 3]", "[0]"), ["from 1"]),
        (MINIMAL.replace("[1, 3]", "[1], dimensions: [16, 32]"), ["falling"]),
        (MINIMAL.replace("task: search", "task: poetry"), ["task"]),
        (MINIMAL.replace("teacher: {model: some/encoder}\n", ""), ["teacher"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        load_any_recipe(written(tmp_path, text))
    assert all(part in str(refused.value) for part in said), str(refused.value)


def test_names_beside_the_recipe_are_paths_and_others_stay_names(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "projects.txt").write_text("encoder\npypi:rich==15.0.0\n")
    text = MINIMAL.replace("some/encoder", "encoder").replace("[stdlib]", "[stdlib, projects.txt]")
    recipe = load_any_recipe(written(tmp_path, text), ["distill.alpha=0.4"])
    assert isinstance(recipe, SearchRecipe)
    path = str((tmp_path / "encoder").resolve())
    assert (recipe.teacher.model, recipe.distill.alpha) == (path, 0.4)
    assert recipe.data.corpus == ["stdlib", path, "pypi:rich==15.0.0"]


def test_a_recipe_of_another_task_is_no_analysis_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="task: search"):
        load_recipe(written(tmp_path, MINIMAL))


def test_a_teacher_s_package_is_pinned(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"pin pypi:encoder to a version \(pypi:encoder==1\.2\.3\)"):
        encoder_folder("pypi:encoder", tmp_path)


def test_a_teacher_s_package_is_the_folder_with_its_weights(tmp_path: Path) -> None:
    model = tmp_path / "encoder-1.0" / "encoder" / "model"
    model.mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"holds no model\.safetensors"):
        encoder_folder("pypi:encoder==1.0", tmp_path)
    (model / "model.safetensors").touch()
    assert encoder_folder("pypi:encoder==1.0", tmp_path) == str(model)
