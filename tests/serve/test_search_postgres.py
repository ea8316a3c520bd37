"""The index in PostgreSQL: it ranks as the one in a folder does, and many servers share it.

The database is a real one, with pgvector; the contract that both kinds of index keep is in test_search.
"""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.search import SearchManifest, open_search_bundle
from serve.search.base import FileUnits, ForgottenTexts, IndexUnusable
from serve.search.folder import FolderIndex
from serve.search.messages import IndexRequest, SourceFile
from serve.search.postgres import lookup
from serve.search.postgres.index import PostgresIndex
from serve.search.postgres.schema import schema_name
from serve.search.service import CodeSearch
from tests.serve.conftest import wait_until
from tests.serve.indexing import WORDS, file, find, places, put, spelled, unit, vector
from tests.support.postgres import Database


@pytest.fixture(scope="module")
def url(postgres: Database) -> str:
    return postgres.make()


@pytest.fixture
def index(url: str, search_manifest: SearchManifest) -> Iterator[PostgresIndex]:
    """An index that is empty when the test begins."""
    opened = PostgresIndex(url, search_manifest)
    yield opened
    for info in opened.projects():
        opened.delete(info.project)
    opened.close()


@pytest.fixture
def folder(search_manifest: SearchManifest, tmp_path: Path) -> Iterator[FolderIndex]:
    opened = FolderIndex(tmp_path / "index", search_manifest)
    yield opened
    opened.close()


# Few words in few orders: many texts share words, and many of those have equal scores.
TEXTS = st.lists(st.sampled_from([*WORDS, "the", "of"]), min_size=1, max_size=5).map(" ".join)
UNITS = st.builds(
    lambda text, line, kind: spelled(text, text.split()[0], line, kind),
    TEXTS,
    st.integers(1, 50),
    st.sampled_from(["function", "method", "class"]),
)
PATHS = st.sampled_from(["a.py", "b.py", "src/a.py", "src/b.py", "größe.py"])
# No two units of a file stand at the same place.
FILES = st.lists(UNITS, max_size=6, unique_by=lambda unit: unit.start_line)
CHANGES = st.lists(
    st.tuples(st.dictionaries(PATHS, FILES, max_size=3), st.sets(PATHS, max_size=2)),
    min_size=1,
    max_size=3,
)
REQUESTS = st.lists(
    st.fixed_dictionaries(
        {"query": TEXTS, "like": TEXTS, "k": st.sampled_from([1, 5, 100])},
        optional={
            "path": st.sampled_from(["a.py", "src/*", "*/[ab].py", "gr??e.py", "nowhere"]),
            "kinds": st.sets(st.sampled_from(["function", "method", "class"]), min_size=1).map(tuple),
        },
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(changes=CHANGES, requests=REQUESTS)
def test_it_answers_as_the_folder_does(
    url: str,
    search_manifest: SearchManifest,
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[dict[str, list[Any]], set[str]]],
    requests: list[dict[str, Any]],
) -> None:
    index = PostgresIndex(url, search_manifest)
    folder = FolderIndex(tmp_path_factory.mktemp("folder"), search_manifest)
    try:
        for files, gone in changes:
            made = [file(path, *units) for path, units in files.items()]
            assert put(index, made, sorted(gone - files.keys())) == put(folder, made, sorted(gone - files.keys()))
            assert index.files("p") == folder.files("p")
            assert index.projects() == folder.projects()
        for request in requests:
            assert find(index, **request) == find(folder, **request)
    finally:
        index.delete("p")
        index.close()
        folder.close()


def drawn_files(count: int, of: int) -> list[FileUnits]:
    """So many files of so many units, each with words of its own."""
    rng = random.Random(0)
    return [
        file(
            f"{number}.py",
            *(
                spelled(" ".join(rng.choices(WORDS, k=4)) + f" {number} {line}", f"f{number}", line, "function")
                for line in range(1, of + 1)
            ),
        )
        for number in range(count)
    ]


def test_the_graph_finds_what_comparing_all_finds(
    index: PostgresIndex,
    folder: FolderIndex,
    postgres: Database,
    url: str,
    search_manifest: SearchManifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = drawn_files(60, 20)
    put(index, files)
    put(folder, files)
    asked = {"query": "none of them", "like": "anything"}
    compared = find(index, **asked)
    assert compared == find(folder, **asked)

    def scans() -> int:
        name = schema_name(search_manifest)
        of_graph = f"schemaname = '{name}' AND indexrelname = 'texts_graph'"
        [[count]] = postgres.execute(f"SELECT idx_scan FROM pg_stat_user_indexes WHERE {of_graph}", url)
        return count

    before = scans()
    monkeypatch.setattr(lookup, "COMPARED_ALL", 0)
    # So few rows the planner would rather sort.
    unsorted = PostgresIndex(f"{url}&options=-c%20enable_sort%3Doff", search_manifest)
    found, few, none = (find(unsorted, **asked, path=path) for path in (None, "7.py", "nowhere"))
    unsorted.close()
    wait_until(lambda: scans() > before)
    assert len(found) == 100
    assert len(places(found) & places(compared)) >= 90
    # A filter that lets fewer pass than are asked for misses none of them.
    assert few == find(folder, **asked, path="7.py")
    assert (len(few), none) == (20, ())


def test_what_an_index_of_postgres_could_not_hold_is_indexed_too(index: PostgresIndex, folder: FolderIndex) -> None:
    rng = random.Random(0)
    # Nothing of this can be compressed to the 2700 bytes that an entry of a B-tree may have.
    path, word = ("".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(length)) for length in (4096, 20_000))
    files = [
        file(path, unit("alpha")),
        file("nul\0in.py", unit("alpha", 7)),
        file("words.py", spelled(f"def {word}", word, 1, "function")),
    ]
    for one in (index, folder):
        put(one, files)
    assert index.files("p") == folder.files("p")
    for request in ({}, {"query": word}, {"path": "nul*"}):
        assert find(index, **request) == find(folder, **request)


def test_another_search_bundle_has_an_index_of_its_own(
    index: PostgresIndex, url: str, search_manifest: SearchManifest
) -> None:
    put(index, [file("a.py", unit("alpha"))])
    narrower = msgspec.structs.replace(search_manifest, weights_sha256="0" * 64, dimensions=(32,))
    other = PostgresIndex(url, narrower)
    try:
        assert other.projects() == []
        other.update("p", [file("b.py", unit("beta"))], (), {unit("beta").digest: vector("beta")[:32]})
        assert index.files("p").keys() == {"a.py"}
        assert other.files("p").keys() == {"b.py"}
    finally:
        other.close()


def test_a_manifest_can_not_name_what_would_be_run(url: str, search_manifest: SearchManifest) -> None:
    with pytest.raises(IndexUnusable, match="no `weights_sha256`"):
        PostgresIndex(url, msgspec.structs.replace(search_manifest, weights_sha256="0; DROP SCHEMA public --"))


def test_servers_that_start_at_the_same_time_make_one_index(
    postgres: Database, search_manifest: SearchManifest
) -> None:
    url = postgres.make()
    with ThreadPoolExecutor(6) as threads:
        opened = list(threads.map(lambda _: PostgresIndex(url, search_manifest), range(6)))
    put(opened[0], [file("a.py", unit("alpha"))])
    for index in opened:
        assert places(find(index)) == {("a.py", 1, "alpha")}
        index.close()


def test_servers_that_change_one_project_at_once_leave_whole_files(
    index: PostgresIndex, url: str, search_manifest: SearchManifest
) -> None:
    def change(number: int) -> None:
        rng, own = random.Random(number), PostgresIndex(url, search_manifest)
        for _ in range(15):
            paths = rng.sample(["a.py", "b.py", "c.py"], 2)
            put(own, [file(paths[0], *(unit(word, number) for word in rng.sample(WORDS, 2)))], paths[1:])
        put(own, [file(f"{number}.py", unit("alpha", number))])
        own.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(change, range(1, 5)))
    info, found = index.info("p"), places(find(index))
    assert {path for path, _, _ in found} == index.files("p").keys() >= {f"{number}.py" for number in range(1, 5)}
    for path in index.files("p").keys() & {"a.py", "b.py", "c.py"}:
        units = [(line, name) for where, line, name in found if where == path]
        assert len({line for line, _ in units}) == 1, "a file is of one server"
        assert len(units) == 2
    assert (info.files, info.units) == (len(index.files("p")), len(found))
    put(index, [], index.files("p").keys())
    # What is counted on the way is what there is: nothing.
    with psycopg.connect(url) as connection:
        schema = schema_name(search_manifest)
        counted = connection.execute(f"SELECT files, units, texts, words FROM {schema}.projects").fetchall()
        left = [connection.execute(f"SELECT FROM {schema}.{table}").fetchall() for table in ("texts", "postings")]
    assert (counted, left) == ([(0, 0, 0, 0)], [[], []])


def test_a_text_that_another_server_took_out_is_not_taken_for_known(index: PostgresIndex) -> None:
    put(index, [file("a.py", unit("alpha"))])
    assert index.unknown("p", [unit("alpha").digest]) == set()
    put(index, [], ["a.py"])
    with pytest.raises(ForgottenTexts):
        index.update(
            "p", [file("b.py", unit("beta")), file("c.py", unit("alpha"))], (), {unit("beta").digest: vector("")}
        )
    assert index.files("p") == {}


class Overtaken(PostgresIndex):
    """Another server empties the project as soon as it has been asked what is unknown."""

    def unknown(self, project: str, digests: Any) -> set[bytes]:
        missing = super().unknown(project, digests)
        if self.projects():
            self.update(project, [], self.files(project).keys(), {})
        return missing


class Unobserved:
    def searched(self, embedding: float, finding: float) -> None: ...


async def test_what_another_server_took_out_meanwhile_is_embedded_again(
    url: str, index: PostgresIndex, tiny_search_bundle: Path, search_manifest: SearchManifest, patient_parser: None
) -> None:
    overtaken = Overtaken(url, search_manifest)
    search = CodeSearch(open_search_bundle(tiny_search_bundle), overtaken, 1, Unobserved())
    try:
        await search.start()
        code = "def f():\n    return 1\n"
        first = await search.update(IndexRequest(project="p", files=(SourceFile("a.py", code),)))
        again = await search.update(IndexRequest(project="p", files=(SourceFile("b.py", code),)))
    finally:
        search.close()
    assert (first.embedded, again.embedded, again.files) == (1, 1, 1)
    assert index.files("p").keys() == {"b.py"}
