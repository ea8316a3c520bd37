"""A bundle is opened only when it is exactly what was written."""

import shutil
from pathlib import Path

import msgspec
import pytest

from bundle.answer import answer_schema
from bundle.manifest import (
    MANIFEST_FILE,
    PROMPT_FILE,
    RULES_FILE,
    SCHEMA_FILE,
    SCHEMA_VERSION,
    TOKENIZER_FILE,
    BundleError,
    Export,
    FileEntry,
    Manifest,
    ModelShape,
    describe_files,
    open_bundle,
    weights_sha256,
    write_manifest,
)
from bundle.rules import CATALOGUE_FILE, load_catalogue


def manifest_of(root: Path) -> Manifest:
    files = describe_files(root)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name="paper",
        language="python",
        context_length=128,
        eos_token_ids=(2,),
        model=ModelShape("Qwen2ForCausalLM", 10, 8, 1, 1, 4),
        exports={"onnx": Export("onnx", "int4")},
        weights_sha256=weights_sha256(files, "onnx"),
        thresholds={"off-by-one": 0.5},
        lineage={"recipe": {"name": "paper"}},
        scores={"f1": 0.25},
        files=files,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole bundle but for the weights, which opening one never reads as weights."""
    folder = tmp_path / "paper"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"weights")
    (folder / TOKENIZER_FILE).write_text("{}")
    (folder / PROMPT_FILE).write_text("{{ code }} →", encoding="utf-8")
    (folder / SCHEMA_FILE).write_bytes(msgspec.json.encode(answer_schema(["off-by-one"], 1)))
    shutil.copy(CATALOGUE_FILE, folder / RULES_FILE)
    write_manifest(folder, manifest_of(folder))
    return folder


def rewritten(root: Path, **changes: object) -> None:
    write_manifest(root, msgspec.structs.replace(manifest_of(root), **changes))


def test_a_bundle_is_read_back_as_it_was_written(root: Path) -> None:
    bundle = open_bundle(root)

    assert bundle.manifest == manifest_of(root)
    assert bundle.prompt_template == "{{ code }} →"
    assert bundle.catalogue == load_catalogue()
    assert bundle.export_folder("onnx") == root / "onnx"
    assert bundle.tokenizer_file == root / TOKENIZER_FILE
    assert len(bundle.manifest.revision) == 12


def test_the_manifest_lists_every_file_but_itself(root: Path) -> None:
    assert set(open_bundle(root).manifest.files) == {
        "onnx/model.onnx",
        TOKENIZER_FILE,
        PROMPT_FILE,
        RULES_FILE,
        SCHEMA_FILE,
    }


def test_weights_have_another_name_when_a_byte_of_them_changed_and_only_then(root: Path) -> None:
    before = weights_sha256(describe_files(root), "onnx")
    (root / PROMPT_FILE).write_text("{{ code }}")
    assert weights_sha256(describe_files(root), "onnx") == before
    (root / "onnx" / "model.onnx").write_bytes(b"Weights")
    assert weights_sha256(describe_files(root), "onnx") != before


@pytest.mark.parametrize("name", ["onnx/model.onnx", TOKENIZER_FILE, PROMPT_FILE, RULES_FILE, SCHEMA_FILE])
def test_a_changed_byte_is_refused_and_its_file_named(root: Path, name: str) -> None:
    content = bytearray((root / name).read_bytes())
    content[-1] ^= 1
    (root / name).write_bytes(content)
    with pytest.raises(BundleError, match="sha256 differs") as refused:
        open_bundle(root)
    assert str(root / name) in str(refused.value)


def test_a_file_that_grew_is_refused(root: Path) -> None:
    with (root / PROMPT_FILE).open("a") as file:
        file.write(" ")
    with pytest.raises(BundleError, match=rf"{PROMPT_FILE} is not the file"):
        open_bundle(root)


@pytest.mark.parametrize("name", ["onnx/model.onnx", TOKENIZER_FILE])
def test_a_missing_file_is_refused_and_named(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing from the bundle; copy or build"):
        open_bundle(root)


@pytest.mark.parametrize("name", [TOKENIZER_FILE, PROMPT_FILE, RULES_FILE, SCHEMA_FILE])
def test_a_manifest_without_a_needed_file_is_refused(root: Path, name: str) -> None:
    (root / name).unlink()
    rewritten(root)
    with pytest.raises(BundleError, match=rf"does not list {name}"):
        open_bundle(root)


@pytest.mark.parametrize("name", ["../outside", "onnx/../../outside", "/etc/hostname"])
def test_a_file_outside_the_bundle_is_refused(root: Path, name: str) -> None:
    (root.parent / "outside").write_text("x")
    entry = FileEntry("2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", 1)
    rewritten(root, files={**describe_files(root), name: entry})
    with pytest.raises(BundleError, match="outside the bundle: refused") as refused:
        open_bundle(root)
    assert name in str(refused.value)


@pytest.mark.parametrize("path", ["../elsewhere", "/elsewhere", "onnx/../../elsewhere", "absent", ""])
def test_an_export_that_holds_no_verified_file_is_refused(root: Path, path: str) -> None:
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "model.onnx").write_bytes(b"other weights")
    rewritten(root, exports={"onnx": Export(path, "int4")})
    with pytest.raises(BundleError, match="lists no file of its 'onnx' export"):
        open_bundle(root)


def test_another_schema_version_is_refused_naming_both(root: Path) -> None:
    rewritten(root, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(BundleError, match=rf"schema version {SCHEMA_VERSION + 1}; this version reads {SCHEMA_VERSION}"):
        open_bundle(root)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"not json", b"[]", b'{"name":"\xff"}', b'{"name":' * 100_000, b'{"lineage":' + b"[" * 100_000],
    ids=["empty", "no fields", "text", "list", "not UTF-8", "deep unknown", "deep lineage"],
)
def test_what_is_no_manifest_is_refused_and_named(root: Path, content: bytes) -> None:
    (root / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{MANIFEST_FILE} is not a bundle manifest this version can read"):
        open_bundle(root)


def test_unknown_keys_of_a_manifest_are_refused(root: Path) -> None:
    raw = msgspec.json.decode((root / MANIFEST_FILE).read_bytes())
    (root / MANIFEST_FILE).write_bytes(msgspec.json.encode({**raw, "remote_code": "x"}))
    with pytest.raises(BundleError, match="remote_code"):
        open_bundle(root)


@pytest.mark.parametrize("name", [".", "absent", PROMPT_FILE])
def test_a_folder_without_a_manifest_says_who_writes_one(root: Path, name: str) -> None:
    (root / MANIFEST_FILE).unlink()
    with pytest.raises(BundleError, match=rf"is not a bundle: it has no {MANIFEST_FILE}; deepcode-compress writes one"):
        open_bundle(root / name)


def test_an_absent_export_says_what_there_is_and_what_to_do(root: Path) -> None:
    with pytest.raises(BundleError, match=r"no 'nf4' export \(it has: onnx\); add 'nf4' to `export` in the recipe"):
        open_bundle(root).export_folder("nf4")


def test_a_manifest_is_replaced_whole(root: Path) -> None:
    rewritten(root, name="other")
    assert open_bundle(root).manifest.name == "other"
    assert [file.name for file in root.glob("*.tmp")] == []


def test_a_manifest_may_lack_a_calibration(root: Path) -> None:
    raw = msgspec.json.decode((root / MANIFEST_FILE).read_bytes())
    del raw["calibration"]
    (root / MANIFEST_FILE).write_bytes(msgspec.json.encode(raw))
    assert open_bundle(root).manifest.calibration == {}


def test_a_calibration_is_read_back(root: Path) -> None:
    rewritten(root, calibration={"off-by-one": ((0.0, 0.0), (0.5, 0.25), (1.0, 1.0))})
    assert open_bundle(root).manifest.calibration == {"off-by-one": ((0.0, 0.0), (0.5, 0.25), (1.0, 1.0))}


def test_a_calibration_that_does_not_rise_is_refused(root: Path) -> None:
    rewritten(root, calibration={"off-by-one": ((0.0, 0.5), (1.0, 0.25))})
    with pytest.raises(
        BundleError, match=r"manifest\.json: off-by-one: the calibration does not rise .*build the bundle again"
    ):
        open_bundle(root)
