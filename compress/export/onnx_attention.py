"""Attention whose scores need no scale, because its rotary embedding carries it.

    scale * (R q) . (R k) = (sqrt(scale) R q) . (sqrt(scale) R k)

ONNX Runtime multiplies one query with all keys in a kernel for vectors, but only if nothing is scaled; else the keys
are packed first, as for a matrix (`MlasSgemmOperation`), which takes longer than the product. A step that writes one
token of each answer has nothing but such queries.
"""

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

_ATTENTION = "GroupQueryAttention"
_CACHES = slice(7, 9)
"""Which inputs of an attention are the cosines and the sines, [positions, head_dim / 2]."""


def fold_scale(graph: Path, head_dim: int) -> None:
    """Let the rotary embedding of a graph, in its file of data, carry the attention's scale.

    The keys in its KV cache are multiplied too: whatever else reads that cache must be made of the same graph. A graph
    stays as it is where a part of a head is not rotated, or layers differ.

    Args:
        graph: the builder's.
        head_dim: numbers in a key of one head.
    """
    model = onnx.load(graph, load_external_data=False)
    layers = [node for node in model.graph.node if node.op_type == _ATTENTION]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = {_attribute(node, "scale").f or 1 / math.sqrt(head_dim) for node in layers}
    caches = {tuple(node.input[_CACHES]) for node in layers if _attribute(node, "do_rotary").i}
    if len(scales) != 1 or len(caches) != 1 or not all(_attribute(node, "do_rotary").i for node in layers):
        return
    tensors = [weights[name] for name in caches.pop()]
    if any(tensor.data_type != TensorProto.FLOAT or 2 * tensor.dims[1] != head_dim for tensor in tensors):
        return
    factor = math.sqrt(scales.pop())
    for tensor in tensors:
        _multiply(tensor, graph.parent, factor)
    for node in layers:
        _attribute(node, "scale").f = 1.0
    onnx.save(model, graph)


def _attribute(node: NodeProto, name: str) -> AttributeProto:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def _multiply(tensor: TensorProto, folder: Path, factor: float) -> None:
    """Multiply a tensor where it lies: the file of data may be larger than memory."""
    if uses_external_data(tensor):
        where = ExternalDataInfo(tensor)
        values = np.memmap(folder / where.location, np.float32, "r+", where.offset or 0, tuple(tensor.dims))
        np.multiply(values, np.float32(factor), out=values)
        values.flush()
    else:
        product = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(product, tensor.name))
