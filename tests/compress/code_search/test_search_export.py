"""A graph says what its encoder says: in float32 the same, with 8 bits nearly."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from bundle.encoder import Encoder
from bundle.search import FP32, INT8, open_search_bundle
from compress.code_search.encoders import load_encoder
from tests.support.tiny_encoder import MAX_TOKENS

TEXTS = [
    "How are lines parsed?",
    "",
    "def parse(lines):\n    return [line.split() for line in lines]",
    *(f"def f{number}(x):\n    return {'x + ' * number}{number}" for number in range(12)),
    "lines " * 200,
]


@pytest.fixture(scope="module")
def said(tiny_encoder: Path) -> np.ndarray:
    return load_encoder(str(tiny_encoder), MAX_TOKENS).encode(TEXTS)


def test_in_float32_it_is_the_same(tiny_search_bundle: Path, said: np.ndarray) -> None:
    exported = Encoder(open_search_bundle(tiny_search_bundle), FP32, threads=1).encode(TEXTS)
    np.testing.assert_allclose(exported, said, atol=1e-4)


def test_with_8_bits_the_similarities_are_nearly_the_same(tiny_search_bundle: Path, said: np.ndarray) -> None:
    exported = Encoder(open_search_bundle(tiny_search_bundle), INT8, threads=1).encode(TEXTS)
    assert not np.array_equal(exported, said)
    pairs = np.triu_indices(len(TEXTS), 1)
    assert np.corrcoef((exported @ exported.T)[pairs], (said @ said.T)[pairs])[0, 1] > 0.99
    assert np.min(np.sum(exported * said, axis=1)) > 0.99


def test_weights_of_8_bits_are_all_there_is(tiny_search_bundle: Path) -> None:
    types = {}
    for export in (FP32, INT8):
        graph = onnx.load(open_search_bundle(tiny_search_bundle).model_file(export)).graph
        large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) >= 4096]
        types[export] = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in large}
    assert types == {FP32: {"FLOAT"}, INT8: {"INT8", "UINT8"}}
