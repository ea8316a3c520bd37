"""What a search bundle is made of, drafted for measuring and written to be served."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from sentence_transformers import SentenceTransformer

from bundle.fusion import HybridRanking
from bundle.manifest import SCHEMA_VERSION, TOKENIZER_FILE, Export, describe_files, weights_sha256, write_manifest
from bundle.precision import EmbeddingFormat
from bundle.search import FP32, INT8, SearchBundle, SearchExport, SearchManifest
from compress.assemble import replace_folder, versions
from compress.code_search.encoders import transformer
from compress.code_search.export import export_encoder, quantize_encoder
from compress.code_search.recipe import SearchRecipe

FOLDERS: dict[SearchExport, str] = {INT8: "int8", FP32: "fp32"}
_FACTS_FILE = "encoder.json"
_VERSIONS_OF = ("torch", "transformers", "sentence-transformers", "tokenizers", "onnx", "onnxruntime")


class Facts(msgspec.Struct, frozen=True):
    """What a manifest says of an encoder beside its files."""

    architecture: str
    parameters: int
    dimensions: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Those of an encoder that `write_exports` wrote."""
        return msgspec.json.decode((folder / _FACTS_FILE).read_bytes(), type=cls)


def write_exports(encoder: SentenceTransformer, dimensions: tuple[int, ...], texts: Sequence[str], out: Path) -> None:
    """Write an encoder's graphs, its tokenizer and its facts into `out`, whole or not at all.

    Args:
        dimensions: of its embeddings that serve as well, below the full width.
        texts: queries and functions that the graph in 8 bits is calibrated on; without any there is none, and only
            the one in float32.
    """
    if out.is_dir():
        return
    staged = out.with_name(f"{out.name}.making")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    export_encoder(encoder, staged / FOLDERS[FP32])
    tokenizer = encoder.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    if texts:
        tokenizer.enable_truncation(encoder.max_seq_length)
        quantize_encoder(staged / FOLDERS[FP32], tokenizer, texts, staged / FOLDERS[INT8])
    tokenizer.no_truncation()
    tokenizer.save(str(staged / TOKENIZER_FILE))
    width = encoder.get_embedding_dimension()
    assert width is not None, "an encoder that pools has a width"
    model = transformer(encoder)
    facts = Facts(type(model).__name__, model.num_parameters(), (width, *dimensions))
    (staged / _FACTS_FILE).write_bytes(msgspec.json.encode(facts))
    staged.rename(out)


def draft_bundle(recipe: SearchRecipe, folder: Path) -> SearchBundle:
    """What `write_exports` wrote, as a bundle to measure: without scores, and no file of it checked."""
    exports = {kind: Export(name, kind) for kind, name in FOLDERS.items() if (folder / name).is_dir()}
    return SearchBundle(folder, _manifest(recipe, folder, exports, {}, {}, HybridRanking(), EmbeddingFormat()))


def write_search_bundle(
    recipe: SearchRecipe,
    exported: Path,
    report: Path,
    lineage: Mapping[str, Any],
    scores: Mapping[str, Any],
    hybrid: HybridRanking,
    embeddings: EmbeddingFormat,
    target: Path,
) -> None:
    """Write the bundle to `target`, replacing an older one only when the new one is complete.

    Args:
        exported: what `write_exports` wrote.
        report: a folder with report.html and report.json.
        lineage: what the weights came from; versions are added here.
        hybrid: how they and BM25 are fused.
        embeddings: how an index keeps them.
    """
    staged = target.with_name(f"{target.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for name in FOLDERS.values():
        shutil.copytree(exported / name, staged / name)
    shutil.copy(exported / TOKENIZER_FILE, staged / TOKENIZER_FILE)
    for name in ("report.json", "report.html"):
        shutil.copy(report / name, staged / name)
    exports = {kind: Export(name, kind.removeprefix("onnx-")) for kind, name in FOLDERS.items()}
    told = {**lineage, "versions": versions(_VERSIONS_OF)}
    drafted = _manifest(recipe, exported, exports, told, scores, hybrid, embeddings)
    files = describe_files(staged)
    write_manifest(
        staged, msgspec.structs.replace(drafted, files=files, weights_sha256=weights_sha256(files, FOLDERS[INT8]))
    )
    replace_folder(target, staged)


def _manifest(
    recipe: SearchRecipe,
    exported: Path,
    exports: dict[SearchExport, Export],
    lineage: Mapping[str, Any],
    scores: Mapping[str, Any],
    hybrid: HybridRanking,
    embeddings: EmbeddingFormat,
) -> SearchManifest:
    facts = Facts.read(exported)
    return SearchManifest(
        schema_version=SCHEMA_VERSION,
        name=recipe.name,
        language="python",
        architecture=facts.architecture,
        parameters=facts.parameters,
        dimensions=facts.dimensions,
        max_tokens=recipe.data.max_tokens,
        hybrid=hybrid,
        embeddings=embeddings,
        exports=exports,
        weights_sha256="",
        lineage=dict(lineage),
        scores=dict(scores),
        files={},
    )
