"""The search over student shapes: what fits, what is on the front, and a search that goes on where it was."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoConfig

from compress.errors import RecipeError
from compress.recipe import NF4_BLOCK, Shape
from compress.recipe_file import load_recipe
from compress.shape_search import Trial, count_parameters, mark_best, search_shape, shapes_within
from compress.student import _check_shape

NANO_TEACHER = Path(__file__).parents[2] / "models" / "nano-teacher"
MICRO = Path(__file__).parents[1] / "support" / "micro.yaml"


def trial(parameters: int, milliseconds: float, kl: float) -> Trial:
    return Trial(Shape(1, 64, 64, 1, 1), parameters, milliseconds, kl)


costs = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@given(st.lists(costs, min_size=1, max_size=8))
def test_the_front_is_what_no_other_beats(points: list[tuple[int, int, int]]) -> None:
    marked = [each.best for each in mark_best([trial(*point) for point in points])]
    assert any(marked)
    for point, best in zip(points, marked, strict=True):
        dominated = any(
            other != point and other[0] <= point[0] and other[1] <= point[1] and other[2] <= point[2]
            for other in points
        )
        assert best != dominated


@pytest.mark.parametrize("budget", [1_000_000, 2_000_000, 5_000_000])
def test_every_shape_fits_the_budget_can_be_cut_and_quantised(budget: int) -> None:
    teacher = AutoConfig.from_pretrained(NANO_TEACHER)
    shapes = shapes_within(teacher, budget)
    assert len(shapes) == len(set(map(repr, shapes)))
    for shape in shapes:
        assert count_parameters(teacher, shape) <= budget
        assert shape.hidden_size % NF4_BLOCK == shape.intermediate_size % NF4_BLOCK == 0
        _check_shape(teacher, shape)


def test_a_budget_below_the_smallest_shape_says_what_that_is() -> None:
    with pytest.raises(RecipeError, match=r"--max-parameters 1,000: the smallest shape .* has [\d,]+ parameters"):
        shapes_within(AutoConfig.from_pretrained(NANO_TEACHER), 1000)


def test_shapes_are_tried_once_and_listed(tmp_path: Path) -> None:
    """A whole search on a teacher trained for a moment; the second call finds all done."""
    recipe = load_recipe(MICRO, ["teacher.train.max_steps=4", "distill.top_k=8"])

    def search() -> tuple[list[Trial], str]:
        console = Console(record=True, width=200, quiet=False, file=(tmp_path / "log").open("a"))
        return search_shape(recipe, tmp_path / "run", console, 100_000, None, steps=2), console.export_text()

    trials, said = search()
    assert len(trials) >= 2 and any(each.best for each in trials)
    assert all(each.kl > 0 and each.milliseconds_per_token > 0 and each.parameters <= 100_000 for each in trials)
    assert "KL from the teacher" in said
    again, said = search()
    assert again == trials
    assert said.count("unchanged, skipped") == 3 + len(trials)
