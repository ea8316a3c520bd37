"""Units become examples: true answers, splits by project, the same bytes for the same seed."""

import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.answer import answer_schema
from bundle.rules import Catalogue, load_catalogue
from bundle.units import UnitLine, cut_units
from compress.data.build import DataSummary, build_examples
from compress.data.corpus import find_sources, split_of
from compress.data.examples import (
    Example,
    draw_example,
    natural_example,
    planted_example,
    read_examples,
    rule_counts,
    write_examples,
)
from compress.data.hygiene import Label, hygiene_labels
from compress.errors import RecipeError
from compress.evaluation.answers import read_answer
from compress.recipe import Data

CATALOGUE = load_catalogue()
STDLIB = Path(sysconfig.get_path("stdlib"))
REAL_FILES = sorted([*STDLIB.glob("[a-h]*.py"), *(STDLIB / "email").glob("*.py")])


def natural_examples(files: list[Path]) -> list[Example]:
    labels = hygiene_labels(files, CATALOGUE)
    return [
        natural_example("stdlib", file.name, unit, labels.get(file, []))
        for file in files
        for unit in cut_units(file.read_text(encoding="utf-8"))
    ]


REAL_EXAMPLES = natural_examples(REAL_FILES)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(REAL_EXAMPLES), st.sampled_from([None, "injected", "hygiene"]), st.integers(0, 10_000))
def test_the_true_answer_of_real_code_is_one_a_student_may_give(natural: Example, origin, seed: int) -> None:
    example = natural if origin is None else planted_example(natural, origin, random.Random(seed))
    if example is None:
        return
    answer = read_answer(example.answer_text, example, CATALOGUE)
    assert answer is not None and answer.findings == example.findings
    schema = answer_schema(CATALOGUE.ids, len(example.unit.lines))
    jsonschema.validate(msgspec.json.decode(example.answer_text), schema)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(REAL_EXAMPLES), st.integers(0, 10_000))
def test_a_planted_unit_keeps_its_place_and_gains_one_finding(natural: Example, seed: int) -> None:
    planted = planted_example(natural, "injected", random.Random(seed))
    if planted is None:
        return
    assert len(planted.findings) == len(natural.findings) + 1
    assert planted.planted in {finding.rule for finding in planted.findings}
    before, after = natural.unit.lines, planted.unit.lines
    assert [(line.number, line.removed) for line in before] == [(line.number, line.removed) for line in after]
    assert sum(old.text != new.text for old, new in zip(before, after, strict=True)) == 1


def test_real_code_offers_places_for_every_kind_of_finding() -> None:
    assert sum(bool(example.findings) for example in REAL_EXAMPLES) > 50
    planted = [planted_example(example, "injected", random.Random(0)) for example in REAL_EXAMPLES[:200]]
    assert len({example.planted for example in planted if example is not None}) >= 5


def test_a_fix_longer_than_an_answer_allows_is_left_out() -> None:
    line = f"    if {'x' * 40} == None:"
    unit = cut_units(f"def f():\n{line}\n        return 1\n")[0]
    label = Label("none-comparison", 2, 7, len(line) - 1, f"{'x' * 60} is None")
    finding = natural_example("p", "p.py", unit, [label]).findings[0]
    assert (finding.rule, finding.line, finding.fix) == ("none-comparison", 2, None)


def test_a_finding_on_a_line_the_unit_does_not_hold_is_another_units() -> None:
    unit = cut_units("X = 1\n\ndef f(x):\n    return x\n")[1]
    assert natural_example("p", "p.py", unit, [Label("shadowed-builtin", 1, 0, 1, None)]).findings == ()


def test_columns_are_the_units_own_once_indentation_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text("class A:\n\tdef f(self, x):\n\t\treturn 'é' == x == None\n")
    unit = cut_units(file.read_text())[0]
    example = natural_example("p", "m.py", unit, hygiene_labels([file], CATALOGUE)[file])
    assert [(finding.rule, finding.line) for finding in example.findings] == [("none-comparison", 2)]
    assert example.findings[0].at in unit.lines[1].text and "None" in example.findings[0].at


def test_a_draw_is_natural_or_planted_by_its_share() -> None:
    drawn = {
        share: [draw_example(each, share, random.Random(number)) for number, each in enumerate(REAL_EXAMPLES[:300])]
        for share in (0.0, 0.5, 1.0)
    }
    planted = {share: sum(example.planted is not None for example in kept) for share, kept in drawn.items()}
    assert drawn[0.0] == REAL_EXAMPLES[:300]
    assert 0 == planted[0.0] < planted[0.5] < planted[1.0]


def test_examples_are_read_back_as_written(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    write_examples(file, REAL_EXAMPLES[:20])
    assert read_examples(file) == REAL_EXAMPLES[:20]
    assert [each.name for each in tmp_path.iterdir()] == ["train.jsonl"]


def test_only_a_docstring_gives_a_summary() -> None:
    with_one, without = cut_units('def f(x):\n    """Return it at once."""\n    return x\n\ndef g(x):\n    return x\n')
    assert natural_example("p", "p.py", with_one, []).answer_text == '{"findings":[],"summary":"Return it at once."}'
    assert not natural_example("p", "p.py", without, []).has_summary


# Building

FUNCTION = """
def {name}_{number}(items, limit):
    total = 0
    for item in items:
        if item < limit and item != {number}:
            total = total + item
    return total
"""


def make_projects(root: Path, count: int = 24, functions: int = 4) -> list[str]:
    """Small projects, each with functions of its own and one that all of them share."""
    for project in range(count):
        folder = root / f"project{project}"
        folder.mkdir(parents=True)
        own = "".join(FUNCTION.format(name=f"sum{project}", number=number) for number in range(functions))
        (folder / "own.py").write_text(own + FUNCTION.format(name="shared", number=0))
    return [str(root / f"project{project}") for project in range(count)]


def build(data: Data, out: Path, catalogue: Catalogue = CATALOGUE, seed: int = 7) -> DataSummary:
    out.mkdir(parents=True)
    sources, projects = find_sources(data.corpus, out)
    return build_examples(data, sources, projects, catalogue, seed, out)


def read_splits(out: Path) -> dict[str, list[Example]]:
    return {name: read_examples(out / f"{name}.jsonl") for name in ("train", "validation", "test")}


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(corpus=make_projects(tmp_path / "code"), test_fraction=0.3, validation_fraction=0.2)


def test_a_project_is_in_one_split_only(data: Data, tmp_path: Path) -> None:
    data = msgspec.structs.replace(data, holdout=["project3"])
    summary = build(data, tmp_path / "out")
    projects = {name: {e.project for e in examples} for name, examples in read_splits(tmp_path / "out").items()}

    assert "project3" in projects["test"]
    for name, owned in projects.items():
        assert owned == {p for p in owned if split_of(p, data.split_seed, ["project3"], 0.3, 0.2) == name}
    assert set(summary.held_out_projects) == projects["test"] | projects["validation"]
    assert projects["train"].isdisjoint(summary.held_out_projects)


def test_no_held_out_code_was_trained_on_and_duplicates_are_counted(data: Data, tmp_path: Path) -> None:
    summary = build(data, tmp_path / "out")
    splits = read_splits(tmp_path / "out")

    assert summary.duplicate_units == 23
    natural = {name: [e.unit.code for e in kept if e.planted is None] for name, kept in splits.items()}
    assert set(natural["train"]).isdisjoint(natural["test"] + natural["validation"])
    assert sum(len({e.unit.name for e in kept if e.unit.name.startswith("shared")}) for kept in splits.values()) == 1


def test_held_out_units_are_natural_once_and_planted_as_they_offer_places(data: Data, tmp_path: Path) -> None:
    build(data, tmp_path / "out")
    test = read_splits(tmp_path / "out")["test"]
    places = [(example.project, example.unit.name) for example in test if example.planted is None]
    assert len(places) == len(set(places))
    planted = [(example.project, example.unit.name) for example in test if example.planted is not None]
    assert planted and set(planted) <= set(places)


def test_the_summary_counts_what_was_written(data: Data, tmp_path: Path) -> None:
    summary = build(data, tmp_path / "out")
    splits = read_splits(tmp_path / "out")
    assert summary == msgspec.json.decode((tmp_path / "out" / "summary.json").read_bytes(), type=DataSummary)
    assert summary.examples == {name: len(examples) for name, examples in splits.items()}
    assert summary.findings == {name: rule_counts(examples, CATALOGUE) for name, examples in splits.items()}
    assert summary.files == 24


@pytest.mark.parametrize("draws", [1, 3])
def test_a_training_unit_is_drawn_as_often_as_asked(data: Data, tmp_path: Path, draws: int) -> None:
    build(msgspec.structs.replace(data, draws=draws), tmp_path / "out")
    names = [(e.project, e.unit.name) for e in read_splits(tmp_path / "out")["train"]]
    assert {names.count(name) for name in names} == {draws}


BUILD = """
import sys
from pathlib import Path
from bundle.rules import load_catalogue
from compress.data.build import build_examples
from compress.data.corpus import find_sources
from compress.recipe import Data
out, seed, corpus = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
out.mkdir()
data = Data(corpus=corpus, test_fraction=0.3, validation_fraction=0.2)
build_examples(data, *find_sources(corpus, out), load_catalogue(), seed, out)
"""


def test_the_same_seed_gives_the_same_bytes_in_every_process(data: Data, tmp_path: Path) -> None:
    def built(name: str, hash_seed: str, seed: int) -> dict[str, bytes]:
        out = tmp_path / name
        command = [sys.executable, "-c", BUILD, str(out), str(seed), *data.corpus]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": hash_seed})
        return {file.name: file.read_bytes() for file in out.iterdir()}

    first = built("first", "1", seed=7)
    assert len(first) == 4
    assert built("again", "2", seed=7) == first
    assert built("other", "1", seed=8)["train.jsonl"] != first["train.jsonl"]


def test_clean_units_are_the_majority_in_training(tmp_path: Path) -> None:
    folders = [str(STDLIB / name) for name in ("asyncio", "email", "http", "json", "logging", "unittest", "xml")]
    data = Data(corpus=folders, holdout=["json"], test_fraction=0.0, validation_fraction=0.4, max_units=500)
    build(data, tmp_path / "out")
    train = read_splits(tmp_path / "out")["train"]
    assert len(train) > 100
    assert sum(not example.findings for example in train) > len(train) / 2
    assert any(example.planted for example in train)


def test_no_project_gives_more_units_than_allowed(data: Data, tmp_path: Path) -> None:
    build(msgspec.structs.replace(data, max_units_per_project=2), tmp_path / "out")
    for examples in read_splits(tmp_path / "out").values():
        owned = [(e.project, e.unit.name) for e in examples]
        assert all(len({unit for p, unit in owned if p == project}) <= 2 for project, _ in owned)


def test_no_more_units_than_allowed_in_all(data: Data, tmp_path: Path) -> None:
    build(msgspec.structs.replace(data, max_units=30), tmp_path / "out")
    units = {(e.project, e.unit.name) for kept in read_splits(tmp_path / "out").values() for e in kept}
    assert len(units) == 30


def test_units_too_long_to_train_on_are_left_out(data: Data, tmp_path: Path) -> None:
    long = Path(data.corpus[0]) / "long.py"
    long.write_text("def long(x):\n" + "    x = x + 1\n" * 80 + "\ndef wide(x):\n    y = '" + "x" * 200 + "'\n")
    build(data, tmp_path / "out")
    names = {e.unit.name for kept in read_splits(tmp_path / "out").values() for e in kept}
    assert {"long", "wide"}.isdisjoint(names) and "sum0_0" in names


def test_files_that_cannot_be_read_are_counted_and_the_rest_is_used(data: Data, tmp_path: Path) -> None:
    folder = Path(data.corpus[0])
    (folder / "latin.py").write_bytes("# coding: latin-1\ndef latin(x):\n    return 'é' + x\n".encode("latin-1"))
    unreadable = {
        "undecodable.py": b"x = '\xff\xfe'\n",
        "unknown_cookie.py": b"# coding: nonsense\nx = 1\n",
        "no_text_cookie.py": b"# coding: rot13\nx = 1\n",
        "undefined_cookie.py": b"# coding: undefined\nx = 1\n",
        "syntax.py": b"def f(:\n",
        "nul.py": b"x = 1\0\n",
        "python2.py": b"print 'hello'\n",
    }
    for name, content in unreadable.items():
        (folder / name).write_bytes(content)
    summary = build(data, tmp_path / "out")

    assert summary.unreadable_files == len(unreadable)
    assert "latin" in {e.unit.name for kept in read_splits(tmp_path / "out").values() for e in kept}


@pytest.mark.parametrize(("count", "split"), [(0, "train"), (1, "validation|train|test")])
def test_too_few_projects_say_what_to_do(tmp_path: Path, count: int, split: str) -> None:
    corpus = make_projects(tmp_path / "code", count)
    with pytest.raises(
        RecipeError, match=f"leaves the ({split}) split empty .*in {count} projects.*name more projects"
    ):
        build(Data(corpus=corpus), tmp_path / "out")


def test_units_know_their_true_lines_after_planting(data: Data, tmp_path: Path) -> None:
    build(data, tmp_path / "out")
    for example in read_splits(tmp_path / "out")["test"]:
        source = next(Path(folder) for folder in data.corpus if Path(folder).name == example.project)
        lines = (source / example.path).read_text().split("\n")
        changed = [line for line in example.unit.lines if not true_to(lines, line)]
        assert bool(changed) == (example.planted is not None)  # a rename changes several


def true_to(lines: list[str], line: UnitLine) -> bool:
    return lines[line.number - 1][line.removed :] == line.text


def test_held_out_units_are_the_same_whether_or_not_training_projects_are_there(data: Data, tmp_path: Path) -> None:
    """But for what stands in a training project too."""
    data = msgspec.structs.replace(data, max_units_per_project=3)
    build(data, tmp_path / "whole")

    def wanted(project: str) -> bool:
        return split_of(project, data.split_seed, [], 0.3, 0.2) != "train"

    sources, projects = find_sources(data.corpus, tmp_path, wanted)
    (tmp_path / "part").mkdir()
    build_examples(data, sources, projects, CATALOGUE, 7, tmp_path / "part", ("validation", "test"))
    for name in ("validation", "test"):
        whole, part = (
            {(e.project, e.unit.name, e.planted): e for e in read_examples(tmp_path / folder / f"{name}.jsonl")}
            for folder in ("whole", "part")
        )
        shared = whole.keys() & part.keys()
        assert len(shared) > 0.5 * len(part)
        assert all(whole[key] == part[key] for key in shared)
    assert not (tmp_path / "part" / "train.jsonl").exists()
