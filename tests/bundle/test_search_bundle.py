"""A search bundle is opened only when it is exactly what was written, and embeds any text into unit vectors."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.encoder import Encoder
from bundle.manifest import MANIFEST_FILE, TOKENIZER_FILE, BundleError, describe_files, open_bundle, write_manifest
from bundle.search import FP32, INT8, SearchExport, document_text, open_search_bundle
from bundle.units import cut_units

SOURCE = '''
class Paper:
    def area(self, width, height):
        """How much there is to write on. In square metres.

        More is said here.
        """
        return width * height
'''


@pytest.fixture
def copy(tiny_search_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_search_bundle, tmp_path / "copy"))


def rewritten(root: Path, **changes: object) -> None:
    manifest = open_search_bundle(root).manifest
    write_manifest(root, msgspec.structs.replace(manifest, **{"files": describe_files(root), **changes}))


def test_it_names_its_weights_and_graphs(tiny_search_bundle: Path) -> None:
    bundle = open_search_bundle(tiny_search_bundle)
    assert bundle.model_file(INT8) == tiny_search_bundle / "int8" / "model.onnx"
    assert bundle.model_file(FP32) == tiny_search_bundle / "fp32" / "model.onnx"
    assert len(bundle.manifest.revision) == 12
    assert bundle.manifest.dimensions == (64, 32)


@pytest.mark.parametrize("name", ["int8/model.onnx", "fp32/model.onnx", TOKENIZER_FILE])
def test_a_changed_byte_is_refused_and_its_file_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match="sha256 differs") as refused:
        open_search_bundle(copy)
    assert str(copy / name) in str(refused.value)


def test_an_export_without_its_graph_is_refused(copy: Path) -> None:
    (copy / "int8" / "other.onnx").write_bytes(b"x")
    files = describe_files(copy)
    del files["int8/model.onnx"]
    rewritten(copy, files=files)
    with pytest.raises(BundleError, match=r"does not list int8/model\.onnx"):
        open_search_bundle(copy)


def test_a_manifest_without_a_width_is_refused(copy: Path) -> None:
    rewritten(copy, dimensions=())
    with pytest.raises(BundleError, match="names no width"):
        open_search_bundle(copy)


@pytest.mark.parametrize("embeddings", [{"precision": "int4"}, {"precision": "int8", "limit": 0.0}])
def test_embeddings_that_no_index_can_keep_so_are_refused(copy: Path, embeddings: dict) -> None:
    rewritten(copy, embeddings=embeddings)
    with pytest.raises(BundleError, match="not a bundle manifest this version can read"):
        open_search_bundle(copy)


def test_an_absent_export_says_what_there_is(copy: Path) -> None:
    exports = open_search_bundle(copy).manifest.exports
    rewritten(copy, exports={INT8: exports[INT8]})
    with pytest.raises(BundleError, match=r"no 'onnx-fp32' export \(it has: onnx-int8\)"):
        open_search_bundle(copy).model_file(FP32)


def test_each_kind_of_bundle_is_refused_in_the_other_s_place(tiny_search_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"is a search bundle, and an analysis .* wanted here.*--search-bundle"):
        open_bundle(tiny_search_bundle)
    with pytest.raises(BundleError, match=r"is an analysis bundle, and a search .* wanted here.*deepcode-serve"):
        open_search_bundle(Path(__file__).parents[2] / "models" / "nano")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"task":"search"}', b'{"task":"poetry"}', b"\xff", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError):
        open_search_bundle(copy)


def test_a_document_is_its_name_its_docstring_s_first_sentence_and_its_code() -> None:
    unit = next(unit for unit in cut_units(SOURCE) if unit.kind == "method")
    assert document_text(unit) == (
        "Paper.area\nHow much there is to write on.\ndef area(self, width, height):\n    return width * height"
    )
    assert document_text(msgspec.structs.replace(unit, summary=None)).startswith("Paper.area\ndef area")


@pytest.fixture(scope="session", params=[INT8, FP32])
def export(request: pytest.FixtureRequest) -> SearchExport:
    return request.param


@pytest.fixture(scope="session")
def encoder(export: SearchExport, tiny_search_bundle: Path) -> Encoder:
    return Encoder(open_search_bundle(tiny_search_bundle), export, threads=1)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(max_size=80), max_size=6))
def test_a_text_s_embedding_has_length_one_and_does_not_depend_on_what_it_is_embedded_with(
    encoder: Encoder, export: SearchExport, texts: list[str]
) -> None:
    # With 8 bits an activation between two steps is rounded either way by the last bits of a sum.
    nearness = 1e-5 if export == FP32 else 5e-3
    together = encoder.encode(texts)
    assert together.shape == (len(texts), encoder.dimension)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(row, encoder.encode([text])[0], atol=nearness)


def test_what_is_beyond_the_longest_text_is_not_seen(encoder: Encoder) -> None:
    long = "parse " * 400
    assert np.array_equal(encoder.encode([long]), encoder.encode([long + "something else"]))


def test_many_texts_come_back_in_their_order(encoder: Encoder) -> None:
    texts = [f"def f{number}(): return {'x' * (number % 37)}" for number in range(150)]
    some = [140, 3, 77]
    np.testing.assert_allclose(encoder.encode(texts)[some], encoder.encode([texts[place] for place in some]), atol=1e-5)
