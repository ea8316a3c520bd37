"""What a run leaves for whoever serves it."""

import shutil
from pathlib import Path

from bundle.rules import load_catalogue
from compress.assemble import write_bundle
from compress.evaluate import unmeasured
from compress.recipe import Data, Recipe, Teacher


def test_a_bundle_can_be_read_by_everybody(tiny_checkpoint: Path, tmp_path: Path) -> None:
    private = Path(shutil.copytree(tiny_checkpoint, tmp_path / "nf4"))
    (private / "model.safetensors").chmod(0o600)  # as safetensors writes it
    report = tmp_path / "report"
    report.mkdir()
    recipe = Recipe(name="tiny", data=Data(corpus=["stdlib"]), teacher=Teacher(model="teacher"))
    exports = {"nf4": (private, "nf4")}
    write_bundle(
        recipe, load_catalogue(), tiny_checkpoint, exports, unmeasured("tiny"), report, {}, tmp_path / "bundle"
    )
    files = [file for file in (tmp_path / "bundle").rglob("*") if file.is_file()]
    assert any(file.name == "model.safetensors" for file in files)
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)
