"""A recipe says what is wrong with it, and where."""

from pathlib import Path

import pytest

from compress.errors import RecipeError
from compress.recipe_file import load_any_recipe, load_recipe

MINIMAL = """
name: small
data: {corpus: [stdlib]}
teacher: {model: some/teacher}
student: {model: some/student}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_a_minimal_recipe_has_the_documented_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, MINIMAL))
    assert (recipe.distill.temperature, recipe.distill.alpha) == (3.0, 0.3)
    assert recipe.train.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL + "distil: {alpha: 0.5}", ["unknown key `distil`", "did you mean `distill`?"]),
        (MINIMAL + "distill: {temprature: 2}", ["unknown key `temprature`", "`distill`", "`temperature`?"]),
        (MINIMAL + "evaluate: {gate: {f1_retension: 1}}", ["`f1_retension`", "`evaluate.gate`", "`f1_retention`?"]),
        (MINIMAL + "distill: {alpha: 1.5}", ["between 0 and 1", "distill"]),
        (MINIMAL + "distill: {alpha_schedule: [0.5, -0.1]}", ["between 0 and 1"]),
        (MINIMAL + "train: {learning_rate: fast}", ["float", "train.learning_rate"]),
        ("name: x\ndata: {corpus: [stdlib]}\nteacher: {}", ["exactly one of `model` and `scratch`"]),
        ("- a\n- b", ["must be a mapping"]),
        ("name: [", ["is not YAML"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_reason(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(written(tmp_path, text))
    for part in said:
        assert part in str(refused.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe at .*absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")


def test_overrides_reach_nested_keys_and_are_checked(tmp_path: Path) -> None:
    file = written(tmp_path, MINIMAL)
    assert load_recipe(file, ["distill.temperature=2", "train.bf16=false"]).distill.temperature == 2.0
    with pytest.raises(RecipeError, match="did you mean `temperature`"):
        load_recipe(file, ["distill.temperatur=2"])
    with pytest.raises(RecipeError, match=r"write it as key\.sub=value"):
        load_recipe(file, ["distill"])


def test_paths_are_found_beside_the_recipe_and_other_names_stay(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    recipe = load_recipe(written(tmp_path, MINIMAL.replace("[stdlib]", "[stdlib, code]")))
    assert recipe.data.corpus == ["stdlib", str((tmp_path / "code").resolve())]
    assert recipe.teacher.model == "some/teacher"


def test_a_list_of_projects_stands_for_its_lines(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "projects.txt").write_text("# ours\npypi:rich==15.0.0  # pretty\n\ncode\n")
    recipe = load_recipe(written(tmp_path, MINIMAL.replace("[stdlib]", "[stdlib, projects.txt]")))
    assert recipe.data.corpus == ["stdlib", "pypi:rich==15.0.0", str((tmp_path / "code").resolve())]
    with pytest.raises(RecipeError, match=r"data\.corpus: cannot read the list of projects .*absent\.txt"):
        load_recipe(written(tmp_path, MINIMAL.replace("[stdlib]", "[absent.txt]")))


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("recipes/*.yaml")), ids=lambda file: file.stem)
def test_the_recipes_we_ship_are_valid(file: Path) -> None:
    assert load_any_recipe(file).name == file.stem
