"""Files into a project's tables and out of them, within a transaction of whoever calls."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pgvector import HalfVector
from psycopg import Cursor

from bundle.lexical import split_words
from serve.search.base import FileUnits, ForgottenTexts, UnitText, Vectors


def word_key(word: str) -> int:
    """What a word is called in the postings: 64 bits of a hash, so that a word may be as long as a file."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), signed=True)


def lock_project(cursor: Cursor[Any], name: str) -> int:
    """The id of a project, made when it is not there; until the transaction ends nobody else changes it."""
    # The update that changes nothing locks the row of one that is there, which DO NOTHING would not.
    lock = "INSERT INTO projects (name) VALUES (%s) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id"
    [project] = _row(cursor.execute(lock, (name,)))
    return project


def put_files(
    cursor: Cursor[Any], project: int, files: Sequence[FileUnits], deleted: Collection[str], vectors: Vectors
) -> None:
    """See `UnitIndex.update`.

    Args:
        cursor: in a transaction that holds the project's lock.
        project: its id.
        files: each path once.
        deleted: paths.
        vectors: of every text that is not there.

    Raises:
        ForgottenTexts: a text is not there and has no vector.
    """
    files_gone, texts_left = _take_out(cursor, project, [*deleted, *(file.path for file in files)])
    texts, texts_come, words_come = _add_texts(cursor, project, files, vectors)
    units_come = _add_files(cursor, project, files, texts)
    texts_gone, words_gone = _forget(cursor, texts_left)
    cursor.execute(
        "UPDATE projects SET files = files + %s, units = units + %s, texts = texts + %s, words = words + %s "
        "WHERE id = %s",
        (
            len(files) - files_gone,
            units_come - len(texts_left),
            texts_come - texts_gone,
            words_come - words_gone,
            project,
        ),
    )


def delete_project(cursor: Cursor[Any], name: str) -> bool:
    """Take a project out; returns whether it was there."""
    found = cursor.execute("SELECT id FROM projects WHERE name = %s FOR UPDATE", (name,)).fetchone()
    if found is None:
        return False
    cursor.execute("DELETE FROM units USING files WHERE units.file = files.id AND files.project = %s", found)
    for table in ("files", "postings", "texts"):
        cursor.execute(f"DELETE FROM {table} WHERE project = %s", found)
    cursor.execute("DELETE FROM projects WHERE id = %s", found)
    return True


def path_key(path: str) -> bytes:
    """What a file is called in the index of files."""
    return hashlib.sha256(path.encode()).digest()


def _take_out(cursor: Cursor[Any], project: int, paths: Iterable[str]) -> tuple[int, list[int]]:
    """How many files there were under these paths, and the text of each of their units."""
    gone = cursor.execute(
        "SELECT id FROM files WHERE project = %s AND key = ANY(%s)", (project, [path_key(path) for path in paths])
    )
    files = [file for (file,) in gone]
    left = cursor.execute("DELETE FROM units WHERE file = ANY(%s::bigint[]) RETURNING text", (files,)).fetchall()
    cursor.execute("DELETE FROM files WHERE id = ANY(%s::bigint[])", (files,))
    return len(files), [text for (text,) in left]


def _add_texts(
    cursor: Cursor[Any], project: int, files: Sequence[FileUnits], vectors: Vectors
) -> tuple[dict[bytes, int], int, int]:
    """The id of every text by its digest, how many of them are new, and how many words those have."""
    units = {unit.digest: unit for file in files for unit in file.units}
    known = cursor.execute(
        "SELECT digest, id FROM texts WHERE project = %s AND digest = ANY(%s)", (project, [*units])
    ).fetchall()
    ids: dict[bytes, int] = dict(known)
    new = [unit for digest, unit in units.items() if digest not in ids]
    if any(unit.digest not in vectors for unit in new):
        raise ForgottenTexts
    words = [Counter(map(word_key, split_words(unit.text))) for unit in new]
    if new:
        cursor.executemany(
            "INSERT INTO texts (project, digest, words, snippet, embedding) VALUES (%s, %s, %s, %s, %b) RETURNING id",
            [_text_row(project, unit, counts.total(), vectors) for unit, counts in zip(new, words, strict=True)],
            returning=True,
        )
        for unit, inserted in zip(new, cursor.results(), strict=True):
            [ids[unit.digest]] = _row(inserted)
    with cursor.copy("COPY postings (project, word, text, count, length) FROM STDIN") as rows:
        for unit, counts in zip(new, words, strict=True):
            for word, count in counts.items():
                rows.write_row((project, word, ids[unit.digest], count, counts.total()))
    return ids, len(new), sum(counts.total() for counts in words)


def _text_row(project: int, unit: UnitText, words: int, vectors: Vectors) -> tuple[Any, ...]:
    return (project, unit.digest, words, unit.snippet, HalfVector(vectors[unit.digest]))


def _add_files(cursor: Cursor[Any], project: int, files: Sequence[FileUnits], texts: dict[bytes, int]) -> int:
    """Files with their units; returns how many units."""
    if not files:
        return 0
    cursor.executemany(
        "INSERT INTO files (project, path, key, sha256) VALUES (%s, %s, %s, %s) RETURNING id",
        [(project, file.path.encode(), path_key(file.path), file.sha256) for file in files],
        returning=True,
    )
    ids = [_row(inserted)[0] for inserted in cursor.results()]
    with cursor.copy("COPY units (file, text, kind, name, start_line, end_line) FROM STDIN") as rows:
        for row, file in zip(ids, files, strict=True):
            for unit in file.units:
                rows.write_row((row, texts[unit.digest], unit.kind, unit.name, unit.start_line, unit.end_line))
    return sum(len(file.units) for file in files)


def _forget(cursor: Cursor[Any], texts: Iterable[int]) -> tuple[int, int]:
    """Take out those texts that no unit has any more; returns how many, and how many words they had."""
    gone = cursor.execute(
        "DELETE FROM texts WHERE id = ANY(%s::bigint[]) AND NOT EXISTS (SELECT FROM units WHERE text = texts.id) "
        "RETURNING id, words",
        ([*set(texts)],),
    ).fetchall()
    cursor.execute("DELETE FROM postings WHERE text = ANY(%s::bigint[])", ([text for text, _ in gone],))
    return len(gone), sum(words for _, words in gone)


def _row(cursor: Cursor[Any]) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None, "INSERT … RETURNING has a row"
    return row
