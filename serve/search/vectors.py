"""Embeddings in memory and an exact search over them, by faiss.

Exact, in float16: nothing is built first, any vector can be taken out at once, nothing is missed, and nothing more
under a filter. A graph (HNSW, in faiss, usearch or hnswlib) compares fewer vectors and is what a search of many
millions needs; the 100,000 units of a large code base are compared in a few milliseconds (`python -m bench.search`).
"""

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray


class VectorIndex:
    """Vectors under numbers."""

    def __init__(self, dimension: int) -> None:
        """`dimension`: of every vector."""
        half = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._index = faiss.IndexIDMap(half)

    def add(self, numbers: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Take in vectors [N, dimension] of length 1 under numbers that are not there yet."""
        if len(numbers):
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.asarray(numbers, np.int64))

    def remove(self, numbers: Sequence[int]) -> None:
        """Take out the vectors of these numbers."""
        if len(numbers):
            self._index.remove_ids(faiss.IDSelectorBatch(np.asarray(numbers, np.int64)))

    def search(self, vector: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> list[int]:
        """The numbers of the k vectors nearest to `vector` [dimension] by cosine, the nearest first.

        Args:
            vector: of length 1.
            k: fewer are found where there are fewer.
            among: only these numbers, sorted; None is all.
        """
        if among is not None and not len(among):
            return []
        # faiss' threads would wait for one another on cores that the analysis wants.
        faiss.omp_set_num_threads(1)
        chosen = None if among is None else faiss.SearchParameters(sel=faiss.IDSelectorBatch(among))  # type: ignore[call-arg]
        _, numbers = self._index.search(vector[None], k, params=chosen)
        return [number for number in numbers[0].tolist() if number >= 0]
