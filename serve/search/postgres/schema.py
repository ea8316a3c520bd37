"""The tables of an index in PostgreSQL, and the connections that use them.

Each search bundle has a schema of its own, made by the first server that comes with it. What a search must find fast
has a key of fixed length there, because an index of PostgreSQL holds no long values: a file the sha256 of its path, a
text its digest, a word 64 bits of its hash.
"""

import re
from typing import Any

from pgvector.psycopg import register_vector
from psycopg import Connection, Cursor, OperationalError, ProgrammingError, connect, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from bundle.search import SearchManifest
from serve.search.base import IndexUnusable

SCHEMA_VERSION = 1
CONNECTIONS = 8
WAIT_SECONDS = 5
"""For a connection."""
GRAPH_WIDTH = 400
"""Of a search in pgvector's graph: the texts that it keeps as candidates; with more it misses less and takes longer."""
_MAKING = 0x64656570636F6465
"""The advisory lock of servers that make their schema: one after another."""
_VECTOR_VERSION = (0, 8)
"""Of pgvector: searches of its graph go on until a filter has let enough pass."""

# Paths are bytes: any character may be in one, and their order is that of their bytes in every database.
# Postings name a text without a foreign key, which would be looked up for each: their texts come and go with them.
_TABLES = """
CREATE TABLE projects (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE,
    files bigint NOT NULL DEFAULT 0, units bigint NOT NULL DEFAULT 0,
    texts bigint NOT NULL DEFAULT 0, words bigint NOT NULL DEFAULT 0
);
CREATE TABLE files (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, project integer NOT NULL REFERENCES projects,
    path bytea NOT NULL, key bytea NOT NULL, sha256 text NOT NULL, UNIQUE (project, key)
);
CREATE TABLE texts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, project integer NOT NULL REFERENCES projects,
    digest bytea NOT NULL, words integer NOT NULL, snippet text NOT NULL, embedding halfvec({dimension}) NOT NULL,
    UNIQUE (project, digest)
);
CREATE INDEX texts_graph ON texts USING hnsw (embedding halfvec_ip_ops);
CREATE TABLE units (
    file bigint NOT NULL REFERENCES files, text bigint NOT NULL REFERENCES texts, kind text NOT NULL,
    name text NOT NULL, start_line integer NOT NULL, end_line integer NOT NULL
);
CREATE INDEX units_of_file ON units (file);
CREATE INDEX units_of_text ON units (text);
CREATE TABLE postings (
    project integer NOT NULL, word bigint NOT NULL, text bigint NOT NULL,
    count integer NOT NULL, length integer NOT NULL
);
CREATE INDEX postings_of_word ON postings (project, word) INCLUDE (text, count, length);
CREATE INDEX postings_of_text ON postings (text);
"""

# Projects differ in size by orders of magnitude: a plan that fits one does not fit another. Compiling one takes longer
# than what it saves. The last two: a server that hangs in the middle of a change must not stop all others.
_SESSION = f"""
SELECT set_config('search_path', '{{schema}}, ' || current_setting('search_path'), false);
SET plan_cache_mode = force_custom_plan;
SET jit = off;
SET hnsw.ef_search = {GRAPH_WIDTH};
SET hnsw.iterative_scan = strict_order;
SET lock_timeout = '60s';
SET idle_in_transaction_session_timeout = '60s';
"""

_CONNECTION: dict[str, Any] = {
    "application_name": "deepcode-analyst",
    "connect_timeout": WAIT_SECONDS,
    # A machine that is gone says nothing: after a minute without a sign of life it is taken for gone.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


def schema_name(manifest: SearchManifest) -> str:
    """The schema of a search bundle's index.

    Raises:
        IndexUnusable: the bundle's manifest has something else in the place of the hash, which would be run as SQL.
    """
    digits = manifest.weights_sha256[:32]
    if re.fullmatch("[0-9a-f]{32}", digits) is None:
        raise IndexUnusable(f"the search bundle {manifest.name} has no `weights_sha256`; build it again")
    return f"deepcode_{SCHEMA_VERSION}_{digits}"


def open_pool(url: str, manifest: SearchManifest) -> ConnectionPool:
    """Connections to a database that has the schema of this bundle; it is made when it is not there.

    Args:
        url: of the database; what it says of a connection goes before our own defaults. It may hold a password, so
            no error shows it.
        manifest: of the search bundle that embeds.

    Raises:
        IndexUnusable: the database does not answer, lets nobody in, has no pgvector, or lets no schema be made.
    """
    conninfo = _conninfo(url)
    schema = schema_name(manifest)
    try:
        with connect(conninfo) as connection, connection.cursor() as cursor:
            _make(cursor, schema, manifest.dimensions[0])
    except OperationalError as error:
        raise IndexUnusable(f"the database can not be reached: {error}; check the URL and that it runs") from error
    except errors.InsufficientPrivilege as error:
        raise IndexUnusable(
            f"the role of the URL may not make or use the index ({error}); have an administrator run, in that "
            "database, CREATE EXTENSION IF NOT EXISTS vector, and GRANT CREATE ON DATABASE … TO the role; where "
            "another role has made the index, grant this one USAGE of its schema and all on its tables"
        ) from error
    except (errors.FeatureNotSupported, errors.UndefinedFile) as error:
        raise IndexUnusable(
            f"the database server has no pgvector ({error}); install it there, or use an image that has it"
        ) from error

    def configure(connection: Connection[Any]) -> None:
        connection.execute(_SESSION.format(schema=schema))
        register_vector(connection)
        connection.commit()

    return ConnectionPool(
        conninfo,
        min_size=1,
        max_size=CONNECTIONS,
        timeout=WAIT_SECONDS,
        # Given up soon, because the next request tries again at once.
        reconnect_timeout=WAIT_SECONDS,
        configure=configure,
        check=ConnectionPool.check_connection,
        open=True,
    )


def _conninfo(url: str) -> str:
    try:
        given = conninfo_to_dict(url)
    except ProgrammingError:
        given = {"port": "none"}
    # Where a password holds an @ or a / as it is, libpq takes what follows for the host and the port, and shows it.
    ports = str(given.get("port") or "").split(",")
    if "@" in str(given.get("host") or "") or not all(port.isdecimal() or not port for port in ports):
        raise IndexUnusable(
            "it is no URL of a PostgreSQL: give one such as postgresql://USER:PASSWORD@HOST:5432/DATABASE, and in user "
            "and password write what is neither letter nor digit as %40 (for @), %2F (for /) and so on"
        )
    return make_conninfo(**(_CONNECTION | given))


def _make(cursor: Cursor[Any], schema: str, dimension: int) -> None:
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
    # Only when it is missing: whoever runs a server need not be allowed to make what an administrator has made.
    if cursor.execute("SELECT FROM pg_extension WHERE extname = 'vector'").fetchone() is None:
        cursor.execute("CREATE EXTENSION vector")
    [version] = cursor.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone() or ("0",)
    if tuple(map(int, version.split(".")[:2])) < _VECTOR_VERSION:
        raise IndexUnusable(
            f"its pgvector is {version}, and this server needs 0.8 or newer: install that and run, in that database, "
            "ALTER EXTENSION vector UPDATE"
        )
    if cursor.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is None:
        cursor.execute(f"CREATE SCHEMA {schema}")
        cursor.execute(f"SET LOCAL search_path = {schema}, public")
        cursor.execute(_TABLES.format(dimension=dimension))
    cursor.execute(f"SELECT FROM {schema}.projects LIMIT 1")  # may this role read it?
