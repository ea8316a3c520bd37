"""The index of code search: it holds exactly what was put there, whatever happens to the process that writes it.

In a folder and in a PostgreSQL alike; what one of them alone does is in test_search_folder and test_search_postgres.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.search import SearchManifest
from serve.search.base import UnitIndex, UnknownProject
from tests.serve.indexing import WORDS, Place, file, find, places, put, unit


@pytest.fixture(scope="module", params=["folder", "postgres"])
def new_place(
    request: pytest.FixtureRequest, search_manifest: SearchManifest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Place]:
    """Gives a place where no index is yet."""

    def make() -> Place:
        if request.param == "folder":
            return Place("folder", str(tmp_path_factory.mktemp("index")), search_manifest)
        return Place("postgres", request.getfixturevalue("postgres").make(), search_manifest)

    return make


@pytest.fixture
def index(new_place: Callable[[], Place]) -> Iterator[UnitIndex]:
    opened = new_place().open()
    yield opened
    opened.close()


FILES = st.dictionaries(st.sampled_from(["a.py", "b.py", "c/d.py"]), st.lists(st.sampled_from(WORDS), max_size=3))
CHANGES = st.lists(st.tuples(FILES, st.sets(st.sampled_from(["a.py", "b.py", "never.py"]))), max_size=4)


@pytest.fixture(scope="module")
def lasting(new_place: Callable[[], Place]) -> Place:
    """A place that all examples use, each for itself."""
    return new_place()


@settings(max_examples=30, deadline=None)
@given(changes=CHANGES)
def test_it_holds_exactly_what_was_put_there_and_again_after_a_restart(
    lasting: Place, changes: list[tuple[dict[str, list[str]], set[str]]]
) -> None:
    expected: dict[str, list[str]] = {}
    index = lasting.open()
    put(index, [file("a.py")])
    expected["a.py"] = []
    for files, gone in changes:
        made = [file(path, *(unit(word, n) for n, word in enumerate(words, 1))) for path, words in files.items()]
        put(index, made, sorted(gone - files.keys()))
        expected = {path: words for path, words in expected.items() if path not in gone} | files
    units = {(path, n, word) for path, words in expected.items() for n, word in enumerate(words, 1)}
    found = find(index)
    index.close()
    reopened = lasting.open()
    try:
        assert places(found) == units
        assert {result.name for result in found} == {word for _, _, word in units}
        assert find(reopened) == found
        assert reopened.files("p").keys() == expected.keys()
        [info] = reopened.projects()
        assert (info.files, info.units) == (len(expected), len(units))
        assert reopened.info("p") == info
    finally:
        reopened.delete("p")
        reopened.close()


def test_a_unit_in_several_files_is_embedded_once_and_found_once_with_its_copies(index: UnitIndex) -> None:
    assert len(put(index, [file("a.py", unit("alpha"), unit("alpha", 5)), file("b.py", unit("alpha"))])) == 1
    [result] = find(index)
    assert (result.path, result.start_line) == ("a.py", 1)
    assert [(copy.path, copy.start_line) for copy in result.copies] == [("a.py", 5), ("b.py", 1)]

    assert put(index, [file("c.py", unit("alpha"))], ["a.py"]) == set()
    [result] = find(index)
    assert (result.path, [copy.path for copy in result.copies]) == ("b.py", ["c.py"])

    put(index, [], ["b.py", "c.py"])
    assert find(index) == ()


def test_words_and_meaning_find_each_their_own_and_both_count(index: UnitIndex) -> None:
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


def test_filters_take_files_and_kinds_of_units(index: UnitIndex) -> None:
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


def test_a_path_pattern_made_to_stall_does_not(index: UnitIndex) -> None:
    put(index, [file("a" * 200, unit("alpha"))])
    assert find(index, path="*a" * 100 + "b") == ()


def test_a_project_that_is_deleted_or_never_was_is_unknown(index: UnitIndex) -> None:
    put(index, [file("a.py", unit("alpha"))])
    put(index, [file("a.py", unit("beta"))], project="other")
    index.delete("p")

    assert [info.project for info in index.projects()] == ["other"]
    for ask in (
        lambda: find(index),
        lambda: index.delete("p"),
        lambda: index.files("p"),
        lambda: index.info("p"),
        lambda: find(index, path="a*"),
    ):
        with pytest.raises(UnknownProject, match="'p'"):
            ask()
    assert put(index, [file("a.py", unit("alpha"))]) == {unit("alpha").digest}
    assert places(find(index)) == {("a.py", 1, "alpha")}


def test_a_project_without_a_unit_has_nothing_to_find(index: UnitIndex) -> None:
    put(index, [file("a.py")])
    assert find(index) == find(index, path="a*", kinds=("class",)) == ()
    put(index, [], ["a.py"])
    assert find(index) == ()
    assert index.files("p") == {}


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from bundle.search import open_search_bundle
from tests.serve.indexing import Place, file, put, unit, vector

class Deadly(dict):
    def __getitem__(self, digest):
        # Inside the transaction, after the files that are replaced were taken out.
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(digest)

index = Place(sys.argv[1], sys.argv[2], open_search_bundle(Path(sys.argv[3])).manifest).open()
put(index, [file("a.py", unit("alpha")), file("b.py", unit("beta"))])
files = [file("a.py", unit("gamma"), unit("delta", 4)), file("c.py", unit("alpha"))]
texts = [each for one in files for each in one.units]
index.update("p", files, ["b.py"], Deadly({each.digest: vector(each.text) for each in texts}))
"""


def test_killed_in_the_middle_of_a_change_it_holds_what_it_held_before(
    new_place: Callable[[], Place], tiny_search_bundle: Path
) -> None:
    place = new_place()
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, place.kind, place.location, str(tiny_search_bundle)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr

    index = place.open()
    try:
        assert places(find(index)) == {("a.py", 1, "alpha"), ("b.py", 1, "beta")}
        put(index, [file("a.py", unit("gamma"))])
        assert places(find(index)) == {("a.py", 1, "gamma"), ("b.py", 1, "beta")}
    finally:
        index.close()
