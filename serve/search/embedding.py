"""Embedding code and queries: code on threads that give way to everything else, queries on one that does not."""

import asyncio
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bundle.encoder import Encoder
from bundle.search import SearchBundle

TEXTS_AT_ONCE = 32
LEAST_NICE = 19


class Embedder:
    """The encoder of a search bundle with its threads.

    It has one thread for each core, each running the graph by itself, so that the priority of a thread is that of its
    work: while the analysis wants the cores, indexing hardly gets any.
    """

    def __init__(self, bundle: SearchBundle, threads: int) -> None:
        """
        Args:
            bundle: whose int8 graph is used.
            threads: that embed code; 0 for as many as there are cores.

        Raises:
            BundleError: the bundle has no int8 export.
        """
        self._encoder = Encoder(bundle, threads=1)
        self._documents = ThreadPoolExecutor(threads or os.cpu_count() or 1, "embed-code", initializer=_give_way)
        self._queries = ThreadPoolExecutor(1, "embed-query")

    async def query(self, text: str) -> NDArray[np.float32]:
        """The embedding [dimension] of a query."""
        loop = asyncio.get_running_loop()
        return (await loop.run_in_executor(self._queries, self._encoder.encode, [text]))[0]

    async def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings [N, dimension]. Cancelling this leaves out what has not begun."""
        embeddings = np.empty((len(texts), self._encoder.dimension), np.float32)
        # Texts of like length together: none is padded much.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        batches = [order[start : start + TEXTS_AT_ONCE] for start in range(0, len(order), TEXTS_AT_ONCE)]
        loop = asyncio.get_running_loop()
        running = [
            loop.run_in_executor(self._documents, self._encoder.encode, [texts[place] for place in batch])
            for batch in reversed(batches)  # the longest first, so that no thread is left alone with them at the end
        ]
        try:
            for batch, embedded in zip(reversed(batches), running, strict=True):
                embeddings[batch] = await embedded
        finally:
            for embedded in running:
                embedded.cancel()
        return embeddings

    def close(self) -> None:
        """End the threads; what has not begun is left out."""
        self._documents.shutdown(wait=False, cancel_futures=True)
        self._queries.shutdown(wait=False, cancel_futures=True)


def _give_way() -> None:
    """Give the calling thread the lowest priority; only on Linux has a thread one of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_NICE)
