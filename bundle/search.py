"""The search bundle: what embeds code and queries into one space, and the check that it is still exactly that.

A folder of its own beside an analysis bundle: `manifest.json`, `tokenizer.json`, and the same student once with
8-bit weights and once in float32, each as a graph from token ids to unit vectors. `bundle.encoder` runs it.
"""

from pathlib import Path
from typing import Any, Literal

import msgspec

from bundle.fusion import HybridRanking
from bundle.manifest import (
    MANIFEST_FILE,
    MODEL_GRAPH,
    TOKENIZER_FILE,
    BundleError,
    Export,
    FileEntry,
    read_manifest,
    verify_files,
)
from bundle.precision import EmbeddingFormat
from bundle.units import Unit

SearchExport = Literal["onnx-int8", "onnx-fp32"]
INT8: SearchExport = "onnx-int8"
FP32: SearchExport = "onnx-fp32"


class SearchManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a search bundle's manifest.json."""

    schema_version: int
    task: Literal["search"] = "search"
    name: str
    language: str
    architecture: str
    parameters: int
    dimensions: tuple[int, ...]  # the full width, then the widths at which an embedding's first part serves as well
    max_tokens: int  # of a text, special tokens among them; the rest is cut off
    hybrid: HybridRanking = HybridRanking()  # the best on validation projects
    embeddings: EmbeddingFormat = EmbeddingFormat()  # how an index keeps them
    exports: dict[SearchExport, Export]
    weights_sha256: str
    lineage: dict[str, Any]
    scores: dict[str, Any]
    files: dict[str, FileEntry]

    @property
    def revision(self) -> str:
        """A short name for exactly these weights."""
        return self.weights_sha256[:12]


class SearchBundle(msgspec.Struct, frozen=True):
    """A search bundle whose every file was checked."""

    root: Path
    manifest: SearchManifest

    @property
    def tokenizer_file(self) -> Path:
        return self.root / TOKENIZER_FILE

    def model_file(self, export: SearchExport = INT8) -> Path:
        """The graph of one export.

        Raises:
            BundleError: this bundle was made without that export.
        """
        if export not in self.manifest.exports:
            held = ", ".join(sorted(self.manifest.exports)) or "none"
            raise BundleError(f"{self.root}: the search bundle has no {export!r} export (it has: {held})")
        return self.root / self.manifest.exports[export].path / MODEL_GRAPH


def open_search_bundle(root: Path) -> SearchBundle:
    """Read a search bundle and verify the sha256 of every file in it.

    Raises:
        BundleError: no manifest, an analysis bundle's manifest or one of another version, a file that is missing,
            changed or outside the folder, or an export without its graph.
    """
    manifest = read_manifest(root, SearchManifest, "search")
    graphs = tuple(f"{export.path}/{MODEL_GRAPH}" for export in manifest.exports.values())
    verify_files(root, manifest.files, manifest.exports, (TOKENIZER_FILE, *graphs))
    if not manifest.dimensions or not manifest.exports:
        raise BundleError(
            f"{root / MANIFEST_FILE} names no width of its embeddings or no export: build the bundle again"
        )
    return SearchBundle(root, manifest)


def document_text(unit: Unit) -> str:
    """What is embedded and indexed of a unit: its qualified name, its docstring's first sentence, its code."""
    return "\n".join(part for part in (unit.name, unit.summary, unit.code) if part)
