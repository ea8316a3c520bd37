"""The teacher's embeddings of the training pairs, computed once and kept, and the hard negatives they show.

On disk: `key.json`, and shards of rows in float32, `shard-*.npy`. The key holds everything the embeddings depend on;
a cache made with anything else is an error, never a silent reuse.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from sentence_transformers import SentenceTransformer

from compress.code_search.encoders import encoder_fingerprint
from compress.label_cache import claim, write_array

_TEXTS_PER_SHARD = 1024
_BATCH = 64
# A function that is nearly as near as the right one may be as right (NV-Retriever, 2407.15831, section 4.2).
_NEARLY_RIGHT = 0.95
_QUERIES_AT_A_TIME = 1024


class EmbeddingKey(msgspec.Struct, frozen=True):
    """Everything embeddings depend on."""

    texts: str  # hash over all texts in their order
    teacher: dict[str, str]  # sha256 of weights and tokenizer
    max_tokens: int
    dtype: str = "float32"


def embedding_key(texts: Sequence[str], teacher: Path, max_tokens: int) -> EmbeddingKey:
    """The key of the embeddings that this teacher would give these texts."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(encoded)}:".encode() + encoded)
    return EmbeddingKey(digest.hexdigest(), encoder_fingerprint(str(teacher)), max_tokens)


def write_embeddings(encoder: SentenceTransformer, texts: Sequence[str], key: EmbeddingKey, folder: Path) -> None:
    """Embed all texts into shards that are each written whole; those of a killed run are kept.

    Raises:
        StaleSoftLabels: the folder holds embeddings with another key.
    """
    claim(folder, key, "embeddings")
    starts = range(0, len(texts), _TEXTS_PER_SHARD)
    with Progress(transient=True) as progress:
        for start in progress.track(starts, description="the teacher's embeddings"):
            if not _shard(folder, start).is_file():
                part = list(texts[start : start + _TEXTS_PER_SHARD])
                rows = encoder.encode(part, batch_size=_BATCH, show_progress_bar=False, normalize_embeddings=True)
                write_array(_shard(folder, start), rows.astype(np.float32))


def read_embeddings(folder: Path, key: EmbeddingKey) -> NDArray[np.float32]:
    """Embeddings [N, D] in the order of the texts.

    Raises:
        StaleSoftLabels: the folder's key is not `key`.
    """
    claim(folder, key, "embeddings")
    return np.concatenate([np.load(file) for file in sorted(folder.glob("shard-*.npy"))])


def _shard(folder: Path, start: int) -> Path:
    return folder / f"shard-{start:09d}.npy"


def hard_negatives(queries: NDArray[np.float32], documents: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """For every query the documents nearest to it that are not its own: int64 [N, count], the nearest first.

    Documents nearly as near as the query's own are left out, for they may answer it too; they come only where there
    are not enough others.

    Args:
        queries, documents: [N, D], rows of length 1; document i is query i's own.
        count: below N.
    """
    found = np.empty((len(queries), count), np.int64)
    for start in range(0, len(queries), _QUERIES_AT_A_TIME):
        near = queries[start : start + _QUERIES_AT_A_TIME] @ documents.T
        rows = np.arange(len(near))
        own = near[rows, start + rows].copy()
        near[near > _NEARLY_RIGHT * own[:, None]] -= 4.0  # cosines are at least -1
        near[rows, start + rows] = -np.inf
        found[start : start + len(near)] = np.argsort(-near, axis=1, kind="stable")[:, :count]
    return found
