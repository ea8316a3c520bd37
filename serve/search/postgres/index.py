"""The index in a PostgreSQL with pgvector, for a corpus or a fleet of servers beyond one machine."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Cursor, InterfaceError, OperationalError, errors

from bundle.search import SearchManifest
from serve.search.base import FileUnits, IndexAway, UnknownProject, Vectors
from serve.search.messages import ProjectInfo, SearchRequest, SearchResult
from serve.search.postgres.changes import delete_project, lock_project, put_files
from serve.search.postgres.lookup import find
from serve.search.postgres.schema import open_pool

# The last: a database that was promoted elsewhere, and is only to be read here.
_AWAY = (OperationalError, InterfaceError, errors.ReadOnlySqlTransaction)


class PostgresIndex:
    """A `UnitIndex` that many servers may share: a change is a transaction, and one project's come one after another.

    Nothing of it is in this process, so every server sees at once what any has changed.
    """

    def __init__(self, url: str, manifest: SearchManifest) -> None:
        """
        Args:
            url: of the database, with a user that may make a schema in it, and a password if it asks for one.
            manifest: of the search bundle that embeds; another bundle has an index of its own in the same database.

        Raises:
            IndexUnusable: the database can not be reached or used.
        """
        self._hybrid = manifest.hybrid
        self._pool = open_pool(url, manifest)

    def projects(self) -> list[ProjectInfo]:
        """See `UnitIndex`."""
        with self._transaction() as cursor:
            rows = cursor.execute("SELECT name, files, units FROM projects").fetchall()
        return [ProjectInfo(project=name, files=files, units=units) for name, files, units in sorted(rows)]

    def info(self, project: str) -> ProjectInfo:
        """See `UnitIndex`."""
        with self._transaction() as cursor:
            row = cursor.execute("SELECT files, units FROM projects WHERE name = %s", (project,)).fetchone()
        if row is None:
            raise UnknownProject(project)
        return ProjectInfo(project=project, files=row[0], units=row[1])

    def files(self, project: str) -> dict[str, str]:
        """See `UnitIndex`."""
        with self._transaction() as cursor:
            row = cursor.execute("SELECT id FROM projects WHERE name = %s", (project,)).fetchone()
            if row is None:
                raise UnknownProject(project)
            rows = cursor.execute("SELECT path, sha256 FROM files WHERE project = %s", row).fetchall()
        return {path.decode(): sha256 for path, sha256 in rows}

    def unknown(self, project: str, digests: Collection[bytes]) -> set[bytes]:
        """See `UnitIndex`."""
        with self._transaction() as cursor:
            known = cursor.execute(
                "SELECT digest FROM texts JOIN projects ON projects.id = project WHERE name = %s AND digest = ANY(%s)",
                (project, [*digests]),
            ).fetchall()
        return set(digests) - {digest for (digest,) in known}

    def update(self, project: str, files: Sequence[FileUnits], deleted: Collection[str], vectors: Vectors) -> None:
        """See `UnitIndex`."""
        with self._transaction() as cursor:
            put_files(cursor, lock_project(cursor, project), files, deleted, vectors)

    def search(self, request: SearchRequest, vector: NDArray[np.float32]) -> tuple[SearchResult, ...]:
        """See `UnitIndex`."""
        with self._transaction() as cursor:
            return find(cursor, request, vector, self._hybrid)

    def delete(self, project: str) -> None:
        """See `UnitIndex`."""
        with self._transaction() as cursor:
            if not delete_project(cursor, project):
                raise UnknownProject(project)

    def close(self) -> None:
        """See `UnitIndex`."""
        self._pool.close()

    @contextmanager
    def _transaction(self) -> Iterator[Cursor[Any]]:
        """All that is done with the cursor, or nothing."""
        try:
            with self._pool.connection() as connection, connection.cursor() as cursor:
                yield cursor
        except _AWAY as error:
            raise IndexAway(f"PostgreSQL did not answer as it should: {error}; check that it runs") from error
