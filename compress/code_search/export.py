"""An encoder as an ONNX graph from token ids to unit vectors, in float32 and in 8 bits."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch import Tensor, nn

from bundle.manifest import MODEL_GRAPH
from compress.code_search.encoders import transformer
from compress.console import quietly
from compress.export.int8 import quantize_matrices


class _Graph(nn.Module):
    """An encoder as a function of the two inputs every tokenizer gives."""

    def __init__(self, encoder: SentenceTransformer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs: Any = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.encoder(inputs)["sentence_embedding"]


def export_encoder(encoder: SentenceTransformer, out: Path) -> None:
    """Write `out`/model.onnx in float32.

    Inputs are input_ids and attention_mask, int64 [B, S]; the output is sentence_embedding, float32 [B, D], rows of
    length 1.
    """
    transformer(encoder).set_attn_implementation("eager")  # the others check for rows without a token, in the graph
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    names = ("input_ids", "attention_mask")
    with quietly(), _staged(out) as staged:
        program = torch.onnx.export(
            _Graph(encoder).eval(),
            kwargs={name: torch.ones((2, 8), dtype=torch.long) for name in names},
            output_names=["sentence_embedding"],
            dynamic_shapes={name: {0: batch, 1: length} for name in names},
            dynamo=True,
            verbose=False,
        )
        assert program is not None, "a path would make it write instead"
        program.save(str(staged / MODEL_GRAPH), external_data=False)


def quantize_encoder(exported: Path, tokenizer: Tokenizer, texts: Sequence[str], out: Path) -> None:
    """Write `out`/model.onnx: the graph in `exported` in 8 bits.

    `compress.export.int8` says what becomes of the matrices. Token embeddings have one scale.

    Args:
        exported: a folder that `export_encoder` wrote.
        tokenizer: the encoder's, cutting texts off where they become too long.
        texts: queries and functions; the ranges of activations are taken from them.
        out: a folder, made here.
    """
    with tempfile.TemporaryDirectory() as scratch, quietly(), _staged(out) as staged:
        gathered = Path(scratch) / MODEL_GRAPH
        quantize_dynamic(exported / MODEL_GRAPH, gathered, op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
        ids = (np.array([tokenizer.encode(text).ids], np.int64) for text in texts)
        examples = ({"input_ids": each, "attention_mask": np.ones_like(each)} for each in ids)
        quantize_matrices(gathered, examples, staged / MODEL_GRAPH)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when it is whole."""
    staged = out.with_name(f"{out.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    yield staged
    staged.rename(out)
