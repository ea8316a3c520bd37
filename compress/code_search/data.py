"""The data stage: a corpus becomes pairs of a query, a function's docstring, and the function without it."""

import random
import re
from pathlib import Path

import msgspec
from rich.progress import Progress

from bundle.search import document_text
from bundle.units import Unit
from compress.code_search.recipe import SearchData
from compress.data.build import SPLITS, at_most_per_project, code_key, split_in, units_of
from compress.data.corpus import ProjectInfo, SourceFile
from compress.data.examples import write_examples
from compress.errors import RecipeError

_LEAST_WORDS = 3


class Pair(msgspec.Struct, frozen=True):
    """A query and the function that answers it, as both are embedded."""

    project: str
    path: str
    line: int
    query: str
    document: str


class PairSummary(msgspec.Struct, frozen=True):
    """What the data stage made; written beside the pairs."""

    projects: list[ProjectInfo]
    held_out_projects: list[str]
    files: int
    unreadable_files: int
    duplicates: int  # functions or docstrings that were there before
    pairs: dict[str, int]


def build_pairs(
    data: SearchData, sources: list[SourceFile], projects: list[ProjectInfo], seed: int, out: Path
) -> PairSummary:
    """Write train.jsonl, validation.jsonl, test.jsonl and summary.json into `out`.

    Of functions that differ in white space alone, and of docstrings that are the same, only the first makes a pair:
    a query has one answer, and no held-out function was trained on.

    Raises:
        RecipeError: the corpus leaves a split with fewer than two pairs.
    """
    found: list[tuple[SourceFile, Pair]] = []
    seen: set[bytes | str] = set()
    unreadable = duplicates = 0
    with Progress(transient=True) as progress:
        for source in progress.track(sources, description="pairs"):
            units = units_of(source, data.max_lines)
            unreadable += units is None
            for unit in units or ():
                if (pair := pair_of(source, unit)) is None:
                    continue
                keys: set[bytes | str] = {code_key(unit), " ".join(pair.query.lower().split())}
                if seen & keys:
                    duplicates += 1
                else:
                    seen |= keys
                    found.append((source, pair))
    if data.max_pairs_per_project is not None:
        found = at_most_per_project(found, data.max_pairs_per_project, data.split_seed)
    splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for _, pair in found:
        splits[split_in(data, pair.project)].append(pair)
    for name, pairs in splits.items():
        if len(pairs) < 2:
            raise RecipeError(
                f"data.corpus leaves the {name} split with {len(pairs)} documented functions of {len(found)}: projects "
                "are held out whole, so name more projects, or set data.holdout, data.test_fraction or "
                "data.validation_fraction"
            )
        random.Random(seed).shuffle(pairs)
    if data.max_pairs is not None:
        splits["train"] = splits["train"][: data.max_pairs]
    for name, pairs in splits.items():
        write_examples(out / f"{name}.jsonl", pairs)
    summary = PairSummary(
        projects=projects,
        held_out_projects=sorted({pair.project for name in SPLITS[1:] for pair in splits[name]}),
        files=len(sources),
        unreadable_files=unreadable,
        duplicates=duplicates,
        pairs={name: len(pairs) for name, pairs in splits.items()},
    )
    (out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2))
    return summary


def query_of(unit: Unit) -> str | None:
    """A function's docstring as a query: its first sentence, when it says something that its code does not spell."""
    if unit.kind not in ("function", "method") or unit.summary is None:
        return None
    if len(re.findall(r"[^\W\d_]{2,}", unit.summary)) < _LEAST_WORDS:
        return None
    # A docstring that shares a line with code, or is all there is of a body, stays in the unit's code.
    return None if unit.summary[:20] in unit.code else unit.summary


def pair_of(source: SourceFile, unit: Unit) -> Pair | None:
    """The pair that a unit of a file makes, if it makes one."""
    if (query := query_of(unit)) is None:
        return None
    without = msgspec.structs.replace(unit, summary=None)
    return Pair(source.project, source.path, unit.start_line, query, document_text(without))


def read_pairs(file: Path) -> list[Pair]:
    """The pairs of one split, in the order they were written."""
    return msgspec.json.Decoder(Pair).decode_lines(file.read_bytes())
