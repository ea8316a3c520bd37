"""What is in a bundle, and the check that it is still exactly that.

A bundle is a folder. `manifest.json` names every file with its sha256, says how the student is to be
asked and decoded, and carries the lineage and the scores it was released with.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import msgspec

from bundle.confidence import check_calibration
from bundle.rules import Catalogue, load_catalogue

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
PROMPT_FILE = "prompt.jinja"
RULES_FILE = "rules.yaml"
SCHEMA_FILE = "answer.schema.json"
TOKENIZER_FILE = "tokenizer.json"
MODEL_GRAPH = "model.onnx"  # of an ONNX export: the whole model
PREFILL_GRAPH = "prefill.onnx"  # of some ONNX exports: reads prompts, and gives their keys and values alone


Task = Literal["analysis", "search"]
Content = TypeVar("Content", bound=msgspec.Struct)
_NAMES: dict[Task, str] = {"analysis": "an analysis bundle", "search": "a search bundle"}
_USES: dict[Task, str] = {
    "analysis": "give it to deepcode-serve, or to deepcode-check --bundle",
    "search": "give it to deepcode-serve --search-bundle",
}


class BundleError(Exception):
    """The folder is not a bundle that may be loaded; the message says which file and what to do."""


class _Kind(msgspec.Struct, frozen=True):
    """What tells the manifests of different tasks apart; that of an analysis bundle does not name its own."""

    task: Task = "analysis"


class FileEntry(msgspec.Struct, frozen=True):
    """One file's fingerprint: sha256 in hex and its size in bytes."""

    sha256: str
    bytes: int


class ModelShape(msgspec.Struct, frozen=True):
    """What an engine must know to allocate memory for the student."""

    architecture: str
    parameters: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int


class Export(msgspec.Struct, frozen=True):
    """One loadable form of the student: the folder it is in and how its weights are stored."""

    path: str
    quantization: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of manifest.json.

    `thresholds` are confidences per rule below which a finding is not shown; they are compared after
    `calibration`, whose knots for each rule (see `bundle.confidence.calibrated`) turn raw confidences into shares
    of right findings. The confidences of a rule without knots stay raw.
    """

    schema_version: int
    name: str
    language: str
    context_length: int
    eos_token_ids: tuple[int, ...]
    model: ModelShape
    exports: dict[str, Export]
    weights_sha256: str
    thresholds: dict[str, float]
    lineage: dict[str, Any]
    scores: dict[str, Any]
    files: dict[str, FileEntry]
    calibration: dict[str, tuple[tuple[float, float], ...]] = {}

    @property
    def revision(self) -> str:
        """A short name for exactly these weights."""
        return self.weights_sha256[:12]


class Bundle(msgspec.Struct, frozen=True):
    """A bundle whose every file was checked."""

    root: Path
    manifest: Manifest
    catalogue: Catalogue
    prompt_template: str

    @property
    def tokenizer_file(self) -> Path:
        return self.root / TOKENIZER_FILE

    def export_folder(self, kind: str) -> Path:
        """Where the export `kind` ("onnx", "cuda", "nf4", "vllm") is.

        Raises:
            BundleError: this bundle was made without that export.
        """
        if kind not in self.manifest.exports:
            held = ", ".join(sorted(self.manifest.exports)) or "none"
            raise BundleError(
                f"{self.root}: the bundle has no {kind!r} export (it has: {held}); "
                f"add {kind!r} to `export` in the recipe and run deepcode-compress again"
            )
        return self.root / self.manifest.exports[kind].path


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(root: Path) -> dict[str, FileEntry]:
    """Every file below `root` but the manifest itself, by its relative POSIX path."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path != root / MANIFEST_FILE)
    return {path.relative_to(root).as_posix(): FileEntry(file_sha256(path), path.stat().st_size) for path in paths}


def weights_sha256(files: dict[str, FileEntry], folder: str) -> str:
    """One hash over every file of one export: the identity of the weights it holds."""
    digest = hashlib.sha256()
    for name in sorted(files):
        if name.startswith(f"{folder}/"):
            digest.update(f"{name} {files[name].sha256}\n".encode())
    return digest.hexdigest()


def write_manifest(root: Path, manifest: msgspec.Struct) -> None:
    """Write manifest.json last and whole: a folder without one is not a bundle."""
    staged = root / f".{MANIFEST_FILE}.tmp"
    staged.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    staged.replace(root / MANIFEST_FILE)


def open_bundle(root: Path) -> Bundle:
    """Read a bundle and verify the sha256 of every file in it.

    Raises:
        BundleError: no manifest, a manifest of another version, a file that is missing, changed or
            outside the folder, an export without files, or a calibration that changes the order of findings.
    """
    manifest_file = root / MANIFEST_FILE
    manifest = read_manifest(root, Manifest, "analysis")
    for rule, knots in manifest.calibration.items():
        try:
            check_calibration(knots)
        except ValueError as error:
            raise BundleError(f"{manifest_file}: {rule}: {error}; build the bundle again") from error
    verify_files(root, manifest.files, manifest.exports, (PROMPT_FILE, RULES_FILE, SCHEMA_FILE, TOKENIZER_FILE))
    return Bundle(
        root=root,
        manifest=manifest,
        catalogue=load_catalogue(root / RULES_FILE),
        prompt_template=(root / PROMPT_FILE).read_text(encoding="utf-8"),
    )


def read_manifest(root: Path, kind: type[Content], task: Task) -> Content:
    """manifest.json of a bundle of this task.

    Args:
        kind: what it is read as; has `schema_version`.

    Raises:
        BundleError: there is none, it is another task's, or one that this version can not read.
    """
    file = root / MANIFEST_FILE
    if not file.is_file():
        raise BundleError(
            f"{root} is not a bundle: it has no {MANIFEST_FILE}; deepcode-compress writes one at the end of a run"
        )
    content = file.read_bytes()
    try:
        found = msgspec.json.decode(content, type=_Kind).task
        if found != task:
            raise BundleError(f"{root} is {_NAMES[found]}, and {_NAMES[task]} is wanted here: {_USES[found]}")
        manifest = msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{file} is not a bundle manifest this version can read: {error}") from error
    version = manifest.schema_version  # type: ignore[attr-defined]
    if version != SCHEMA_VERSION:
        raise BundleError(f"{file} has schema version {version}; this version reads {SCHEMA_VERSION}")
    return manifest


def verify_files(
    root: Path, files: dict[str, FileEntry], exports: Mapping[Any, Export], needed: tuple[str, ...]
) -> None:
    """Check every file that a manifest lists, by its size and sha256, and that it lists what is loaded.

    Args:
        needed: names of files that must be among them.

    Raises:
        BundleError: a file is missing, changed, outside the folder or not listed, or an export has no files.
    """
    manifest_file = root / MANIFEST_FILE
    for name, entry in files.items():
        _verify(root, name, entry)
    for name in needed:
        if name not in files:
            raise BundleError(f"{manifest_file} does not list {name}, which every bundle needs")
    for kind, export in exports.items():
        # What is loaded is what was verified: an export elsewhere has no file that could be listed.
        if not any(name.startswith(f"{export.path}/") for name in files):
            raise BundleError(f"{manifest_file} lists no file of its {kind!r} export in {export.path!r}: refused")


def _verify(root: Path, name: str, entry: FileEntry) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise BundleError(f"{root / MANIFEST_FILE} names {name!r}, which is outside the bundle: refused")
    path = root / relative
    if not path.is_file():
        raise BundleError(f"{path} is missing from the bundle; copy or build the bundle again")
    if path.stat().st_size != entry.bytes or file_sha256(path) != entry.sha256:
        raise BundleError(
            f"{path} is not the file the bundle was made with (sha256 differs); copy or build the bundle again"
        )
