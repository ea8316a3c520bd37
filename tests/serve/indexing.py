"""What tests of a code search's index put into it and ask it, whichever index it is."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.search import SearchManifest
from serve.search.base import FileUnits, ForgottenTexts, UnitIndex, UnitText
from serve.search.folder import FolderIndex
from serve.search.messages import SearchRequest, SearchResult
from serve.search.postgres.index import PostgresIndex

WORDS = ("alpha", "beta", "gamma", "delta")
EVERYTHING = " ".join(WORDS)
WIDTH = 64
"""Of the tiny search bundle's embeddings."""


@dataclass(frozen=True)
class Place:
    """Where an index is kept: the path of a folder, or the URL of a database."""

    kind: str
    location: str
    manifest: SearchManifest

    def open(self) -> UnitIndex:
        """The index, as a server that starts opens it."""
        if self.kind == "folder":
            return FolderIndex(Path(self.location), self.manifest)
        return PostgresIndex(self.location, self.manifest)


def unit(word: str, line: int = 1, kind: str = "function") -> UnitText:
    return spelled(f"{word}\ndef {word}(): ...", word, line, kind)


def spelled(text: str, name: str, line: int, kind: str) -> UnitText:
    digest = hashlib.sha256(text.encode()).digest()
    return UnitText(kind=kind, name=name, start_line=line, end_line=line + 1, digest=digest, text=text, snippet=text)


def file(path: str, *units: UnitText) -> FileUnits:
    return FileUnits(path, hashlib.sha256(repr(units).encode()).hexdigest(), units)


def vector(text: str) -> np.ndarray:
    """A direction of its own for every text."""
    drawn = np.random.default_rng(list(text.encode())).standard_normal(WIDTH).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def put(index: UnitIndex, files: Sequence[FileUnits], deleted: Collection[str] = (), project: str = "p") -> set[bytes]:
    """Index files as a server does; returns what had to be embedded."""
    texts = {unit.digest: unit.text for file in files for unit in file.units}
    new: set[bytes] = set()
    while True:
        new |= index.unknown(project, texts.keys())
        try:
            index.update(project, files, deleted, {digest: vector(texts[digest]) for digest in new})
        except ForgottenTexts:
            continue
        return new


def find(index: UnitIndex, query: str = EVERYTHING, like: str = "", **request: object) -> tuple[SearchResult, ...]:
    """Search for the words of a query and for what is near the text `like`."""
    asked = SearchRequest(query=query, project="p", **{"k": 100, **request})
    return index.search(asked, vector(like))


def places(results: Sequence[SearchResult]) -> set[tuple[str, int, str]]:
    """Where everything stands that was found: path, line and name."""
    return {(place.path, place.start_line, result.name) for result in results for place in (result, *result.copies)}
