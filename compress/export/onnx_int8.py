"""The student in 8 bits: as a graph that only prompts go through, or as the only graph there is.

With integers a CPU computes several times as fast as with blocks of 4 bits, as soon as there is much to multiply:
the tokens of a prompt, or the next tokens of many answers. Embeddings stay as they are in the 4-bit graph.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.utils import Extractor

from bundle.manifest import MODEL_GRAPH, PREFILL_GRAPH
from compress.errors import StageError
from compress.export.int8 import quantize_matrices

_QUANTISED = re.compile(r"_Q\d$")  # how the builder ends the name of a matrix product that it has quantised
_OWN = "matrix."  # begins names that the builder has for nothing
_LOGITS = "logits"
_FLOATS_DATA = "floats.data"
_DECODING_DATA = "decoding.data"


def write_prefill(decoding: Path, full: Path, head_dim: int, examples: Sequence[Sequence[int]]) -> None:
    """Write prefill.onnx and its data beside `decoding`: the student in 8 bits, without what only an answer needs.

    Inputs and outputs are those of the decoding graph without its logits. It ends with the keys and values of the last
    layer: head, last attention output and last MLP write none. Embeddings stay in the decoding graph's file of data.

    Args:
        decoding: the builder's graph with weights in blocks of 4 bits.
        full: the builder's graph of the same student in float32, in a folder that may be written to.
        head_dim: numbers in a key of one head.
        examples: token ids; the ranges of activations are taken from them, see `compress.export.int8`.

    Raises:
        StageError: there are no examples, or the two graphs are not of one shape.
    """
    floats = _write_in_floats(decoding, full, logits=False)
    model = _quantised(floats, head_dim, examples)
    whole = {tensor.name: tensor for tensor in onnx.load(decoding, load_external_data=False).graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in whole:
            tensor.CopyFrom(whole[tensor.name])
    _save(model, decoding.with_name(PREFILL_GRAPH))


def write_in_8_bits(decoding: Path, full: Path, head_dim: int, examples: Sequence[Sequence[int]], out: Path) -> None:
    """Write model.onnx and its data into `out`: the decoding graph with all its matrices in 8 bits.

    Arguments and errors are `write_prefill`'s; `out` is a folder that exists.
    """
    floats = _write_in_floats(decoding, full, logits=True)
    _save(_quantised(floats, head_dim, examples), out / MODEL_GRAPH)


def _quantised(floats: Path, head_dim: int, examples: Sequence[Sequence[int]]) -> onnx.ModelProto:
    if not examples:
        raise StageError("export.onnx in 8 bits is calibrated on examples, and there are none")
    quantised = floats.with_name("quantised.onnx")
    quantize_matrices(floats, _fed(floats, head_dim, examples), quantised)
    return onnx.load(quantised)


def _save(model: onnx.ModelProto, file: Path) -> None:
    onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data")


def _write_in_floats(decoding: Path, full: Path, logits: bool) -> Path:
    """The decoding graph with the matrices of the full one, beside the latter; without `logits` up to the last keys."""
    model = onnx.load(decoding, load_external_data=False)
    whole = onnx.load(full, load_external_data=False)
    shutil.copy(decoding.with_name(f"{decoding.name}.data"), full.with_name(_DECODING_DATA))
    full.with_name(f"{full.name}.data").rename(full.with_name(_FLOATS_DATA))
    _locate(model.graph.initializer, _DECODING_DATA)
    _locate(whole.graph.initializer, _FLOATS_DATA)
    products = {node.name: node for node in whole.graph.node if node.op_type == "MatMul"}
    weights = {tensor.name: tensor for tensor in whole.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            name = _QUANTISED.sub("", node.name)
            if name not in products:
                raise StageError(
                    f"export.onnx: the student's graph in float32 has no {name}, which its graph in 4 bits has: it can "
                    "not be had in 8 bits; choose `precision: int4` without `prefill`"
                )
            weight = TensorProto()
            weight.CopyFrom(weights[products[name].input[1]])
            weight.name = f"{_OWN}{weight.name}"
            model.graph.initializer.append(weight)
            node.CopyFrom(helper.make_node("MatMul", [node.input[0], weight.name], list(node.output), name=name))
    kept = [value.name for value in model.graph.output if logits or value.name != _LOGITS]
    floats = full.with_name("floats.onnx")
    onnx.save(Extractor(model).extract_model([value.name for value in model.graph.input], kept), floats)
    return floats


def _locate(tensors: Sequence[TensorProto], file: str) -> None:
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
