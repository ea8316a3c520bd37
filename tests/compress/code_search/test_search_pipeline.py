"""The whole way from code to a search bundle, every stage once."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bundle.encoder import Encoder
from bundle.search import open_search_bundle
from compress.code_search.pipeline import SEARCH_STAGES, run_search_recipe
from compress.code_search.recipe import SearchRecipe
from compress.errors import GateError, RecipeError
from compress.recipe_file import load_any_recipe
from tests.support.tiny_encoder import make_tiny_encoder
from tests.support.warm_compress import WarmRun, kill_in_every_stage

MICRO = Path(__file__).parents[2] / "support" / "micro-search.yaml"
MODELS = ["teacher as it came", "teacher", "student, pairs only", "student, distilled", "student, int8"]
KEPT = {"student, int8": 96, "student, int8; int8 embeddings": 48, "student, int8; binary embeddings": 6}


def run(teacher: Path, out: Path, *overrides: str, rerun_from: str | None = None) -> str:
    """Run the recipe; what it printed, and after it the gate's complaint."""
    said = io.StringIO()
    recipe = load_any_recipe(MICRO, [f"teacher.model={teacher}", *overrides])
    assert isinstance(recipe, SearchRecipe)
    try:
        run_search_recipe(recipe, out, Console(file=said, width=200), rerun_from)
    except GateError as error:
        said.write(str(error))
    return said.getvalue()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro-teacher") / "encoder"
    make_tiny_encoder(folder, layers=2)
    return folder


@pytest.fixture(scope="module")
def finished(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("micro-search") / "run"
    return out, run(teacher, out)


def test_a_run_ends_with_a_checked_bundle_and_its_scores(finished: tuple[Path, str]) -> None:
    folder, said = finished
    bundle = open_search_bundle(folder / "bundle")
    assert bundle.manifest.dimensions == (48, 16)
    assert bundle.manifest.lineage["stages"].keys() == set(SEARCH_STAGES) - {"bundle"}
    assert set(bundle.manifest.scores["retention"]) >= {"mrr_retention", "encode_time", "bytes"}
    embeddings = Encoder(bundle, threads=1).encode(["How are headers parsed?", "def parse(): pass"])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)
    for column in ("MRR@10", "recall@1", "parameters", "bytes/unit", "texts/s", "encode time"):
        assert column in said


def test_every_way_to_search_has_its_row_and_what_costs_something_its_cost(finished: tuple[Path, str]) -> None:
    report = json.loads((finished[0] / "evaluate" / "report" / "report.json").read_text())
    rows = {row["model"]: row for row in report["rows"]}
    assert list(rows) == [*MODELS, *list(KEPT)[1:], "BM25", "hybrid: int8 and BM25"]
    assert {name: rows[name]["bytes_per_embedding"] for name in KEPT} == KEPT
    for name in MODELS:
        assert rows[name]["texts_per_second"] > 0
    assert rows["student, int8"]["bytes_on_disk"] < rows["student, distilled"]["bytes_on_disk"]
    assert rows["student, distilled"]["parameters"] < rows["teacher"]["parameters"]
    assert list(rows["student, int8"]["by_width"]) == ["16"]
    assert rows["BM25"]["texts_per_second"] is None
    assert rows["BM25"]["scores"]["recall_at_10"]["value"] > 0.5, "a docstring and its function share words"


def test_the_page_needs_no_network(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "bundle" / "report.html").read_text()
    assert "student, int8" in page and "hard_negatives" in page
    assert re.search(r'(src|href)="(?!#)|@import|url\((?!#)', page) is None


def test_what_did_not_change_is_skipped(finished: tuple[Path, str], teacher: Path) -> None:
    said = run(teacher, finished[0])
    assert said.count("unchanged, skipped") == len(SEARCH_STAGES)


def test_a_higher_gate_embeds_nothing_again_and_leaves_no_new_bundle(
    finished: tuple[Path, str], teacher: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished[0], tmp_path / "run"))
    before = (copy / "bundle" / "manifest.json").read_bytes()
    said = run(teacher, copy, "evaluate.gate.mrr_retention=99")
    assert "evaluate: unchanged, skipped" in said
    assert re.search(r"mrr retention is .* below the gate's 99\.000", said)
    assert "below the gate&#39;s 99.000" in (copy / "evaluate" / "report" / "report.html").read_text()
    assert (copy / "bundle" / "manifest.json").read_bytes() == before


def test_a_gate_that_is_passed_is_in_the_new_bundle_s_report(
    finished: tuple[Path, str], teacher: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished[0], tmp_path / "run"))
    said = run(teacher, copy, "evaluate.gate.mrr_retention=-1")
    assert said.count("unchanged, skipped") == len(SEARCH_STAGES) - 1, "all but the bundle"
    report = json.loads((open_search_bundle(copy / "bundle").root / "report.json").read_text())
    assert report["gate"]["mrr_retention"] == -1 and report["gate_passed"]


def test_embeddings_are_kept_as_the_recipe_says(finished: tuple[Path, str], teacher: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished[0], tmp_path / "run"))
    said = run(teacher, copy, "index.precision=int8")
    assert said.count("unchanged, skipped") == len(SEARCH_STAGES) - 2, "all but evaluate and bundle"
    embeddings = open_search_bundle(copy / "bundle").manifest.embeddings
    assert embeddings.precision == "int8" and 0 < embeddings.limit < 1
    report = json.loads((copy / "evaluate" / "report" / "report.json").read_text())
    rows = {row["model"]: row for row in report["rows"]}
    served = rows["student, int8; int8 embeddings"]
    of_teacher = rows["teacher"]["scores"]["mrr"]["value"]
    expected = served["scores"]["mrr"]["value"] / of_teacher if of_teacher else 0.0
    assert report["retention"]["mrr_retention"] == pytest.approx(expected)
    assert rows["hybrid: int8 and BM25"]["bytes_per_embedding"] == KEPT[served["model"]]


def quality(run: Path) -> list[dict]:
    """Every score of a run but those that depend on how fast the machine was."""
    rows = json.loads((run / "evaluate" / "report" / "report.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "texts_per_second"} for row in rows]


def test_killed_in_every_stage_it_resumes_to_the_same_weights_and_scores(
    finished: tuple[Path, str], teacher: Path, tmp_path: Path
) -> None:
    whole, run = finished[0], tmp_path / "run"
    command = ("run", MICRO, "--set", f"teacher.model={teacher}", "--out", run)
    for stage in kill_in_every_stage(SEARCH_STAGES, run, *command, later=0.02):
        done = (run / "stages" / f"{stage}.done.json").exists()
        assert stage not in ("teacher", "distill", "baseline", "onnx") or not done, stage
        if stage == "onnx":
            # Making a graph takes seconds: as if the kill had come while the last of the four was made.
            for name in ("teacher-as-it-came", "teacher", "student-pairs-only"):
                shutil.copytree(whole / "onnx" / name, run / "onnx" / name, dirs_exist_ok=True)
    ended = WarmRun(*command).wait()
    assert ended.returncode == 0, ended.stderr
    for trained in ("teacher", "baseline", "distill"):
        weights = Path(trained, "model", "model.safetensors")
        assert (run / weights).read_bytes() == (whole / weights).read_bytes(), trained
    assert quality(run) == quality(whole)
    open_search_bundle(run / "bundle")


def test_a_stage_of_the_other_task_is_no_stage_here(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"--from quantize: no such stage; the stages are {', '.join(SEARCH_STAGES)}"):
        run(teacher, tmp_path, rerun_from="quantize")
