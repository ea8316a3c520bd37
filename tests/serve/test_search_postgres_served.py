"""A server over an index in PostgreSQL: its role, its password, and what it does when either end goes away."""

import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from bundle.search import SearchManifest
from serve.search.base import IndexUnusable
from serve.search.postgres.index import PostgresIndex
from serve.search.postgres.schema import schema_name
from tests.serve.conftest import Server, running_server, serve_command, wait_until
from tests.serve.indexing import EVERYTHING, file, find, places, put, unit
from tests.serve.problems import problem
from tests.support.postgres import Database

SECRET = "hunter2"


@pytest.fixture(scope="module")
def url(postgres: Database) -> str:
    return postgres.make()


def test_a_role_that_may_not_make_the_index_is_told_what_to_run_and_may_use_one(
    postgres: Database, search_manifest: SearchManifest
) -> None:
    owner = postgres.make()
    postgres.execute("CREATE ROLE app LOGIN")
    app = owner.replace("postgres:@", "app:@")
    with pytest.raises(IndexUnusable, match="CREATE EXTENSION IF NOT EXISTS vector"):
        PostgresIndex(app, search_manifest)
    postgres.execute("CREATE EXTENSION vector", owner)
    with pytest.raises(IndexUnusable, match="GRANT CREATE ON DATABASE"):
        PostgresIndex(app, search_manifest)

    PostgresIndex(owner, search_manifest).close()
    schema = schema_name(search_manifest)
    postgres.execute(f"GRANT USAGE ON SCHEMA {schema} TO app", owner)
    postgres.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO app", owner)
    index = PostgresIndex(app, search_manifest)
    put(index, [file("a.py", unit("alpha"))])
    assert places(find(index)) == {("a.py", 1, "alpha")}
    index.close()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:9/code",
        f"postgresql://me:{SECRET}@{SECRET}@127.0.0.1:9/code",
        f"postgresql://me:{SECRET}/{SECRET}@127.0.0.1:9/code",
        f"postgresql://me:{SECRET}%@127.0.0.1:9/code",
        f"postgresql://me:{SECRET}@[127.0.0.1:9/code",
        f"postgresql://me@127.0.0.1:9/code?password={SECRET}&{SECRET}",
    ],
)
def test_a_password_is_never_shown(url: str, search_manifest: SearchManifest) -> None:
    with pytest.raises(IndexUnusable) as caught:
        PostgresIndex(url, search_manifest)
    assert SECRET not in str(caught.value)


@pytest.fixture(scope="module")
def searching(tiny_bundle: Path, tiny_search_bundle: Path, postgres: Database) -> Iterator[Server]:
    environment = {"DEEPCODE_INDEX_URL": postgres.make()}
    with running_server(tiny_bundle, "--search-bundle", str(tiny_search_bundle), environment=environment) as server:
        yield server


def indexing(server: Server, files: dict[str, str]) -> httpx.Response:
    body = {"project": "p", "files": [{"path": path, "code": code} for path, code in files.items()]}
    return httpx.post(f"{server.url}/v1/index", json=body, timeout=120)


def asking(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/search", json={"project": "p", "query": "read config"}, timeout=120)


def test_a_server_lives_on_while_its_database_is_away(searching: Server, postgres: Database) -> None:
    code = {"a.py": "def read_config(path):\n    return open(path).read()\n"}
    assert indexing(searching, code).json()["units"] == 1
    found = asking(searching).json()
    assert found["results"][0]["found_by"] == {"embedding": 1, "bm25": 1}

    postgres.stop()
    try:
        with ThreadPoolExecutor() as threads:
            asked = threads.submit(asking, searching), threads.submit(indexing, searching, {"b.py": "x = 1\n"})
        for answer in (future.result() for future in asked):
            told = problem(answer, 503, "index-away")
            assert "Ask again" in told["detail"]
            assert int(answer.headers["retry-after"]) > 0
        assert httpx.get(f"{searching.url}/health/ready").status_code == 200
    finally:
        postgres.start()
    wait_until(lambda: asking(searching).status_code == 200)
    assert asking(searching).json() == found
    assert any("PostgreSQL did not answer" in line["message"] for line in searching.log())


def test_a_server_that_is_killed_while_it_indexes_leaves_whole_files(
    tiny_bundle: Path, tiny_search_bundle: Path, search_manifest: SearchManifest, postgres: Database
) -> None:
    url = postgres.make()
    index = PostgresIndex(url, search_manifest)
    # Written a few files at a time, so that there is a moment after the first.
    many = {f"{n}.py": f"def f{n}():\n" + f"    some_name = another_name({n})\n" * 250 for n in range(600)}
    flags = ("--search-bundle", str(tiny_search_bundle), "--index-url", url)
    with running_server(tiny_bundle, *flags) as server:

        def send() -> None:
            with pytest.raises(httpx.TransportError):
                indexing(server, many)

        sending = threading.Thread(target=send)
        sending.start()
        wait_until(lambda: bool(index.projects()) and index.info("p").files > 1)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        sending.join()
    # Another takes over at once.
    assert put(index, [file("last.py", unit("alpha"))]) == {unit("alpha").digest}
    info = index.info("p")
    assert 1 < info.files < 601
    assert info.units == info.files
    assert find(index, EVERYTHING, path="last.py")[0].found_by["bm25"] == 1
    index.close()


def test_a_server_does_not_start_without_its_database_and_does_not_show_the_url(
    tiny_bundle: Path, tiny_search_bundle: Path, tmp_path: Path
) -> None:
    def refused(*arguments: str) -> str:
        command = serve_command(str(tiny_bundle), "--search-bundle", str(tiny_search_bundle), *arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, "Traceback" in done.stderr, SECRET in done.stderr) == (2, False, False)
        return done.stderr

    assert "the database can not be reached" in refused("--index-url", f"postgresql://me:{SECRET}@127.0.0.1:9/code")
    assert "postgresql://" in refused("--index-url", f"https://me:{SECRET}@127.0.0.1/code")
    assert "either --index-dir" in refused(
        "--index-url", f"postgres://me:{SECRET}@db/code", "--index-dir", str(tmp_path)
    )
