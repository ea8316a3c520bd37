"""How an index keeps embeddings: each component in 16 bits, in 8, or as its sign alone."""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Precision = Literal["float16", "int8", "binary"]
_TOP = 255  # of the numbers that 8 bits hold


class EmbeddingFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of an embedding that is kept. A query is never packed: it meets what is kept with all it says."""

    precision: Precision = "float16"
    limit: float = 1.0  # int8: components reach from -limit to limit in equal steps, and what is beyond is cut to it

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError("limit must be above 0")

    @classmethod
    def fitted(cls, precision: Precision, embeddings: NDArray[np.float32]) -> "EmbeddingFormat":
        """The format whose limit is the largest component of these embeddings [N, D]."""
        return cls(precision, float(np.abs(embeddings).max())) if precision == "int8" else cls(precision)

    def bytes_per_embedding(self, width: int) -> int:
        """Of an embedding of `width` components."""
        return {"float16": 2 * width, "int8": width, "binary": -(-width // 8)}[self.precision]

    def pack(self, embeddings: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Embeddings [..., D] of length 1 as bytes [..., bytes_per_embedding(D)]."""
        if self.precision == "float16":
            return np.ascontiguousarray(embeddings.astype(np.float16)).view(np.uint8)
        if self.precision == "int8":
            return (np.clip((embeddings + self.limit) / (2 * self.limit), 0.0, 1.0) * _TOP).astype(np.uint8)
        return np.packbits(embeddings > 0, axis=-1)

    def unpack(self, packed: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
        """What bytes [..., bytes_per_embedding(width)] still say of embeddings: [..., width].

        int8: the middle of each component's step. binary: vectors of length 1 with the embeddings' signs.
        """
        if self.precision == "float16":
            return packed.view(np.float16).astype(np.float32)
        if self.precision == "int8":
            return ((packed + np.float32(0.5)) / _TOP * (2 * self.limit) - self.limit).astype(np.float32)
        signs = np.unpackbits(packed, axis=-1, count=width).astype(np.float32)
        return (2 * signs - 1) / np.float32(np.sqrt(width))

    def kept(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings [..., D] as an index has them: packed and unpacked again."""
        return self.unpack(self.pack(embeddings), embeddings.shape[-1])
