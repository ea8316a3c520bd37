"""A search of one project's tables, within a transaction that sees one state of them.

BM25 is computed there, from the postings of the query's words, and comes out as `bundle.lexical` computes it. Up to
`COMPARED_ALL` embeddings are compared one by one. Of more, pgvector's graph (HNSW) gives the nearest, which are then
compared exactly; it may miss some.
"""

from collections import Counter
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector, Vector
from psycopg import Cursor

from bundle.fusion import HybridRanking
from bundle.lexical import K1, B, rarity, split_words
from serve.search.base import FUSED, MOST_COPIES, UnknownProject, path_filter
from serve.search.messages import SearchRequest, SearchResult
from serve.search.postgres.changes import word_key
from serve.search.ranking import RankedText, StoredUnit, as_result, fuse

COMPARED_ALL = 10_000
NEAR = 200
"""Texts that the graph names."""

# Whether a unit passes the request's filters; where a filter is not set, everything does.
_PASSES = (
    "(%(files)s::bigint[] IS NULL OR units.file = ANY(%(files)s)) "
    "AND (%(kinds)s::text[] IS NULL OR units.kind = ANY(%(kinds)s))"
)
_CHOSEN = (
    f"SELECT units.text FROM units JOIN files ON files.id = units.file WHERE files.project = %(project)s AND {_PASSES}"
)
_COUNT = f"SELECT count(*) FROM (SELECT DISTINCT text FROM ({_CHOSEN}) AS chosen LIMIT %(most)s) AS counted"

# The cast to float32 is what no index serves: each is compared, with the query as it is.
_EXACT = "SELECT id FROM {texts} ORDER BY embedding::vector <#> %(vector)b, id LIMIT %(fused)s"
_OF_PROJECT = "texts WHERE project = %(project)s"
_AMONG_CHOSEN = f" AND id IN ({_CHOSEN})"
_GRAPH = "(SELECT id, embedding FROM {texts} ORDER BY embedding <#> %(half)b LIMIT %(near)s) AS near"

_HOLDING = (
    "SELECT word, count(*) FROM postings WHERE project = %(project)s AND word = ANY(%(words)s::bigint[]) GROUP BY word"
)
# Rounded as `bundle.lexical` rounds: sums that differ in the order of their terms alone are equal.
_BM25 = f"""
SELECT text FROM (
    SELECT text, sum(weight * count / (count + {K1} * ({1 - B} + {B} * length / %(mean)s)))::real AS score
    FROM postings JOIN unnest(%(words)s::bigint[], %(weights)s::float8[]) AS asked (word, weight) USING (word)
    WHERE project = %(project)s {{chosen}}
    GROUP BY text
) AS scored ORDER BY score DESC, text LIMIT %(fused)s
"""

# Of each text the first places, and the first one that passes.
_PLACES = f"""
SELECT text, path, kind, name, start_line, end_line, choice = 1 FROM (
    SELECT units.text, path, kind, name, start_line, end_line,
        row_number() OVER (PARTITION BY units.text ORDER BY path, start_line, end_line) AS place,
        row_number() OVER (PARTITION BY units.text ORDER BY NOT ({_PASSES}), path, start_line, end_line) AS choice
    FROM units JOIN files ON files.id = units.file WHERE units.text = ANY(%(found)s::bigint[])
) AS places WHERE place <= {MOST_COPIES + 1} OR choice = 1 ORDER BY text, place
"""


class _Project(msgspec.Struct, frozen=True):
    """A project in numbers, and what a request chooses of it: ids of files, and kinds; None is all."""

    id: int
    texts: int
    words: int
    files: list[int] | None
    kinds: list[str] | None

    @property
    def is_filtered(self) -> bool:
        return self.files is not None or self.kinds is not None

    @property
    def chosen(self) -> dict[str, Any]:
        """The parameters of `_CHOSEN`."""
        return {"project": self.id, "files": self.files, "kinds": self.kinds}


def find(
    cursor: Cursor[Any], request: SearchRequest, vector: NDArray[np.float32], hybrid: HybridRanking
) -> tuple[SearchResult, ...]:
    """See `UnitIndex.search`.

    Args:
        cursor: in a transaction that sees one state.
        request: what is asked for.
        vector: the query's embedding.
        hybrid: the search bundle's.
    """
    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    project = _project(cursor, request)
    ranked = fuse(
        {"embedding": _nearest(cursor, project, vector), "bm25": _spelled(cursor, project, request.query)},
        hybrid,
        request.k,
    )
    return _results(cursor, project, ranked)


def _project(cursor: Cursor[Any], request: SearchRequest) -> _Project:
    row = cursor.execute("SELECT id, texts, words FROM projects WHERE name = %s", (request.project,)).fetchone()
    if row is None:
        raise UnknownProject(request.project)
    files = None
    if request.path is not None:
        # Python's patterns are none of PostgreSQL's: the paths come here.
        in_path = path_filter(request)
        paths = cursor.execute("SELECT id, path FROM files WHERE project = %s", row[:1])
        files = [file for file, path in paths if in_path(path.decode())]
    [project, texts, words] = row
    return _Project(project, texts, words, files, None if request.kinds is None else [*request.kinds])


def _nearest(cursor: Cursor[Any], project: _Project, vector: NDArray[np.float32]) -> list[int]:
    values = {**project.chosen, "vector": Vector(vector), "half": HalfVector(vector), "fused": FUSED, "near": NEAR}
    among = _OF_PROJECT + (_AMONG_CHOSEN if project.is_filtered else "")
    if _choosable(cursor, project) > COMPARED_ALL:
        found = cursor.execute(_EXACT.format(texts=_GRAPH.format(texts=among)), values).fetchall()
        if len(found) == FUSED:  # else a filter has let too few of those pass that the graph had time for
            return [text for (text,) in found]
    return [text for (text,) in cursor.execute(_EXACT.format(texts=among), values)]


def _choosable(cursor: Cursor[Any], project: _Project) -> int:
    """How many texts there are to choose from; of more than are compared one by one, some number above it."""
    if project.texts <= COMPARED_ALL or not project.is_filtered:
        return project.texts
    [[count]] = cursor.execute(_COUNT, {**project.chosen, "most": COMPARED_ALL + 1}).fetchall()
    return count


def _spelled(cursor: Cursor[Any], project: _Project, query: str) -> list[int]:
    asked = Counter(map(word_key, split_words(query)))
    holding = cursor.execute(_HOLDING, {"project": project.id, "words": [*asked]}).fetchall()
    if not holding:
        return []
    values = {
        **project.chosen,
        "words": [word for word, _ in holding],
        "weights": [asked[word] * rarity(project.texts, count) for word, count in holding],
        "mean": project.words / project.texts,
        "fused": FUSED,
    }
    chosen = f"AND text IN ({_CHOSEN})" if project.is_filtered else ""
    return [text for (text,) in cursor.execute(_BM25.format(chosen=chosen), values)]


def _results(cursor: Cursor[Any], project: _Project, ranked: list[RankedText]) -> tuple[SearchResult, ...]:
    found = [text.number for text in ranked]
    snippets = dict(cursor.execute("SELECT id, snippet FROM texts WHERE id = ANY(%s::bigint[])", (found,)).fetchall())
    places: dict[int, tuple[StoredUnit, list[StoredUnit]]] = {}
    rows = cursor.execute(_PLACES, {**project.chosen, "found": found}).fetchall()
    for text, of_text in groupby(rows, key=lambda row: row[0]):
        units = [(StoredUnit(text, path.decode(), *rest), is_first) for _, path, *rest, is_first in of_text]
        [first] = [unit for unit, is_first in units if is_first]
        places[text] = first, [unit for unit, is_first in units if not is_first]
    return tuple(as_result(text, snippets[text.number], *places[text.number]) for text in ranked)
