"""From the rankings of a search's parts to its results, for every kind of index."""

from collections.abc import Mapping, Sequence

import msgspec

from bundle.fusion import HybridRanking
from serve.search.base import MOST_COPIES
from serve.search.messages import Kind, Part, Place, SearchResult


class RankedText(msgspec.Struct, frozen=True):
    """A text by its number, the score of the fusion, and its rank in each part that found it, from 1."""

    number: int
    score: float
    found_by: dict[Part, int]


class StoredUnit(msgspec.Struct, frozen=True):
    """Where the text of this id stands."""

    text: int
    path: str
    kind: Kind
    name: str
    start_line: int
    end_line: int


def fuse(parts: Mapping[Part, Sequence[int]], hybrid: HybridRanking, k: int) -> list[RankedText]:
    """The k best texts of all parts together, the best first.

    Args:
        parts: of `embedding` and of `bm25` the texts found, by their numbers, the best first.
        hybrid: the search bundle's.
        k: fewer are found where there are fewer.
    """
    ranks = {part: {number: rank for rank, number in enumerate(found, 1)} for part, found in parts.items()}
    numbers, scores = hybrid.fuse(parts["embedding"], parts["bm25"])
    return [
        RankedText(number, score, {part: places[number] for part, places in ranks.items() if number in places})
        for number, score in zip(numbers[:k].tolist(), scores.tolist(), strict=False)
    ]


def as_result(ranked: RankedText, snippet: str, first: StoredUnit, others: Sequence[StoredUnit]) -> SearchResult:
    """A text as it is answered: where it stands for this request, and where else."""
    return SearchResult(
        **msgspec.structs.asdict(_place(first)),
        kind=first.kind,
        name=first.name,
        snippet=snippet,
        score=ranked.score,
        found_by=ranked.found_by,
        copies=tuple(map(_place, others[:MOST_COPIES])),
    )


def _place(unit: StoredUnit) -> Place:
    return Place(path=unit.path, start_line=unit.start_line, end_line=unit.end_line)
