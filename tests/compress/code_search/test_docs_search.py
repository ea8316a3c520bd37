"""docs/search.md names every key, stage and manifest field of code search, with its default, and no other."""

import msgspec
import pytest

from bundle.search import SearchManifest
from compress.code_search import recipe
from compress.code_search.pipeline import SEARCH_STAGES
from tests.test_docs import defaults, documented, section, table

PAGE = "search.md"


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("Search data", recipe.SearchData),
        ("Search distill", recipe.SearchDistill),
        ("Search train", recipe.SearchTrain),
        ("Search index", recipe.SearchIndex),
    ],
)
def test_every_key_is_there_with_its_default(heading: str, kind: type[msgspec.Struct]) -> None:
    assert {name: documented(cells[0]) for name, cells in table(PAGE, heading).items()} == defaults(kind)


def test_the_keys_of_teacher_student_and_evaluate_are_there_with_their_defaults() -> None:
    told = {name: documented(cells[0]) for name, cells in table(PAGE, "Search teacher and student").items()}
    assert told == {
        **{f"teacher.{name}": value for name, value in defaults(recipe.SearchTeacher).items()},
        **{f"student.{name}": value for name, value in defaults(recipe.SearchStudent).items()},
        "student.dimensions": [],
    }
    evaluate = {name: documented(cells[0]) for name, cells in table(PAGE, "Search evaluate").items()}
    assert evaluate == {**defaults(recipe.SearchEvaluate), "gate": "all 0"}
    gate = table(PAGE, "Search evaluate")["gate"][1]
    assert [name for name in recipe.SearchGate.__struct_fields__ if f"`{name}`" not in gate] == []
    keys = section(PAGE, "Keys of a search recipe")
    assert [name for name in recipe.SearchRecipe.__struct_fields__ if f"`{name}" not in keys] == []


def test_every_stage_is_there_in_its_order() -> None:
    assert tuple(table(PAGE, "Search stages")) == SEARCH_STAGES


def test_every_key_of_a_manifest_is_there() -> None:
    assert set(table(PAGE, "The search bundle")) >= set(SearchManifest.__struct_fields__)
