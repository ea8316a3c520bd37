"""Embeddings in memory, in the format of the search bundle, and a search that compares all of them, by faiss.

All: nothing is built first, any vector can be taken out at once, and no filter makes it miss any. A graph (HNSW, in
faiss, usearch or hnswlib) compares fewer vectors and is what a search of many millions needs; the 100,000 units of a
large code base are compared in a few milliseconds (`python -m bench.search`).
"""

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from bundle.precision import EmbeddingFormat


class VectorIndex:
    """Vectors under numbers."""

    def __init__(self, dimension: int, embeddings: EmbeddingFormat) -> None:
        """
        Args:
            dimension: of every vector.
            embeddings: how vectors are kept. Those that it has packed and unpacked are kept as they are.
        """
        self._index = faiss.IndexIDMap(_flat(dimension, embeddings))

    def add(self, numbers: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Take in vectors [N, dimension] of length 1 under numbers that are not there yet."""
        if len(numbers):
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.asarray(numbers, np.int64))

    def remove(self, numbers: Sequence[int]) -> None:
        """Take out the vectors of these numbers."""
        if len(numbers):
            self._index.remove_ids(faiss.IDSelectorBatch(np.asarray(numbers, np.int64)))

    def search(self, vector: NDArray[np.float32], k: int, among: NDArray[np.bool_] | None = None) -> list[int]:
        """The numbers of the k vectors with the largest products with `vector` [dimension], the largest first.

        Args:
            vector: of length 1, in float32 whatever the vectors are kept in.
            k: fewer are found where there are fewer.
            among: whether a number may be found, by the number; those beyond may not. None is all.
        """
        if among is not None and not among.any():
            return []
        # faiss' threads would wait for one another on cores that the analysis wants.
        faiss.omp_set_num_threads(1)
        chosen = None
        if among is not None:
            packed = np.packbits(among, bitorder="little")
            bits = faiss.IDSelectorBitmap(packed)  # type: ignore[call-arg, arg-type]
            chosen = faiss.SearchParameters(sel=bits)  # type: ignore[call-arg]
        _, numbers = self._index.search(vector[None], k, params=chosen)
        return [number for number in numbers[0].tolist() if number >= 0]


def _flat(dimension: int, embeddings: EmbeddingFormat) -> faiss.Index:
    product = faiss.METRIC_INNER_PRODUCT
    if embeddings.precision == "binary":
        # RaBitQ (2405.12497) on vectors of nothing but signs: the query, with 8 bits a component, is multiplied with
        # every one of them, so no first choice by Hamming distance has to be scored again.
        signs = faiss.IndexRaBitQ(dimension, product)
        signs.qb = 8
        signs.train(np.zeros((1, dimension), np.float32))  # the centre that signs are taken from
        return signs
    kind = faiss.ScalarQuantizer.QT_fp16 if embeddings.precision == "float16" else faiss.ScalarQuantizer.QT_8bit_uniform
    index = faiss.IndexScalarQuantizer(dimension, kind, product)
    if embeddings.precision == "int8":
        ends = np.array([[-embeddings.limit], [embeddings.limit]], np.float32)
        index.train(np.ascontiguousarray(np.broadcast_to(ends, (2, dimension))))
    return index
