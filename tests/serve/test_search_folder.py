"""The index in a folder: whose it is, what it refuses, and what it leaves on disk."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bundle.search import SearchManifest
from serve.search.base import IndexUnusable
from serve.search.folder import GOING, FolderIndex
from serve.search.storage import DATABASE_FILE
from tests.serve.indexing import file, put, unit


@pytest.fixture
def index(tmp_path: Path, search_manifest: SearchManifest) -> Iterator[FolderIndex]:
    opened = FolderIndex(tmp_path / "index", search_manifest)
    yield opened
    opened.close()


def test_a_project_that_is_deleted_leaves_no_file(index: FolderIndex, tmp_path: Path) -> None:
    put(index, [file("a.py", unit("alpha"))])
    put(index, [file("a.py", unit("beta"))], project="other")
    index.delete("p")
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == ["lock", "other"]


def test_an_index_of_another_search_bundle_is_refused_and_both_are_named(
    tmp_path: Path, search_manifest: SearchManifest
) -> None:
    index = FolderIndex(tmp_path, search_manifest)
    put(index, [file("a.py", unit("alpha"))])
    index.close()
    other = msgspec.structs.replace(search_manifest, name="other", weights_sha256="0" * 64)
    with pytest.raises(
        IndexUnusable, match=rf"made with the search bundle {search_manifest.name} .* is other 0000"
    ) as caught:
        FolderIndex(tmp_path, other)
    assert "delete" in str(caught.value)
    FolderIndex(tmp_path, search_manifest).close()


def test_an_index_that_can_not_be_read_is_refused_by_its_file(tmp_path: Path, search_manifest: SearchManifest) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / DATABASE_FILE).write_bytes(b"no database" * 100)
    with pytest.raises(IndexUnusable, match=r"index\.sqlite can not be read"):
        FolderIndex(tmp_path, search_manifest)

    (folder / DATABASE_FILE).unlink()
    with sqlite3.connect(folder / DATABASE_FILE) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(IndexUnusable, match="is of version 99"):
        FolderIndex(tmp_path, search_manifest)


def test_two_servers_do_not_share_a_folder(index: FolderIndex, tmp_path: Path, search_manifest: SearchManifest) -> None:
    with pytest.raises(IndexUnusable, match="used by another deepcode-serve"):
        FolderIndex(tmp_path / "index", search_manifest)


def test_what_was_left_of_a_deletion_goes_at_the_next_start(tmp_path: Path, search_manifest: SearchManifest) -> None:
    index = FolderIndex(tmp_path, search_manifest)
    put(index, [file("a.py", unit("alpha"))])
    index.close()
    shutil.move(tmp_path / "p", tmp_path / f"{GOING}p")

    index = FolderIndex(tmp_path, search_manifest)
    assert index.projects() == []
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    index.close()
