"""The index in Qdrant does what the index in a folder does: the same changes, the same answers.

In the client's own local mode, which keeps the points in this process.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.search import SearchManifest, open_search_bundle
from serve.search.base import IndexAway, UnknownProject
from serve.search.folder import FolderIndex
from tests.serve.test_search import WORDS, file, find, places, put, unit

qdrant_client = pytest.importorskip("qdrant_client")

from serve.search.qdrant import QdrantIndex  # noqa: E402


@pytest.fixture(scope="module")
def manifest(tiny_search_bundle: Path) -> SearchManifest:
    return open_search_bundle(tiny_search_bundle).manifest


@pytest.fixture
def index(manifest: SearchManifest) -> Iterator[QdrantIndex]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # local mode has no payload indices and needs none
        opened = QdrantIndex(qdrant_client.QdrantClient(":memory:"), manifest)
        yield opened
        opened.close()


@pytest.fixture
def folder(manifest: SearchManifest, tmp_path: Path) -> Iterator[FolderIndex]:
    opened = FolderIndex(tmp_path, manifest)
    yield opened
    opened.close()


def test_after_the_same_changes_it_holds_and_finds_the_same(index: QdrantIndex, folder: FolderIndex) -> None:
    changes = [
        ([file("a.py", *(unit(word, n) for n, word in enumerate(WORDS, 1))), file("empty.py")], []),
        ([file("b/c.py", unit("alpha"), unit("beta", 7, "method"))], []),
        ([file("a.py", unit("delta", 3), unit("alpha"))], ["empty.py", "never.py"]),
    ]
    for files, deleted in changes:
        assert put(index, files, deleted) == put(folder, files, deleted)
        assert index.files("p") == folder.files("p")
        assert index.projects() == folder.projects()
    assert places(find(index)) == places(find(folder)) == {
        ("a.py", 1, "alpha"), ("a.py", 3, "delta"), ("b/c.py", 1, "alpha"), ("b/c.py", 7, "beta"),
    }  # fmt: skip
    for request in (
        {"query": "beta", "like": unit("beta").text, "k": 1},
        {"query": "alpha", "like": unit("alpha").text, "path": "b/*", "k": 1},
        {"query": "nothing", "like": unit("beta").text, "kinds": ("method",)},
        {"query": "beta", "path": "nowhere"},
    ):
        ours, theirs = find(index, **request), find(folder, **request)
        assert [(one.path, one.start_line, one.name, one.copies, one.snippet) for one in ours] == [
            (one.path, one.start_line, one.name, one.copies, one.snippet) for one in theirs
        ], request
        assert [one.found_by.keys() for one in ours] == [one.found_by.keys() for one in theirs]


def test_a_project_that_is_deleted_or_never_was_is_unknown(index: QdrantIndex) -> None:
    put(index, [file("a.py", unit("alpha"))])
    put(index, [file("a.py", unit("beta"))], project="other")
    index.delete("p")
    assert [info.project for info in index.projects()] == ["other"]
    for ask in (lambda: find(index), lambda: index.delete("p"), lambda: index.files("p")):
        with pytest.raises(UnknownProject, match="'p'"):
            ask()


def test_a_file_that_was_not_written_to_its_end_is_not_there(
    index: QdrantIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(index, [file("a.py", unit("alpha")), file("b.py", unit("beta"))])

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(index._client, "upsert", die)
        put(index, [file("a.py", unit("gamma"))])
    assert index.files("p").keys() == {"b.py"}
    put(index, [file("a.py", unit("gamma"))])
    assert places(find(index)) == {("a.py", 1, "gamma"), ("b.py", 1, "beta")}


def test_a_qdrant_that_does_not_answer_is_away(manifest: SearchManifest) -> None:
    client = qdrant_client.QdrantClient(url="http://127.0.0.1:9", timeout=5, check_compatibility=False)
    with pytest.raises(IndexAway, match="did not answer"):
        QdrantIndex(client, manifest)
