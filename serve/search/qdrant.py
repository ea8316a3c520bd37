"""The index in Qdrant (https://qdrant.tech), for a corpus or a fleet of servers beyond one machine.

One collection holds the index of one search bundle: a point for every unit, with its embedding and, as a sparse vector,
its words; and a point without vectors for every file, written last, so that a file of which not all was written is
one that is not there, and is indexed again.
"""

import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import httpx
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from bundle.fusion import reciprocal_rank_fusion
from bundle.lexical import K1, B, split_words
from bundle.search import SearchManifest
from serve.search.base import FUSED, MOST_COPIES, FileUnits, IndexAway, UnitText, UnknownProject, Vectors, path_filter
from serve.search.messages import Part, Place, ProjectInfo, SearchRequest, SearchResult

EMBEDDING, WORDS = "embedding", "words"
AT_ONCE = 500
MOST_PROJECTS = 10_000
MEAN_WORDS = 100.0
"""Of a unit. BM25 wants the mean of the corpus, which changes with every file; Qdrant keeps what it was given."""
_IDS = uuid.UUID("5f5d9a3e-3c0f-5d0b-9d55-6f0c2c1f7a11")
_INDEXED = ("record", "project", "path", "kind", "digest")


class QdrantIndex:
    """A `UnitIndex` that many servers may share.

    Two that change one project at the same time may undo each other's work on a file; the next indexing mends it.
    """

    def __init__(self, client: QdrantClient, manifest: SearchManifest) -> None:
        """
        Args:
            client: of the database; closed with this.
            manifest: of the search bundle that embeds; another bundle has a collection of its own.

        Raises:
            IndexAway: Qdrant does not answer, or refuses.
        """
        self._client, self._weights = client, (1.0, manifest.lexical_weight)
        self._collection = f"deepcode-{manifest.weights_sha256[:32]}"
        with self._asking():
            if not client.collection_exists(self._collection):
                self._make_collection(manifest.dimensions[0])

    def projects(self) -> list[ProjectInfo]:
        """See `UnitIndex`."""
        with self._asking():
            named = self._client.facet(
                self._collection, "project", facet_filter=_filter(record="file"), limit=MOST_PROJECTS, exact=True
            )
        return [self.info(str(hit.value)) for hit in sorted(named.hits, key=lambda hit: str(hit.value))]

    def info(self, project: str) -> ProjectInfo:
        """See `UnitIndex`; a project without a file is one that is not there."""
        files = self._count(record="file", project=project)
        return ProjectInfo(project=project, files=files, units=self._count(record="unit", project=project))

    def files(self, project: str) -> dict[str, str]:
        """See `UnitIndex`."""
        records = self._payloads(["path", "sha256"], record="file", project=project)
        found = {payload["path"]: payload["sha256"] for payload in records}
        if not found:
            raise UnknownProject(project)
        return found

    def unknown(self, project: str, digests: Collection[bytes]) -> set[bytes]:
        """See `UnitIndex`."""
        wanted = sorted(digest.hex() for digest in digests)
        known: set[str] = set()
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            known.update(payload["digest"] for payload in self._payloads(["digest"], project=project, digest=some))
        return {digest for digest in digests if digest.hex() not in known}

    def update(self, project: str, files: Sequence[FileUnits], deleted: Collection[str], vectors: Vectors) -> None:
        """See `UnitIndex`."""
        embeddings = {digest.hex(): vector.tolist() for digest, vector in vectors.items()}
        wanted = {unit.digest.hex() for file in files for unit in file.units} - embeddings.keys()
        embeddings |= self._known_embeddings(project, sorted(wanted))
        paths = [*deleted, *(file.path for file in files)]
        points = [
            _unit_point(project, file.path, unit, embeddings[unit.digest.hex()])
            for file in files
            for unit in file.units
        ]
        with self._asking():
            for start in range(0, len(paths), AT_ONCE):
                self._delete(_filter(project=project, path=paths[start : start + AT_ONCE]))
            for start in range(0, len(points), AT_ONCE):
                self._client.upsert(self._collection, points[start : start + AT_ONCE], wait=True)
            if files:
                self._client.upsert(self._collection, [_file_point(project, file) for file in files], wait=True)

    def search(self, request: SearchRequest, vector: NDArray[np.float32]) -> tuple[SearchResult, ...]:
        """See `UnitIndex`."""
        chosen = self._chosen(request)
        sparse = Counter(crc32(word.encode()) for word in split_words(request.query))
        words = models.SparseVector(indices=list(sparse), values=[float(count) for count in sparse.values()])
        asked = [
            models.QueryRequest(query=query, using=using, filter=chosen, limit=FUSED, with_payload=["digest"])
            for query, using in ((vector.tolist(), EMBEDDING), (words, WORDS))
        ]
        with self._asking():
            answers = self._client.query_batch_points(self._collection, asked)
        rankings = [list(dict.fromkeys(_payload(point)["digest"] for point in answer.points)) for answer in answers]
        digests = sorted({digest for ranking in rankings for digest in ranking})
        if not digests and not self._count(record="file", project=request.project):
            raise UnknownProject(request.project)
        numbers = {digest: number for number, digest in enumerate(digests)}
        fused, scores = reciprocal_rank_fusion([[numbers[each] for each in found] for found in rankings], self._weights)
        best = [digests[number] for number in fused[: request.k].tolist()]
        places = self._places(request, best)
        parts: tuple[Part, Part] = ("embedding", "bm25")
        return tuple(
            _result(
                places[digest],
                score,
                {part: found.index(digest) + 1 for part, found in zip(parts, rankings, strict=True) if digest in found},
            )
            for digest, score in zip(best, scores.tolist(), strict=False)
            if digest in places  # it may have gone meanwhile
        )

    def delete(self, project: str) -> None:
        """See `UnitIndex`."""
        if not self._count(project=project):
            raise UnknownProject(project)
        with self._asking():
            self._delete(_filter(project=project))

    def close(self) -> None:
        """See `UnitIndex`."""
        self._client.close()

    def _make_collection(self, dimension: int) -> None:
        self._client.create_collection(
            self._collection,
            vectors_config={
                EMBEDDING: models.VectorParams(
                    size=dimension, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16
                )
            },
            sparse_vectors_config={WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
        )
        for name in _INDEXED:
            keyword = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=name == "project")
            self._client.create_payload_index(self._collection, name, keyword)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (ApiException, httpx.TransportError) as error:
            raise IndexAway(f"Qdrant did not answer as it should: {error}") from error

    def _count(self, **values: str) -> int:
        with self._asking():
            return self._client.count(self._collection, _filter(**values), exact=True).count

    def _delete(self, chosen: models.Filter) -> None:
        self._client.delete(self._collection, models.FilterSelector(filter=chosen), wait=True)

    def _records(self, fields: list[str], vectors: bool, **values: str | list[str]) -> Iterator[Any]:
        offset = None
        while True:
            with self._asking():
                records, offset = self._client.scroll(
                    self._collection,
                    _filter(**values),
                    limit=AT_ONCE,
                    offset=offset,
                    with_payload=fields,
                    with_vectors=[EMBEDDING] if vectors else False,
                )
            yield from records
            if offset is None:
                return

    def _payloads(self, fields: list[str], **values: str | list[str]) -> Iterator[dict[str, Any]]:
        return (_payload(record) for record in self._records(fields, vectors=False, **values))

    def _known_embeddings(self, project: str, digests: Sequence[str]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for start in range(0, len(digests), AT_ONCE):
            some = list(digests[start : start + AT_ONCE])
            for record in self._records(["digest"], vectors=True, project=project, digest=some):
                found[_payload(record)["digest"]] = record.vector[EMBEDDING]
        return found

    def _chosen(self, request: SearchRequest) -> models.Filter:
        """The request's filters. Qdrant knows no patterns, so the paths that match are named."""
        values: dict[str, str | list[str]] = {"record": "unit", "project": request.project}
        if request.kinds is not None:
            values["kind"] = list(request.kinds)
        if request.path is not None:
            values["path"] = list(filter(path_filter(request), self.files(request.project)))
        return _filter(**values)

    def _places(self, request: SearchRequest, digests: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Where these texts stand, those places first that the request's filters let pass."""
        in_path = path_filter(request)
        fields = ["path", "start_line", "end_line", "kind", "name", "snippet", "digest"]
        found: dict[str, list[dict[str, Any]]] = {}
        for place in self._payloads(fields, record="unit", project=request.project, digest=digests):
            found.setdefault(place["digest"], []).append(place)

        def order(place: dict[str, Any]) -> tuple[bool, str, int, int]:
            passes = in_path(place["path"]) and (request.kinds is None or place["kind"] in request.kinds)
            return (not passes, place["path"], place["start_line"], place["end_line"])

        return {digest: sorted(places, key=order) for digest, places in found.items()}


def _filter(**values: str | list[str]) -> models.Filter:
    """Points whose payload has these values, or one of each list."""
    return models.Filter(
        must=[
            models.FieldCondition(
                key=key,
                match=models.MatchAny(any=value) if isinstance(value, list) else models.MatchValue(value=value),
            )
            for key, value in values.items()
        ]
    )


def _payload(point: models.Record | models.ScoredPoint) -> dict[str, Any]:
    assert point.payload is not None, "it was asked for"
    return point.payload


def _file_point(project: str, file: FileUnits) -> models.PointStruct:
    payload = {"record": "file", "project": project, "path": file.path, "sha256": file.sha256}
    return models.PointStruct(id=str(uuid.uuid5(_IDS, f"{project}\0{file.path}")), vector={}, payload=payload)


def _unit_point(project: str, path: str, unit: UnitText, embedding: list[float]) -> models.PointStruct:
    place = f"{project}\0{path}\0{unit.start_line}\0{unit.end_line}\0{unit.name}"
    payload = {
        "record": "unit",
        "project": project,
        "path": path,
        "kind": unit.kind,
        "name": unit.name,
        "start_line": unit.start_line,
        "end_line": unit.end_line,
        "digest": unit.digest.hex(),
        "snippet": unit.snippet,
    }
    vectors: dict[str, Any] = {EMBEDDING: embedding, WORDS: _words(unit.text)}
    return models.PointStruct(id=str(uuid.uuid5(_IDS, place)), vector=vectors, payload=payload)


def _words(text: str) -> models.SparseVector:
    """BM25's part of a document; the rarity of a word is Qdrant's to multiply with."""
    words = split_words(text)
    counts = Counter(crc32(word.encode()) for word in words)
    length = K1 * (1 - B + B * len(words) / MEAN_WORDS)
    return models.SparseVector(indices=list(counts), values=[count / (count + length) for count in counts.values()])


def _result(places: list[dict[str, Any]], score: float, ranks: dict[Part, int]) -> SearchResult:
    first, *others = places
    return SearchResult(
        path=first["path"],
        start_line=first["start_line"],
        end_line=first["end_line"],
        kind=first["kind"],
        name=first["name"],
        snippet=first["snippet"],
        score=score,
        found_by=ranks,
        copies=tuple(
            Place(path=place["path"], start_line=place["start_line"], end_line=place["end_line"])
            for place in others[:MOST_COPIES]
        ),
    )
