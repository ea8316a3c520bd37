"""Texts to unit vectors, with the graph of a search bundle in ONNX Runtime. No torch."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from bundle.search import INT8, SearchBundle, SearchExport

# Beyond it a larger batch is no faster, and it bounds memory: attention is quadratic in a text's length alone.
_TOKENS_PER_BATCH = 2048


class Encoder:
    """An encoder with its tokenizer, loaded. Several threads may use it at a time."""

    def __init__(self, bundle: SearchBundle, export: SearchExport = INT8, threads: int = 0) -> None:
        """
        Args:
            threads: CPU threads one call may use; 0 lets ONNX Runtime take every core.

        Raises:
            BundleError: the bundle has no such export.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the cores of whatever else runs beside.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            bundle.model_file(export), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(bundle.tokenizer_file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(bundle.manifest.max_tokens)
        self.dimension = bundle.manifest.dimensions[0]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings [N, dimension] of texts, rows of length 1 in the order of the texts.

        What is beyond the bundle's `max_tokens` is not seen. The first d columns are an embedding of their own for
        every d among the bundle's `dimensions`, once each row is divided by its length again.
        """
        encodings = self._tokenizer.encode_batch(list(texts))
        embeddings = np.empty((len(texts), self.dimension), np.float32)
        for batch in _batches([len(encoding) for encoding in encodings]):
            embeddings[batch] = self._embed([encodings[place] for place in batch])
        return embeddings

    def _embed(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        lengths = np.array([len(encoding) for encoding in encodings])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate([encoding.ids for encoding in encodings])
        inputs = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        return self._session.run(["sentence_embedding"], inputs)[0]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts of like length, so that little is padding, with so many tokens at most."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[place] * (len(batch) + 1) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
