"""The index of code search: it holds exactly what was put there, whatever happens to the process that writes it."""

import hashlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.search import SearchManifest, open_search_bundle
from serve.search.base import FileUnits, IndexUnusable, UnitIndex, UnitText, UnknownProject
from serve.search.folder import GOING, FolderIndex
from serve.search.messages import SearchRequest, SearchResult
from serve.search.storage import DATABASE_FILE

WORDS = ("alpha", "beta", "gamma", "delta")
EVERYTHING = " ".join(WORDS)
WIDTH = 64
"""Of the tiny search bundle's embeddings."""


@pytest.fixture(scope="module")
def manifest(tiny_search_bundle: Path) -> SearchManifest:
    return open_search_bundle(tiny_search_bundle).manifest


@pytest.fixture
def index(tmp_path: Path, manifest: SearchManifest) -> Iterator[FolderIndex]:
    opened = FolderIndex(tmp_path / "index", manifest)
    yield opened
    opened.close()


def unit(word: str, line: int = 1, kind: str = "function") -> UnitText:
    text = f"{word}\ndef {word}(): ..."
    digest = hashlib.sha256(text.encode()).digest()
    return UnitText(kind=kind, name=word, start_line=line, end_line=line + 1, digest=digest, text=text, snippet=text)


def file(path: str, *units: UnitText) -> FileUnits:
    return FileUnits(path, hashlib.sha256(repr(units).encode()).hexdigest(), units)


def vector(text: str) -> np.ndarray:
    """A direction of its own for every text."""
    drawn = np.random.default_rng(list(text.encode())).standard_normal(WIDTH).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def put(index: UnitIndex, files: Sequence[FileUnits], deleted: Sequence[str] = (), project: str = "p") -> set[bytes]:
    """Index files as a server does; returns what had to be embedded."""
    texts = {unit.digest: unit.text for file in files for unit in file.units}
    new = index.unknown(project, texts.keys())
    index.update(project, files, deleted, {digest: vector(texts[digest]) for digest in new})
    return new


def find(index: UnitIndex, query: str = EVERYTHING, like: str = "", **request: object) -> tuple[SearchResult, ...]:
    """Search for the words of a query and for what is near the text `like`."""
    asked = SearchRequest(query=query, project="p", **{"k": 100, **request})
    return index.search(asked, vector(like))


def places(results: Sequence[SearchResult]) -> set[tuple[str, int, str]]:
    """Where everything stands that was found: path, line and name."""
    return {(place.path, place.start_line, result.name) for result in results for place in (result, *result.copies)}


FILES = st.dictionaries(st.sampled_from(["a.py", "b.py", "c/d.py"]), st.lists(st.sampled_from(WORDS), max_size=3))
CHANGES = st.lists(st.tuples(FILES, st.sets(st.sampled_from(["a.py", "b.py", "never.py"]))), max_size=4)


@settings(max_examples=30, deadline=None)
@given(changes=CHANGES)
def test_it_holds_exactly_what_was_put_there_and_again_after_a_restart(
    manifest: SearchManifest, changes: list[tuple[dict[str, list[str]], set[str]]]
) -> None:
    expected: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = FolderIndex(Path(folder), manifest)
        put(index, [file("a.py")])
        expected["a.py"] = []
        for files, gone in changes:
            made = [file(path, *(unit(word, n) for n, word in enumerate(words, 1))) for path, words in files.items()]
            put(index, made, sorted(gone - files.keys()))
            expected = {path: words for path, words in expected.items() if path not in gone} | files
        units = {(path, n, word) for path, words in expected.items() for n, word in enumerate(words, 1)}
        found = find(index)
        index.close()
        reopened = FolderIndex(Path(folder), manifest)
        try:
            assert places(found) == units
            assert {result.name for result in found} == {word for _, _, word in units}
            assert find(reopened) == found
            assert reopened.files("p").keys() == expected.keys()
            [info] = reopened.projects()
            assert (info.files, info.units) == (len(expected), len(units))
        finally:
            reopened.close()


def test_a_unit_in_several_files_is_embedded_once_and_found_once_with_its_copies(index: FolderIndex) -> None:
    assert len(put(index, [file("a.py", unit("alpha"), unit("alpha", 5)), file("b.py", unit("alpha"))])) == 1
    [result] = find(index)
    assert (result.path, result.start_line) == ("a.py", 1)
    assert [(copy.path, copy.start_line) for copy in result.copies] == [("a.py", 5), ("b.py", 1)]

    assert put(index, [file("c.py", unit("alpha"))], ["a.py"]) == set()
    [result] = find(index)
    assert (result.path, [copy.path for copy in result.copies]) == ("b.py", ["c.py"])

    put(index, [], ["b.py", "c.py"])
    assert find(index) == ()


def test_words_and_meaning_find_each_their_own_and_both_count(index: FolderIndex) -> None:
    put(index, [file("a.py", *(unit(word, n) for n, word in enumerate(WORDS)))])

    spelled = find(index, "beta", like="nothing like it")
    assert spelled[0].found_by["bm25"] == 1
    assert {result.name for result in spelled if "bm25" in result.found_by} == {"beta"}

    meant = find(index, "unspelled", like=unit("gamma").text)
    assert meant[0].name == "gamma"
    assert meant[0].found_by == {"embedding": 1}
    assert [result.score for result in meant] == sorted((result.score for result in meant), reverse=True)

    [best, *_] = find(index, "delta", like=unit("delta").text, k=1)
    assert (best.name, best.found_by) == ("delta", {"embedding": 1, "bm25": 1})


def test_filters_take_files_and_kinds_of_units(index: FolderIndex) -> None:
    put(
        index,
        [
            file("src/a.py", unit("alpha"), unit("beta", 4, "method")),
            file("tests/a.py", unit("alpha"), unit("gamma", 4)),
        ],
    )
    everywhere = {("src/a.py", 1, "alpha"), ("tests/a.py", 1, "alpha")}
    assert places(find(index, kinds=("method",))) == {("src/a.py", 4, "beta")}
    assert places(find(index, path="tests/*")) == everywhere | {("tests/a.py", 4, "gamma")}
    assert {result.path for result in find(index, path="tests/*")} == {"tests/a.py"}
    assert places(find(index, path="*/a.py", kinds=("function",))) == everywhere | {("tests/a.py", 4, "gamma")}
    assert find(index, path="src") == ()
    assert find(index, path="src/*", kinds=("class",)) == ()


def test_a_path_pattern_made_to_stall_does_not(index: FolderIndex) -> None:
    put(index, [file("a" * 200, unit("alpha"))])
    assert find(index, path="*a" * 100 + "b") == ()


def test_a_project_that_is_deleted_is_gone_with_its_files(index: FolderIndex, tmp_path: Path) -> None:
    put(index, [file("a.py", unit("alpha"))])
    put(index, [file("a.py", unit("beta"))], project="other")
    index.delete("p")

    assert [info.project for info in index.projects()] == ["other"]
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == ["lock", "other"]
    with pytest.raises(UnknownProject, match="'p'"):
        find(index)
    with pytest.raises(UnknownProject):
        index.delete("p")
    put(index, [file("a.py", unit("gamma"))])
    assert places(find(index)) == {("a.py", 1, "gamma")}


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from bundle.search import open_search_bundle
from serve.search.folder import FolderIndex
from tests.serve.test_search import file, put, unit, vector

class Deadly(dict):
    def __getitem__(self, digest):
        # Inside the transaction, after the first of its texts was written.
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(digest)

index = FolderIndex(Path(sys.argv[1]), open_search_bundle(Path(sys.argv[2])).manifest)
put(index, [file("a.py", unit("alpha")), file("b.py", unit("beta"))])
files = [file("a.py", unit("gamma"), unit("delta", 4)), file("c.py", unit("alpha"))]
texts = [each for one in files for each in one.units]
index.update("p", files, ["b.py"], Deadly({each.digest: vector(each.text) for each in texts}))
"""


def test_killed_in_the_middle_of_a_change_it_holds_what_it_held_before(
    tmp_path: Path, tiny_search_bundle: Path, manifest: SearchManifest
) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path), str(tiny_search_bundle)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr

    index = FolderIndex(tmp_path, manifest)
    try:
        assert places(find(index)) == {("a.py", 1, "alpha"), ("b.py", 1, "beta")}
        put(index, [file("a.py", unit("gamma"))])
        assert places(find(index)) == {("a.py", 1, "gamma"), ("b.py", 1, "beta")}
    finally:
        index.close()


def test_an_index_of_another_search_bundle_is_refused_and_both_are_named(
    tmp_path: Path, manifest: SearchManifest
) -> None:
    index = FolderIndex(tmp_path, manifest)
    put(index, [file("a.py", unit("alpha"))])
    index.close()
    other = msgspec.structs.replace(manifest, name="other", weights_sha256="0" * 64)
    with pytest.raises(IndexUnusable, match=rf"made with the search bundle {manifest.name} .* is other 0000") as caught:
        FolderIndex(tmp_path, other)
    assert "delete" in str(caught.value)
    FolderIndex(tmp_path, manifest).close()


def test_an_index_that_can_not_be_read_is_refused_by_its_file(tmp_path: Path, manifest: SearchManifest) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / DATABASE_FILE).write_bytes(b"no database" * 100)
    with pytest.raises(IndexUnusable, match=r"index\.sqlite can not be read"):
        FolderIndex(tmp_path, manifest)

    (folder / DATABASE_FILE).unlink()
    with sqlite3.connect(folder / DATABASE_FILE) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(IndexUnusable, match="is of version 99"):
        FolderIndex(tmp_path, manifest)


def test_two_servers_do_not_share_a_folder(index: FolderIndex, tmp_path: Path, manifest: SearchManifest) -> None:
    with pytest.raises(IndexUnusable, match="used by another deepcode-serve"):
        FolderIndex(tmp_path / "index", manifest)


def test_what_was_left_of_a_deletion_goes_at_the_next_start(tmp_path: Path, manifest: SearchManifest) -> None:
    index = FolderIndex(tmp_path, manifest)
    put(index, [file("a.py", unit("alpha"))])
    index.close()
    shutil.move(tmp_path / "p", tmp_path / f"{GOING}p")

    index = FolderIndex(tmp_path, manifest)
    assert index.projects() == []
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    index.close()
