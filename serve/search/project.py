"""One project's index: what is on disk, and in memory what a search goes through."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from bundle.lexical import LexicalIndex, best
from bundle.search import SearchManifest
from serve.search.base import FUSED, FileUnits, UnknownProject, Vectors, path_filter
from serve.search.messages import Kind, Part, ProjectInfo, SearchRequest, SearchResult
from serve.search.ranking import RankedText, StoredUnit, as_result, fuse
from serve.search.storage import Changes, Storage, StoredText
from serve.search.vectors import VectorIndex

TEXTS_AT_ONCE = 4096
KINDS: tuple[Kind, ...] = get_args(Kind)


class _Units(msgspec.Struct, frozen=True):
    """Every unit in columns, for filters: its file among `paths`, its text's number, its kind among KINDS."""

    paths: list[str]
    files: NDArray[np.int64]
    numbers: NDArray[np.int64]
    kinds: NDArray[np.int64]


class _Loaded:
    """What a search goes through: the texts under numbers, and for each file which of them it holds."""

    def __init__(self, manifest: SearchManifest) -> None:
        self._hybrid = manifest.hybrid
        self._vectors, self._lexical = VectorIndex(manifest.dimensions[0], manifest.embeddings), LexicalIndex()
        self._numbers: dict[int, int] = {}
        self.ids: list[int] = []
        """Of the texts on disk, by their numbers here, which are given once."""
        self._held: dict[str, list[tuple[int, Kind]]] = {}
        self._held_by: _Units | None = None

    def add_texts(self, texts: Iterable[StoredText]) -> None:
        """Take texts in, a few at a time."""
        some: list[StoredText] = []
        for text in texts:
            some.append(text)
            if len(some) == TEXTS_AT_ONCE:
                self._add(some)
                some = []
        self._add(some)

    def _add(self, texts: Sequence[StoredText]) -> None:
        numbers = [self._lexical.add(text.text) for text in texts]
        self.ids += [text.id for text in texts]
        self._numbers.update(zip((text.id for text in texts), numbers, strict=True))
        if texts:
            self._vectors.add(numbers, np.stack([text.vector for text in texts]))

    def remove_texts(self, texts: Sequence[tuple[int, str]]) -> None:
        """Take out texts that nothing holds any more."""
        numbers = [self._numbers.pop(row) for row, _ in texts]
        for number, (_, text) in zip(numbers, texts, strict=True):
            self._lexical.remove(number, text)
        self._vectors.remove(numbers)

    def put_files(self, units: Iterable[StoredUnit], gone: Iterable[str] = ()) -> None:
        """Forget the files of `gone`, then note what those of `units`, which are sorted by path, hold."""
        self._held_by = None
        for path in gone:
            self._held.pop(path, None)
        for path, held in groupby(units, key=lambda unit: unit.path):
            self._held[path] = [(self._numbers[unit.text], unit.kind) for unit in held]

    def rank(self, request: SearchRequest, vector: NDArray[np.float32]) -> list[RankedText]:
        """The best texts by their numbers here."""
        words = self._lexical.scores(request.query)
        among = self._among(request, len(words))
        if among is not None:
            words = np.where(among, words, 0)
        parts: dict[Part, list[int]] = {
            "embedding": self._vectors.search(vector, FUSED, among),
            "bm25": best(words, FUSED),
        }
        return fuse(parts, self._hybrid, request.k)

    def _among(self, request: SearchRequest, count: int) -> NDArray[np.bool_] | None:
        """Whether a text may be found, by its number below `count`; None: all may."""
        if request.path is None and request.kinds is None:
            return None
        if self._held_by is None:
            self._held_by = _tabulate(self._held)
        table = self._held_by
        passes = np.ones(len(table.numbers), bool)
        if request.path is not None:
            passes &= np.fromiter(map(path_filter(request), table.paths), bool, len(table.paths))[table.files]
        if request.kinds is not None:
            passes &= np.isin(table.kinds, [KINDS.index(kind) for kind in request.kinds])
        among = np.zeros(count, bool)
        among[table.numbers[passes]] = True
        return among


def _tabulate(held: dict[str, list[tuple[int, Kind]]]) -> _Units:
    units = [(file, *unit) for file, units in enumerate(held.values()) for unit in units]
    return _Units(
        paths=list(held),
        files=np.array([file for file, _, _ in units], np.int64),
        numbers=np.array([number for _, number, _ in units], np.int64),
        kinds=np.array([KINDS.index(kind) for _, _, kind in units], np.int64),
    )


class ProjectIndex:
    """An open index. Threads that use it take turns; once it is closed, it is a project that is not there."""

    def __init__(self, folder: Path, project: str, manifest: SearchManifest) -> None:
        """Args and Raises: as `Storage`."""
        self._project, self._manifest = project, manifest
        self._storage = Storage(folder, project, manifest)
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._closed = False

    def load(self) -> None:
        """Read into memory what a search goes through; the first search would otherwise wait for it."""
        with self._searchable():
            pass

    def info(self) -> ProjectInfo:
        """See `UnitIndex.info`."""
        with self._turn():
            return self._storage.info(self._project)

    def files(self) -> dict[str, str]:
        """See `UnitIndex.files`."""
        with self._turn():
            return self._storage.files()

    def unknown(self, digests: Collection[bytes]) -> set[bytes]:
        """See `UnitIndex.unknown`."""
        with self._turn():
            return self._storage.unknown(digests)

    def update(self, files: Sequence[FileUnits], deleted: Collection[str], vectors: Vectors) -> None:
        """See `UnitIndex.update`."""
        with self._searchable() as loaded:
            changes = self._storage.update(files, deleted, vectors)
            try:
                self._follow(loaded, changes, [*deleted, *(file.path for file in files)])
            except BaseException:
                self._loaded = None  # what is on disk is right, and will be read again
                raise

    def search(self, request: SearchRequest, vector: NDArray[np.float32]) -> tuple[SearchResult, ...]:
        """See `UnitIndex.search`."""
        in_path = path_filter(request)

        def passes(unit: StoredUnit) -> bool:
            return in_path(unit.path) and (request.kinds is None or unit.kind in request.kinds)

        with self._searchable() as loaded:
            return tuple(
                self._result(loaded.ids[ranked.number], ranked, passes) for ranked in loaded.rank(request, vector)
            )

    def close(self) -> None:
        """Close it; whoever uses it now is waited for."""
        with self._lock:
            self._closed = True
            self._storage.close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise UnknownProject(self._project)
            yield

    @contextmanager
    def _searchable(self) -> Iterator[_Loaded]:
        with self._turn():
            if self._loaded is None:
                loaded = _Loaded(self._manifest)
                loaded.add_texts(self._storage.texts())
                loaded.put_files(self._storage.units())
                self._loaded = loaded
            yield self._loaded

    def _follow(self, loaded: _Loaded, changes: Changes, gone: Sequence[str]) -> None:
        loaded.add_texts(changes.added)
        loaded.put_files(changes.units, gone)
        loaded.remove_texts(changes.removed)

    def _result(self, text: int, ranked: RankedText, passes: Callable[[StoredUnit], bool]) -> SearchResult:
        units = self._storage.units_of(text)
        first = next(filter(passes, units))
        return as_result(ranked, self._storage.snippet(text), first, [unit for unit in units if unit is not first])
