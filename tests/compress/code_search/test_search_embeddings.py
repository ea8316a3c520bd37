"""The teacher's embeddings are exact about what they hold, and show the wrong answers worth learning from."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.code_search import embeddings as embeddings_module
from compress.code_search.embeddings import embedding_key, hard_negatives, read_embeddings, write_embeddings
from compress.code_search.encoders import load_encoder
from compress.label_cache import StaleSoftLabels

TEXTS = [f"def f{number}(x): return x + {number}" for number in range(10)]
MAX_TOKENS = 24


@pytest.fixture
def cache(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(embeddings_module, "_TEXTS_PER_SHARD", 4)
    encoder = load_encoder(str(tiny_encoder), MAX_TOKENS)
    write_embeddings(encoder, TEXTS, embedding_key(TEXTS, tiny_encoder, MAX_TOKENS), tmp_path / "cache")
    return tmp_path / "cache"


def test_they_are_read_back_in_the_order_of_the_texts(cache: Path, tiny_encoder: Path) -> None:
    read = read_embeddings(cache, embedding_key(TEXTS, tiny_encoder, MAX_TOKENS))
    expected = load_encoder(str(tiny_encoder), MAX_TOKENS).encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(read, expected, atol=1e-5)


def test_shards_that_are_there_are_kept_and_the_others_made(cache: Path, tiny_encoder: Path) -> None:
    key = embedding_key(TEXTS, tiny_encoder, MAX_TOKENS)
    before = read_embeddings(cache, key)
    first, second, last = sorted(cache.glob("shard-*.npy"))
    second.unlink()
    kept = [file.stat().st_mtime_ns for file in (first, last)]
    write_embeddings(load_encoder(str(tiny_encoder), MAX_TOKENS), TEXTS, key, cache)
    np.testing.assert_allclose(read_embeddings(cache, key), before, atol=1e-6)
    assert [file.stat().st_mtime_ns for file in (first, last)] == kept


@pytest.mark.parametrize(
    ("texts", "max_tokens", "changed"),
    [(TEXTS[::-1], MAX_TOKENS, "texts"), (TEXTS, MAX_TOKENS + 1, "max_tokens")],
)
def test_what_they_were_not_made_from_is_an_error(
    cache: Path, tiny_encoder: Path, texts: list[str], max_tokens: int, changed: str
) -> None:
    with pytest.raises(StaleSoftLabels, match=f"made with another {changed}.*--from embeddings"):
        read_embeddings(cache, embedding_key(texts, tiny_encoder, max_tokens))


def test_another_teacher_is_an_error(cache: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    (tmp_path / "tokenizer.json").write_bytes((tiny_encoder / "tokenizer.json").read_bytes())
    with pytest.raises(StaleSoftLabels, match="made with another teacher"):
        read_embeddings(cache, embedding_key(TEXTS, tmp_path, MAX_TOKENS))


def test_two_texts_are_not_one_text_that_is_cut_elsewhere(tiny_encoder: Path) -> None:
    keys = [embedding_key(texts, tiny_encoder, MAX_TOKENS) for texts in (["ab", "c"], ["a", "bc"])]
    assert keys[0] != keys[1]


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 12), st.integers(1, 2), st.integers(0, 2**31))
def test_hard_negatives_are_the_nearest_others_that_are_not_nearly_right(rows: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, documents = rng.normal(size=(2, rows, 4)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    found = hard_negatives(queries, documents, count)
    assert found.shape == (rows, count)
    for query, negatives in enumerate(found.tolist()):
        near = queries[query] @ documents.T
        assert query not in negatives and len(set(negatives)) == count
        wrong = [place for place in range(rows) if place != query and near[place] <= 0.95 * near[query]]
        nearest = sorted(wrong, key=lambda place: -near[place])[:count]
        np.testing.assert_allclose(near[negatives[: len(nearest)]], near[nearest], atol=1e-6)
