"""Pairs: a docstring, and the function without it; no pair twice, and projects held out whole."""

from pathlib import Path

import msgspec
import pytest

from bundle.units import cut_units
from compress.code_search.data import PairSummary, build_pairs, query_of, read_pairs
from compress.code_search.recipe import SearchData
from compress.data.build import SPLITS
from compress.data.corpus import find_sources
from compress.errors import RecipeError

FUNCTION = '''\
def {name}(lines, limit={number}):
    """{docstring}"""
    kept = [line for line in lines if line.strip()]
    return kept[:limit]
'''


def project(folder: Path, functions: dict[str, str], number: int = 10) -> str:
    folder.mkdir()
    text = "\n\n".join(
        FUNCTION.format(name=name, docstring=docstring, number=number) for name, docstring in functions.items()
    )
    (folder / "code.py").write_text(text)
    return str(folder)


def built(data: SearchData, out: Path) -> PairSummary:
    sources, projects = find_sources(data.corpus, out)
    out.mkdir()
    return build_pairs(data, sources, projects, 7, out)


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    return [
        project(
            tmp_path / name,
            {f"{name}_{place}": f"Drop the blank lines of {name} number {place}." for place in range(4)},
        )
        for name in ("train_a", "train_b", "held", "valid")
    ]


def options(corpus: list[str], **more: object) -> SearchData:
    return SearchData(corpus=corpus, holdout=["held"], test_fraction=0.0, validation_fraction=0.3, **more)


def test_a_pair_is_a_docstring_and_the_function_without_it(corpus: list[str], tmp_path: Path) -> None:
    built(options(corpus), tmp_path / "out")
    pairs = [pair for split in SPLITS for pair in read_pairs(tmp_path / "out" / f"{split}.jsonl")]
    assert len(pairs) == 16
    for pair in pairs:
        assert pair.query.startswith("Drop the blank lines of")
        assert pair.document.split("\n")[1].startswith(f"def {pair.project}_")
        assert "Drop" not in pair.document and "return kept[:limit]" in pair.document


def test_projects_are_held_out_whole(corpus: list[str], tmp_path: Path) -> None:
    summary = built(options(corpus), tmp_path / "out")
    projects = {split: {pair.project for pair in read_pairs(tmp_path / "out" / f"{split}.jsonl")} for split in SPLITS}
    assert projects["test"] == {"held"}
    assert not projects["train"] & (projects["validation"] | projects["test"])
    assert summary.held_out_projects == sorted(projects["validation"] | projects["test"])
    assert summary == msgspec.json.decode((tmp_path / "out" / "summary.json").read_bytes(), type=PairSummary)


def test_a_function_or_a_docstring_that_was_there_before_makes_no_pair(corpus: list[str], tmp_path: Path) -> None:
    copies = project(
        tmp_path / "zz_copies",
        {
            "train_a_0": "Something that nobody else has said.",  # train_a's code
            "other": "Drop the  blank lines of HELD number 1.",  # held's words
            "own": "Leave out what is empty of these.",
        },
    )
    summary = built(options([*corpus, copies]), tmp_path / "out")
    assert summary.duplicates == 2
    assert sum(summary.pairs.values()) == 17


def test_at_most_so_many_pairs(corpus: list[str], tmp_path: Path) -> None:
    summary = built(options(corpus, max_pairs_per_project=3, max_pairs=5), tmp_path / "out")
    assert summary.pairs["train"] == 5
    assert summary.pairs["test"] == 3


def test_a_split_without_pairs_is_an_error_that_says_what_to_do(corpus: list[str], tmp_path: Path) -> None:
    data = msgspec.structs.replace(options(corpus), holdout=[])
    with pytest.raises(RecipeError, match=r"leaves the test split with 0 documented functions .* data\.holdout"):
        built(data, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "query"),
    [
        ('def f(x):\n    """Add one to a number."""\n    return x + 1\n', "Add one to a number."),
        ('def f(x):\n    """Add one."""\n    return x + 1\n', None),
        ("def f(x):\n    y = x\n    return y + 1\n", None),
        ('def f(x):\n    """Add one to a number, as is."""\n', None),
        ('def f(x): """Add one to a number."""; return x\n\n', None),
        ('class F:\n    """A number that counts things."""\n    x = 1\n    y = 2\n', None),
    ],
    ids=["documented", "too short", "undocumented", "a docstring alone", "on the line of code", "a class"],
)
def test_a_query_is_a_function_s_docstring_that_its_code_does_not_hold(source: str, query: str | None) -> None:
    assert [query_of(unit) for unit in cut_units(source)] == ([query] if cut_units(source) else [])
