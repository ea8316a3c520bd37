"""Planted defects: each changes what it says, parses, and is described as a perfect answer would."""

import ast
import inspect
import random
import sysconfig
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.answer import MAX_FINDINGS, AnswerFinding
from bundle.rules import Catalogue
from bundle.units import Unit, UnitLine, cut_units
from compress.data import defects
from compress.data.defects import DEFECTS
from compress.data.examples import natural_example, planted_example
from compress.data.hygiene import Label, hygiene_labels
from compress.data.inject import plant
from compress.data.planted_hygiene import HYGIENE_FIXES, HYGIENE_WEIGHTS, PLANTED_HYGIENE
from compress.data.spans import unique_window

SAMPLE = textwrap.dedent("""\
    def pick(items, limit, other, fallback=None):
        if fallback is None:
            fallback = limit
        total = 0
        for item in items[1:]:
            if item <= limit and item != other:
                total = total + item
        if not total:
            raise ValueError("nothing")
        try:
            return combine(total, limit)
        except KeyError:
            return fallback
    """)

# What the rarer rules need a place in.
HANDLERS = textwrap.dedent("""\
    def load(folder, names, log):
        append = log.append
        for _ in names:
            try:
                append(folder[0])
            except Exception:
                return None
            except KeyError:
                raise ValueError("missing") from None
        return log
    """)

# Real code: this project's own planters, and the ast module of the standard library.
REAL_UNITS: list[Unit] = [
    unit
    for module in (defects, textwrap, ast, random)
    for unit in cut_units(inspect.getsource(module))
    if unit.kind in ("function", "method")
]


@pytest.mark.parametrize("rule", [*DEFECTS, *PLANTED_HYGIENE])
def test_every_rule_has_a_planter_that_finds_a_place(rule: str) -> None:
    planters = {**DEFECTS, **PLANTED_HYGIENE}
    sources = [SAMPLE.rstrip("\n"), HANDLERS.rstrip("\n"), "def f(flag):\n    while flag:\n        flag = step(flag)"]
    planted = [plant(code, {rule: planters[rule]}, {}, random.Random(0)) for code in sources]
    found = [each for each in planted if each is not None]
    assert found and all(finding.rule == rule for _, finding in found)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(REAL_UNITS), st.sampled_from([DEFECTS, PLANTED_HYGIENE]), st.integers(0, 10_000))
def test_a_planted_defect_parses_and_its_fix_undoes_it(unit: Unit, planters: dict, seed: int) -> None:
    planted = plant(unit.code, planters, {}, random.Random(seed))
    if planted is None:
        return
    code, finding = planted
    ast.parse(code)
    before, after = unit.code.split("\n"), code.split("\n")
    changed = [number for number, (old, new) in enumerate(zip(before, after, strict=True), 1) if old != new]
    line = after[finding.line - 1]
    assert changed and line.count(finding.at) == 1
    if finding.rule not in HYGIENE_FIXES:
        assert changed == [finding.line]
        assert line.replace(finding.at, finding.fix) == before[finding.line - 1]


STDLIB = Path(sysconfig.get_path("stdlib"))
LINTED_UNITS: list[Unit] = [
    unit
    for name in ("argparse", "asyncio/tasks", "calendar", "inspect", "pdb", "plistlib", "shutil", "typing")
    for unit in cut_units((STDLIB / f"{name}.py").read_text(encoding="utf-8"))
]


@pytest.fixture(scope="module")
def natural_labels(tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue) -> dict[str, list[Label]]:
    return linted([unit.code for unit in LINTED_UNITS], tmp_path_factory.mktemp("natural"), catalogue)


@pytest.mark.parametrize("rule", PLANTED_HYGIENE)
def test_ruff_reports_what_was_planted_and_nothing_else(
    rule: str, natural_labels: dict[str, list[Label]], tmp_path: Path, catalogue: Catalogue
) -> None:
    planted = []
    for number, code in enumerate([*natural_labels, HANDLERS.rstrip("\n")]):
        drawn = plant(code, {rule: PLANTED_HYGIENE[rule]}, {}, random.Random(number))
        before = natural_labels.get(code, [])
        # What the linter had found on a line is not expected to outlive a change of that line.
        if drawn is not None and not {label.line for label in before} & changed_lines(code, *drawn):
            planted.append((code, *drawn))
    labels = linted([code for _, code, _ in planted], tmp_path, catalogue)

    assert planted
    for original, code, finding in planted:
        expected = [*findings(original, natural_labels.get(original, [])), finding]
        if len(expected) <= MAX_FINDINGS:
            assert sorted(findings(code, labels[code]), key=str) == sorted(expected, key=str), code


def changed_lines(before: str, after: str, finding: AnswerFinding) -> set[int]:
    pairs = enumerate(zip(before.split("\n"), after.split("\n"), strict=True), 1)
    return {finding.line, *(number for number, (old, new) in pairs if old != new)}


def linted(codes: list[str], folder: Path, catalogue: Catalogue) -> dict[str, list[Label]]:
    files = [folder / f"unit{number}.py" for number in range(len(codes))]
    for file, code in zip(files, codes, strict=True):
        file.write_text(code + "\n", encoding="utf-8")
    labels = hygiene_labels(files, catalogue)
    return {code: labels.get(file, []) for file, code in zip(files, codes, strict=True)}


def findings(code: str, labels: list[Label]) -> list[AnswerFinding]:
    """What the linter's labels say of a unit that is the whole of its file."""
    lines = tuple(UnitLine(number, text, 0) for number, text in enumerate(code.split("\n"), 1))
    return list(natural_example("p", "p.py", Unit("function", "f", lines, None), labels).findings)


def test_every_planted_hygiene_rule_has_a_weight() -> None:
    assert HYGIENE_WEIGHTS.keys() == PLANTED_HYGIENE.keys()


def test_the_same_seed_plants_the_same_defect() -> None:
    draws = [plant(SAMPLE, DEFECTS, {}, random.Random(3)) for _ in range(2)]
    assert draws[0] == draws[1]


def test_code_without_a_place_gets_no_defect() -> None:
    assert plant("def f():\n    return run()", DEFECTS, {}, random.Random(0)) is None


def test_hygiene_labels_are_ruffs_and_point_at_the_text(tmp_path, catalogue) -> None:
    file = tmp_path / "odd.py"
    file.write_text(
        "class Box:\n"
        "    def put(self, value, seen=[]):\n"
        '        """Put a value into the box."""\n'
        "        if value == None:\n"
        "            return seen\n"
        "        try:\n"
        "            unused = value\n"
        "        except:\n"
        "            return None\n"
    )
    labels = hygiene_labels([file], catalogue)[file]
    unit = next(unit for unit in cut_units(file.read_text()) if unit.name == "Box.put")
    example = natural_example("odd", "odd.py", unit, labels)
    said = [(finding.rule, finding.line, finding.at, finding.fix) for finding in example.findings]
    assert said == [
        ("mutable-default", 1, "[]", None),
        ("none-comparison", 2, "value == None", "value is None"),
        ("unused-variable", 5, "unused", None),
        ("bare-except", 6, "except", "except Exception"),
    ]


def test_a_planted_unit_keeps_what_the_linter_found(tmp_path, catalogue) -> None:
    file = tmp_path / "odd.py"
    file.write_text(SAMPLE.replace("fallback is None", "fallback == None"))
    unit = cut_units(file.read_text())[0]
    natural = natural_example("odd", "odd.py", unit, hygiene_labels([file], catalogue)[file])
    planted = planted_example(natural, "injected", random.Random(1))
    assert planted is not None and planted.planted in DEFECTS
    assert {"none-comparison", planted.planted} == {finding.rule for finding in planted.findings}
    assert [finding.line for finding in planted.findings] == sorted(finding.line for finding in planted.findings)


@settings(deadline=None)
@given(st.text("ab =<().", min_size=1, max_size=80), st.data())
def test_a_window_is_unique_and_holds_its_span(line: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(line) - 1))
    end = data.draw(st.integers(start + 1, len(line)))
    window = unique_window(line, start, end)
    if window is not None:
        text = line[window[0] : window[1]]
        assert window[0] <= start < end <= window[1]
        assert line.count(text) == 1 and text == text.strip() and len(text) <= 60
