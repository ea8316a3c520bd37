"""What a score is worth: the same units answered without any model."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from bundle.rules import Catalogue
from bundle.units import Unit, UnitLine
from compress.data.examples import Example, natural_example
from compress.data.hygiene import hygiene_labels
from compress.evaluation.answers import NOTHING, Said


def always_clean(examples: Sequence[Example]) -> list[Said]:
    """No finding on any unit."""
    return [NOTHING] * len(examples)


def ruff_alone(examples: Sequence[Example], catalogue: Catalogue) -> list[Said]:
    """What ruff reports about each unit's own code, all of it with confidence 1.

    Ruff made the hygiene labels, though on whole files: here it finds nearly all of them by construction, and
    none of the injected defects, because the catalogue's injected rules have no linter code.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.py" for number in range(len(examples))]
        standing = [_standing_alone(example.unit) for example in examples]
        for file, (text, _) in zip(files, standing, strict=True):
            file.write_text(text, encoding="utf-8")
        labels = hygiene_labels(files, catalogue)
    said = []
    for file, (_, unit) in zip(files, standing, strict=True):
        found = natural_example("", "", unit, labels.get(file, [])).findings
        said.append(Said(True, found, (1.0,) * len(found)))
    return said


def _standing_alone(unit: Unit) -> tuple[str, Unit]:
    """A file of nothing but the unit, and the unit with the line numbers it has there.

    A method stays in a class: outside one its name could hide a builtin.
    """
    above, indent = ("class Owner:\n", 4) if unit.kind == "method" else ("", 0)
    first = 1 + above.count("\n")
    lines = tuple(UnitLine(number, line.text, indent) for number, line in enumerate(unit.lines, start=first))
    text = above + "".join(f"{' ' * indent}{line.text}\n" for line in lines)
    return text, Unit(kind=unit.kind, name=unit.name, lines=lines, summary=unit.summary)
