"""The graph that reads prompts: the student in 8 bits, without what only an answer needs.

Most of an analysis is reading its unit, and with integers a CPU does that several times as fast as with blocks of 4
bits. The graph ends with the keys and values of the last layer: head, last attention output and last MLP write none.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.utils import Extractor

from bundle.manifest import PREFILL_GRAPH
from compress.errors import StageError
from compress.export.int8 import quantize_matrices

_QUANTISED = "_Q4"  # how the builder ends the name of a matrix product that it has quantised
_HEAD = "/lm_head/"
_LOGITS = "logits"
_DATA = f"{PREFILL_GRAPH}.data"
_DECODING_DATA = "decoding.data"


def write_prefill(decoding: Path, full: Path, head_dim: int, examples: Sequence[Sequence[int]]) -> None:
    """Write prefill.onnx and its data beside `decoding`.

    Inputs and outputs are those of the decoding graph without its logits. `compress.export.int8` says what becomes of
    the matrices; all else, embeddings above all, is the decoding graph's and stays in its file of data.

    Args:
        decoding: the builder's graph with weights in blocks of 4 bits.
        full: the builder's graph of the same student in float32, in a folder that may be written to.
        head_dim: numbers in a key of one head.
        examples: token ids; the ranges of activations are taken from them.

    Raises:
        StageError: there are no examples, or the two graphs are not of one shape.
    """
    if not examples:
        raise StageError("export.onnx.prefill is calibrated on examples, and there are none")
    floats = _write_in_floats(decoding, full)
    quantised = full.with_name("quantised.onnx")
    quantize_matrices(floats, _fed(floats, head_dim, examples), quantised)
    model = onnx.load(quantised)
    whole, cut = (onnx.load(graph, load_external_data=False).graph.initializer for graph in (decoding, floats))
    untouched = {tensor.name for tensor in cut}  # the quantiser's own names may be the builder's of other things
    kept = {tensor.name: tensor for tensor in whole if tensor.name in untouched}
    for tensor in model.graph.initializer:
        if tensor.name in kept:
            tensor.CopyFrom(kept[tensor.name])
    onnx.save(model, decoding.with_name(PREFILL_GRAPH), save_as_external_data=True, location=_DATA)


def _write_in_floats(decoding: Path, full: Path) -> Path:
    """The decoding graph up to its last keys and values, but with the matrices of the full one, beside the latter."""
    model = onnx.load(decoding, load_external_data=False)
    whole = onnx.load(full, load_external_data=False)
    shutil.copy(decoding.with_name(f"{decoding.name}.data"), full.with_name(_DECODING_DATA))
    full.with_name(f"{full.name}.data").rename(full.with_name(_DATA))
    _locate(model.graph.initializer, _DECODING_DATA)
    _locate(whole.graph.initializer, _DATA)
    products = {node.name: node for node in whole.graph.node if node.op_type == "MatMul"}
    weights = {tensor.name: tensor for tensor in whole.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and not node.name.startswith(_HEAD):
            product = products.get(node.name.removesuffix(_QUANTISED))
            if product is None:
                raise StageError(
                    f"export.onnx.prefill: the student's graph in float32 has no {node.name.removesuffix(_QUANTISED)}, "
                    "which its graph in 4 bits has; leave `prefill` out for this student"
                )
            model.graph.initializer.append(weights[product.input[1]])
            inputs, outputs = [node.input[0], product.input[1]], list(node.output)
            node.CopyFrom(onnx.helper.make_node("MatMul", inputs, outputs, name=product.name))
    kept = [value.name for value in model.graph.output if value.name != _LOGITS]
    floats = full.with_name(PREFILL_GRAPH)
    onnx.save(Extractor(model).extract_model([value.name for value in model.graph.input], kept), floats)
    return floats


def _locate(tensors: Sequence[onnx.TensorProto], file: str) -> None:
    """Say that the data of tensors are in `file`, if they are not in the graph itself."""
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = file


def _fed(model: Path, head_dim: int, examples: Sequence[Sequence[int]]) -> Iterator[dict[str, NDArray]]:
    """Examples one after another, each before an empty past."""
    graph = onnx.load(model, load_external_data=False).graph
    past = {
        value.name: np.zeros((1, value.type.tensor_type.shape.dim[1].dim_value, 0, head_dim), np.float32)
        for value in graph.input
        if value.name.startswith("past_key_values.")
    }
    for ids in examples:
        yield {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64), **past}
