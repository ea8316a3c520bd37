"""One project's index on disk: an SQLite database, in which a change is there as a whole or not at all."""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from bundle.search import SearchManifest
from serve.search.base import FileUnits, IndexUnusable, Vectors
from serve.search.messages import ProjectInfo
from serve.search.ranking import StoredUnit

DATABASE_FILE = "index.sqlite"
SCHEMA_VERSION = 2

# Of a text that stands in several places only the places are there more than once.
_SCHEMA = """
CREATE TABLE about (
    project TEXT NOT NULL, model TEXT NOT NULL, weights_sha256 TEXT NOT NULL, embeddings TEXT NOT NULL
);
CREATE TABLE files (path TEXT PRIMARY KEY, sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE texts (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL, snippet TEXT NOT NULL, vector BLOB NOT NULL
);
CREATE TABLE units (
    text INTEGER NOT NULL REFERENCES texts, path TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    start_line INTEGER NOT NULL, end_line INTEGER NOT NULL
);
CREATE INDEX units_of_text ON units (text);
CREATE INDEX units_of_path ON units (path);
"""


class StoredText(msgspec.Struct, frozen=True):
    """A text as the search wants it in memory, with its vector [dimension] as it is kept."""

    id: int
    text: str
    vector: NDArray[np.float32]


class Changes(msgspec.Struct, frozen=True):
    """What an update has done: texts that came, ids and texts that nothing holds any more, and units that came."""

    added: list[StoredText]
    removed: list[tuple[int, str]]
    units: list[StoredUnit]


class Storage:
    """The database. Not for several threads at a time."""

    def __init__(self, folder: Path, project: str, manifest: SearchManifest) -> None:
        """
        Args:
            folder: made when it is not there.
            project: whose index it is.
            manifest: of the search bundle that embeds.

        Raises:
            IndexUnusable: it was made with another search bundle or another version, keeps embeddings otherwise, or
                can not be read.
        """
        self._file = folder / DATABASE_FILE
        self._embeddings, self._width = manifest.embeddings, manifest.dimensions[0]
        try:
            folder.mkdir(exist_ok=True)
            self._database = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.OperationalError) as error:
            raise IndexUnusable(f"{self._file} can not be opened: {error}") from error
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._make_or_check(project, manifest)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise IndexUnusable(f"{self._file} can not be read ({error}); delete {folder} and index again") from error
        except IndexUnusable:
            self._database.close()
            raise

    def info(self, project: str) -> ProjectInfo:
        """The project in numbers."""
        [files] = self._database.execute("SELECT count(*) FROM files").fetchone()
        [units] = self._database.execute("SELECT count(*) FROM units").fetchone()
        return ProjectInfo(project=project, files=files, units=units)

    def files(self) -> dict[str, str]:
        """The sha256 of every file by its path."""
        return dict(self._database.execute("SELECT path, sha256 FROM files"))

    def unknown(self, digests: Collection[bytes]) -> set[bytes]:
        """Which of these texts are not there."""
        known = "SELECT 1 FROM texts WHERE digest = ?"
        return {digest for digest in digests if self._database.execute(known, (digest,)).fetchone() is None}

    def texts(self) -> Iterator[StoredText]:
        """Every text."""
        for row, text, vector in self._database.execute("SELECT id, text, vector FROM texts ORDER BY id"):
            yield StoredText(row, text, self._embeddings.unpack(np.frombuffer(vector, np.uint8), self._width))

    def units(self) -> Iterator[StoredUnit]:
        """Every unit, sorted by file and line."""
        order = "ORDER BY path, start_line, end_line"
        for row in self._database.execute(f"SELECT text, path, kind, name, start_line, end_line FROM units {order}"):
            yield StoredUnit(*row)

    def units_of(self, text: int) -> list[StoredUnit]:
        """The places of a text, sorted."""
        columns, order = "text, path, kind, name, start_line, end_line", "path, start_line, end_line"
        rows = self._database.execute(f"SELECT {columns} FROM units WHERE text = ? ORDER BY {order}", (text,))
        return [StoredUnit(*row) for row in rows]

    def snippet(self, text: int) -> str:
        """The first lines of a text's code."""
        [snippet] = self._database.execute("SELECT snippet FROM texts WHERE id = ?", (text,)).fetchone()
        return snippet

    def update(self, files: Sequence[FileUnits], deleted: Collection[str], vectors: Vectors) -> Changes:
        """See `UnitIndex.update`."""
        with self._transaction():
            left = self._take_out([*deleted, *(file.path for file in files)])
            ids, added = self._add_texts(files, vectors)
            units = [
                StoredUnit(ids[unit.digest], file.path, unit.kind, unit.name, unit.start_line, unit.end_line)
                for file in files
                for unit in file.units
            ]
            self._database.executemany("INSERT INTO files VALUES (?, ?)", [(file.path, file.sha256) for file in files])
            self._database.executemany(
                "INSERT INTO units VALUES (?, ?, ?, ?, ?, ?)", [msgspec.structs.astuple(unit) for unit in units]
            )
            removed = self._forget_texts(left)
        return Changes(added, removed, units)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _make_or_check(self, project: str, manifest: SearchManifest) -> None:
        embeddings = msgspec.json.encode(manifest.embeddings).decode()
        with self._transaction():
            [version] = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._database.execute(statement)
                own = (project, f"{manifest.name} {manifest.revision}", manifest.weights_sha256, embeddings)
                self._database.execute("INSERT INTO about VALUES (?, ?, ?, ?)", own)
                self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                return
            if version != SCHEMA_VERSION:
                raise IndexUnusable(
                    f"{self._file} is of version {version} and this server reads {SCHEMA_VERSION}; "
                    f"delete {self._file.parent} and index again"
                )
            about = "SELECT model, weights_sha256, embeddings FROM about"
            model, weights, kept = self._database.execute(about).fetchone()
        if weights != manifest.weights_sha256:
            raise IndexUnusable(
                f"the index {self._file.parent} was made with the search bundle {model}, and --search-bundle is "
                f"{manifest.name} {manifest.revision}, to which its vectors mean nothing; give that bundle, or an "
                f"--index-dir for this one, or delete {self._file.parent} and index again"
            )
        if kept != embeddings:
            raise IndexUnusable(
                f"the index {self._file.parent} keeps embeddings as {kept}, and the search bundle asks for "
                f"{embeddings}; delete {self._file.parent} and index again"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise

    def _take_out(self, paths: Sequence[str]) -> set[int]:
        """Forget files; returns the texts they held."""
        held: set[int] = set()
        for path in paths:
            held.update(row for (row,) in self._database.execute("SELECT text FROM units WHERE path = ?", (path,)))
            self._database.execute("DELETE FROM units WHERE path = ?", (path,))
            self._database.execute("DELETE FROM files WHERE path = ?", (path,))
        return held

    def _add_texts(self, files: Sequence[FileUnits], vectors: Vectors) -> tuple[dict[bytes, int], list[StoredText]]:
        ids: dict[bytes, int] = {}
        added = []
        for unit in (unit for file in files for unit in file.units):
            if unit.digest in ids:
                continue
            known = self._database.execute("SELECT id FROM texts WHERE digest = ?", (unit.digest,)).fetchone()
            if known is not None:
                ids[unit.digest] = known[0]
                continue
            packed = self._embeddings.pack(vectors[unit.digest])
            row = self._database.execute(
                "INSERT INTO texts (digest, text, snippet, vector) VALUES (?, ?, ?, ?)",
                (unit.digest, unit.text, unit.snippet, packed.tobytes()),
            ).lastrowid
            assert row is not None, "an INSERT has a row"
            ids[unit.digest] = row
            # As it will be read again: the same answers before and after a restart.
            added.append(StoredText(row, unit.text, self._embeddings.unpack(packed, self._width)))
        return ids, added

    def _forget_texts(self, ids: Collection[int]) -> list[tuple[int, str]]:
        removed = []
        for row in ids:
            if self._database.execute("SELECT 1 FROM units WHERE text = ?", (row,)).fetchone() is None:
                [text] = self._database.execute("DELETE FROM texts WHERE id = ? RETURNING text", (row,)).fetchone()
                removed.append((row, text))
        return removed
