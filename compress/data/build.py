"""The data stage: a corpus becomes train, validation and test examples."""

import hashlib
import random
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.progress import Progress

from bundle.rules import Catalogue
from bundle.units import Unit, UnparsableCode, cut_units
from compress.data.corpus import ProjectInfo, SourceFile, split_of
from compress.data.examples import (
    Example,
    draw_example,
    natural_example,
    planted_example,
    rule_counts,
    write_examples,
)
from compress.data.hygiene import hygiene_labels
from compress.errors import RecipeError
from compress.recipe import Corpus, Data

Item = TypeVar("Item")
SPLITS = ("train", "validation", "test")


class DataSummary(msgspec.Struct, frozen=True):
    """What the data stage made; written beside the examples."""

    projects: list[ProjectInfo]
    held_out_projects: list[str]
    files: int
    unreadable_files: int
    duplicate_units: int
    examples: dict[str, int]
    findings: dict[str, dict[str, int]]


def split_in(data: Corpus, project: str) -> str:
    """Which split of a recipe's corpus a project belongs to."""
    return split_of(project, data.split_seed, data.holdout, data.test_fraction, data.validation_fraction)


def corpus_fingerprint(sources: Iterable[SourceFile]) -> str:
    """One hash over the content of every file of a corpus."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.project}/{source.path}\n".encode())
        digest.update(source.file.read_bytes())
    return digest.hexdigest()


def build_examples(
    data: Data,
    sources: list[SourceFile],
    projects: list[ProjectInfo],
    catalogue: Catalogue,
    seed: int,
    out: Path,
    names: Sequence[str] = SPLITS,
) -> DataSummary:
    """Write train.jsonl, validation.jsonl, test.jsonl and summary.json into `out`.

    Training units are drawn `data.draws` times, each time natural or with a defect planted. Held-out
    units are written natural, and again with each kind of defect they offer, so that an evaluation can
    mix them at any rate.

    Args:
        names: the splits to write; `sources` need hold no other.

    Raises:
        RecipeError: the corpus leaves a split empty.
    """
    units, unreadable, duplicates = _distinct_units(data, sources)
    labels = hygiene_labels([source.file for source in sources], catalogue)
    splits: dict[str, list[Example]] = {name: [] for name in names}
    held_out = set()
    with Progress(transient=True) as progress:
        for source, unit in progress.track(units, description="examples"):
            natural = natural_example(source.project, source.path, unit, labels.get(source.file, []))
            split = split_in(data, source.project)
            place = f"{seed}:{source.project}:{source.path}:{unit.name}:{unit.start_line}"
            if split == "train":
                for draw in range(data.draws):
                    rng = random.Random(f"{place}:{draw}")
                    splits[split].append(draw_example(natural, data.planted_share, rng))
            else:
                held_out.add(source.project)
                rng = random.Random(place)
                planted = [planted_example(natural, origin, rng) for origin in ("injected", "hygiene")]
                splits[split] += [natural, *(example for example in planted if example is not None)]
    for name, examples in splits.items():
        if not examples:
            raise RecipeError(
                f"data.corpus leaves the {name} split empty ({len(units)} units in "
                f"{len({source.project for source, _ in units})} projects): projects are held out whole, "
                "so name more projects, or set data.holdout, data.test_fraction or data.validation_fraction"
            )
        random.Random(seed).shuffle(examples)
        write_examples(out / f"{name}.jsonl", examples)
    summary = DataSummary(
        projects=projects,
        held_out_projects=sorted(held_out),
        files=len(sources),
        unreadable_files=unreadable,
        duplicate_units=duplicates,
        examples={name: len(examples) for name, examples in splits.items()},
        findings={name: rule_counts(examples, catalogue) for name, examples in splits.items()},
    )
    (out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2))
    return summary


def _distinct_units(data: Data, sources: list[SourceFile]) -> tuple[list[tuple[SourceFile, Unit]], int, int]:
    """Units of a useful size; of equal ones only the first, so that held-out code was never trained on."""
    distinct: dict[bytes, tuple[SourceFile, Unit]] = {}
    unreadable = duplicates = 0
    with Progress(transient=True) as progress:
        for source in progress.track(sources, description="units"):
            found = units_of(source, data.max_lines)
            unreadable += found is None
            for unit in found or ():
                key = code_key(unit)
                duplicates += key in distinct
                distinct.setdefault(key, (source, unit))
    units = list(distinct.values())
    if data.max_units_per_project is not None:
        units = at_most_per_project(units, data.max_units_per_project, data.split_seed)
    if data.max_units is not None and len(units) > data.max_units:
        units = random.Random(data.split_seed).sample(units, data.max_units)
    return units, unreadable, duplicates


def units_of(source: SourceFile, max_lines: int) -> list[Unit] | None:
    """The units of a useful size in a file; None when it can not be read as Python."""
    try:
        with tokenize.open(source.file) as file:
            found = cut_units(file.read())
    except (UnparsableCode, SyntaxError, UnicodeError, LookupError):  # the last three: its coding cookie
        return None
    return [
        unit for unit in found if len(unit.lines) <= max_lines and max(len(line.text) for line in unit.lines) <= 200
    ]


def code_key(unit: Unit) -> bytes:
    """The same for units that differ in white space alone."""
    return hashlib.sha256("".join(unit.code.split()).encode()).digest()


def at_most_per_project(found: list[tuple[SourceFile, Item]], most: int, seed: int) -> list[tuple[SourceFile, Item]]:
    """Of every project so many at most, sampled."""
    by_project: dict[str, list[tuple[SourceFile, Item]]] = {}
    for source, item in found:
        by_project.setdefault(source.project, []).append((source, item))
    # Each project by its own, so that which are taken does not depend on what else is in the corpus.
    return [
        pair
        for project, owned in by_project.items()
        for pair in (owned if len(owned) <= most else random.Random(f"{seed}:{project}").sample(owned, most))
    ]
