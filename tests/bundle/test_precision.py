"""What is kept of an embedding: so many bytes, nearly the same scores, and nothing less when it is kept again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.precision import EmbeddingFormat, Precision

PRECISIONS: tuple[Precision, ...] = ("float16", "int8", "binary")
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**31))


def unit_rows(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_it_takes_its_bytes_and_what_was_kept_once_is_kept_as_it_is(
    precision: Precision, shape: tuple[int, int, int]
) -> None:
    embeddings = unit_rows(*shape)
    rows, width = embeddings.shape
    form = EmbeddingFormat.fitted(precision, embeddings)
    packed = form.pack(embeddings)
    assert packed.shape == (rows, form.bytes_per_embedding(width))
    assert packed.dtype == np.uint8
    kept = form.unpack(packed, width)
    assert kept.shape == embeddings.shape and kept.dtype == np.float32
    np.testing.assert_array_equal(form.pack(kept), packed)
    np.testing.assert_array_equal(form.kept(embeddings), kept)
    np.testing.assert_array_equal(form.pack(embeddings[0]), packed[0])
    np.testing.assert_array_equal(form.unpack(packed[0], width), kept[0])


@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_every_component_is_as_near_as_its_bits_allow(shape: tuple[int, int, int]) -> None:
    embeddings = unit_rows(*shape)
    for embedding in embeddings.astype(np.float64):
        largest = max(abs(value) for value in embedding)
        half = EmbeddingFormat().kept(embedding.astype(np.float32))
        eight = EmbeddingFormat("int8", largest).kept(embedding.astype(np.float32))
        one = EmbeddingFormat("binary").kept(embedding.astype(np.float32))
        for value, in_half, in_eight, in_one in zip(embedding, half, eight, one, strict=True):
            assert abs(value - in_half) <= abs(value) / 2**11 + 2**-25
            assert abs(value - in_eight) <= largest / 255 + 1e-6
            assert in_one == pytest.approx((1 if value > 0 else -1) / np.sqrt(len(embedding)), rel=1e-6)


def test_scores_of_8_bits_are_near_those_of_float32() -> None:
    queries, documents = unit_rows(20, 384, 1), unit_rows(300, 384, 2)
    kept = EmbeddingFormat.fitted("int8", documents).kept(documents)
    exact = queries.astype(np.float64) @ documents.astype(np.float64).T
    np.testing.assert_allclose(queries @ kept.T, exact, atol=0.005)


def test_a_sign_alone_still_tells_what_is_near() -> None:
    documents = unit_rows(300, 384, 3)
    queries = unit_rows(300, 384, 4) + documents
    scores = queries @ EmbeddingFormat("binary").kept(documents).T
    assert np.mean(scores.argmax(axis=1) == np.arange(300)) == 1.0


def test_what_is_beyond_the_limit_is_cut_to_it() -> None:
    kept = EmbeddingFormat("int8", 0.5).kept(np.array([-1.0, -0.5, 0.0, 0.5, 1.0], np.float32))
    assert kept[0] == kept[1] and kept[3] == kept[4]
    np.testing.assert_allclose(kept[1:4], [-0.5, 0.0, 0.5], atol=0.5 / 255 + 1e-6)


def test_a_format_without_a_range_is_refused() -> None:
    with pytest.raises(ValueError, match="limit must be above 0"):
        EmbeddingFormat("int8", 0.0)
