"""What a bundle tells of its making."""

from pathlib import Path

from compress.lineage import as_told
from compress.recipe import Data, Recipe, Teacher


def test_paths_of_the_machine_stay_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = ["stdlib", str(tmp_path / "code" / "shop"), "/home/somebody/secret/project", "pypi:rich==15.0.0"]
    recipe = Recipe(name="x", data=Data(corpus=corpus), teacher=Teacher(model="Qwen/Qwen2.5-Coder-7B-Instruct"))
    told = as_told(recipe)
    assert told["data"]["corpus"] == ["stdlib", "code/shop", "project", "pypi:rich==15.0.0"]
    assert told["teacher"]["model"] == "Qwen/Qwen2.5-Coder-7B-Instruct"
    assert told["data"]["prompt"] == recipe.data.prompt
