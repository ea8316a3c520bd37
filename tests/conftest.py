"""Fixtures every room's tests may use."""

from pathlib import Path

import pytest

from tests.support.tiny_bundle import make_tiny_bundle, make_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 checkpoint with its tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    make_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """A real bundle of that checkpoint, its ONNX export in 4 bits. Copy it before changing it."""
    return make_tiny_bundle(tiny_checkpoint, tiny_checkpoint.with_name("int4"), "int4")


@pytest.fixture(scope="session")
def tiny_int8_bundle(tiny_checkpoint: Path) -> Path:
    """The same, its ONNX export in 8 bits, prompts and answers through one graph."""
    return make_tiny_bundle(tiny_checkpoint, tiny_checkpoint.with_name("int8"), "int8")


@pytest.fixture(scope="session")
def tiny_cuda_bundle(tiny_checkpoint: Path) -> Path:
    """The same, its ONNX export the graph for GPUs in 4 bits, which a CPU computes as well."""
    return make_tiny_bundle(tiny_checkpoint, tiny_checkpoint.with_name("cuda"), "int4", for_cuda=True)


@pytest.fixture(scope="session")
def tiny_float_bundle(tiny_checkpoint: Path) -> Path:
    """The same, its ONNX export in float32."""
    return make_tiny_bundle(tiny_checkpoint, tiny_checkpoint.with_name("fp32"), "fp32")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sentence encoder of three layers with its tokenizer, as sentence-transformers saves it."""
    from tests.support.tiny_encoder import make_tiny_encoder  # sentence-transformers takes seconds to import

    folder = tmp_path_factory.mktemp("search") / "encoder"
    make_tiny_encoder(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_search_bundle(tiny_encoder: Path) -> Path:
    """A real search bundle of that encoder. Copy it before changing it."""
    from tests.support.tiny_encoder import make_tiny_search_bundle

    return make_tiny_search_bundle(tiny_encoder, tiny_encoder.with_name("bundle"))
