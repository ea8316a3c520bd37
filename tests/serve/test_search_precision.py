"""The index keeps embeddings as its search bundle says, and finds among them what a plain comparison of all finds."""

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.precision import EmbeddingFormat, Precision
from bundle.search import SearchManifest
from serve.search.base import IndexUnusable
from serve.search.folder import FolderIndex
from serve.search.storage import DATABASE_FILE
from serve.search.vectors import VectorIndex
from tests.serve.indexing import WORDS, file, find, put, unit, vector

PRECISIONS: tuple[Precision, ...] = ("float16", "int8", "binary")
SCENES = st.tuples(st.integers(1, 40), st.integers(3, 40), st.sets(st.integers(0, 39)), st.integers(0, 2**31))


def unit_rows(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40, deadline=None)
@given(scene=SCENES, filtered=st.booleans())
def test_the_nearest_are_found_in_every_precision(
    precision: Precision, scene: tuple[int, int, set[int], int], filtered: bool
) -> None:
    rows, width, removed, seed = scene
    vectors = unit_rows(rows, width, seed)
    query = unit_rows(1, width, seed + 1)[0]
    form = EmbeddingFormat.fitted(precision, vectors)
    kept = form.kept(vectors)
    numbers = [3 * row + 1 for row in range(rows)]
    index = VectorIndex(width, form)
    index.add(numbers, kept)
    index.remove([3 * row + 1 for row in removed if row < rows])

    left = [row for row in range(rows) if row not in removed and not (filtered and row % 2)]
    among = np.isin(np.arange(3 * rows), [3 * row + 1 for row in range(0, rows, 2)]) if filtered else None
    scores = {3 * row + 1: sum(float(a) * float(b) for a, b in zip(query, kept[row], strict=True)) for row in left}
    found = index.search(query, 5, among)
    best = sorted(scores.values(), reverse=True)[:5]
    assert len(set(found)) == len(found) == len(best)
    # A binary index has the query in 255 steps a component, and each of two scores may be that far off.
    rounding = 2 * float(np.ptp(query)) / 255 * np.sqrt(width) if precision == "binary" else 1e-6
    np.testing.assert_allclose([scores[number] for number in found], best, atol=rounding)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_on_disk_in_its_bytes_and_answers_the_same_after_a_restart(
    precision: Precision, search_manifest: SearchManifest, tmp_path: Path
) -> None:
    form = EmbeddingFormat.fitted(precision, np.stack([vector(unit(word).text) for word in WORDS]))
    manifest = msgspec.structs.replace(search_manifest, embeddings=form)
    index = FolderIndex(tmp_path, manifest)
    put(index, [file("a.py", *(unit(word, line) for line, word in enumerate(WORDS, 1)))])
    like = unit(WORDS[2]).text
    before = find(index, "unspelled", like=like)
    assert before[0].name == WORDS[2]
    index.close()

    reopened = FolderIndex(tmp_path, manifest)
    assert find(reopened, "unspelled", like=like) == before
    reopened.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "p" / DATABASE_FILE)) as database:
        sizes = {size for (size,) in database.execute("SELECT length(vector) FROM texts")}
    assert sizes == {form.bytes_per_embedding(manifest.dimensions[0])}


def test_an_index_that_keeps_them_otherwise_is_refused(search_manifest: SearchManifest, tmp_path: Path) -> None:
    index = FolderIndex(tmp_path, search_manifest)
    put(index, [file("a.py", unit("alpha"))])
    index.close()
    other = msgspec.structs.replace(search_manifest, embeddings=EmbeddingFormat("int8", 0.5))
    with pytest.raises(IndexUnusable, match=r'keeps embeddings as .*"float16".* asks for .*"int8".*; delete'):
        FolderIndex(tmp_path, other)
