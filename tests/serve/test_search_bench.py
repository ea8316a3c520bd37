"""`python -m bench.search` in small: real files, a tiny real encoder."""

from pathlib import Path

import pytest

from bench.search import CHANGED, as_markdown, fill, first_files, index, look_up, sources
from bundle.search import SearchBundle, open_search_bundle

SOURCE = Path(__file__).parents[2] / "bundle"


@pytest.fixture
def search_bundle(tiny_search_bundle: Path) -> SearchBundle:
    return open_search_bundle(tiny_search_bundle)


async def test_files_are_indexed_again_where_they_changed_and_searched(
    search_bundle: SearchBundle, tmp_path: Path
) -> None:
    files = first_files(sources([SOURCE]), units=60)
    indexing = await index(search_bundle, files, tmp_path / "small", threads=1)

    assert indexing.first.units >= 60
    assert indexing.first.changed == len(files)
    assert 1 <= indexing.again.changed < len(files)
    assert CHANGED * indexing.first.units <= indexing.again.embedded < indexing.first.embedded
    assert indexing.again.files == indexing.first.files

    queries = fill(search_bundle, sources([SOURCE]), 40, tmp_path / "large")
    searching = look_up(search_bundle.root, tmp_path / "large", queries[:5])
    assert searching.units == 40
    assert searching.disk_bytes > 40 * 64 * 2
    assert {len(times) for times in searching.times_ms.values()} == {5}
    figures = as_markdown(indexing, searching, {"alone": [10.0, 20.0], "while it indexes": [11.0, 21.0]})
    assert "| again, 5% of the units changed |" in figures
    assert "| everywhere | 40 |" in figures
    assert "| while it indexes | 2 |" in figures
