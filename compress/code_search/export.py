"""An encoder as an ONNX graph from token ids to unit vectors, in float32 and with weights of 8 bits."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from bundle.search import MODEL_FILE
from compress.code_search.encoders import transformer

_BLOCK = 128  # weights that share a scale


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
    with _quietly(), _staged(out) as staged:
        program = torch.onnx.export(
            _Graph(encoder).eval(),
            kwargs={name: torch.ones((2, 8), dtype=torch.long) for name in names},
            output_names=["sentence_embedding"],
            dynamic_shapes={name: {0: batch, 1: length} for name in names},
            dynamo=True,
            verbose=False,
        )
        assert program is not None, "a path would make it write instead"
        program.save(str(staged / MODEL_FILE), external_data=False)


def quantize_encoder(exported: Path, out: Path) -> None:
    """Write `out`/model.onnx: the graph in `exported` with weights of 8 bits.

    Matrices are MatMulNBits, in blocks of 128 that share a scale; activations are quantised row by row
    (accuracy_level 4), so that a text's embedding does not depend on the batch it is in. Token embeddings are 8 bits
    with one scale.
    """
    with tempfile.TemporaryDirectory() as scratch, _quietly(), _staged(out) as staged:
        gathered = Path(scratch) / MODEL_FILE
        quantize_dynamic(exported / MODEL_FILE, gathered, op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
        quantizer = MatMulNBitsQuantizer(
            onnx.load(gathered),
            algo_config=DefaultWeightOnlyQuantConfig(block_size=_BLOCK, is_symmetric=True, accuracy_level=4, bits=8),
        )
        quantizer.process()
        onnx.save(quantizer.model.model, staged / MODEL_FILE)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when it is whole."""
    staged = out.with_name(f"{out.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    yield staged
    staged.rename(out)


@contextmanager
def _quietly() -> Iterator[None]:
    """Exporter and quantiser tell of every node."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
