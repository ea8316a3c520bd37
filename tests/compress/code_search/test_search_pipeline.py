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
from compress.errors import GateError, RecipeError
from compress.recipe_file import load_any_recipe
from tests.support.tiny_encoder import make_tiny_encoder

MICRO = Path(__file__).parents[2] / "support" / "micro-search.yaml"
MODELS = ["teacher as it came", "teacher", "student, pairs only", "student, distilled", "student, int8"]


def run(teacher: Path, out: Path, *overrides: str, rerun_from: str | None = None) -> str:
    """Run the recipe; what it printed."""
    said = io.StringIO()
    recipe = load_any_recipe(MICRO, [f"teacher.model={teacher}", *overrides])
    run_search_recipe(recipe, out, Console(file=said, width=200), rerun_from)
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
    for column in ("MRR@10", "recall@1", "parameters", "texts/s", "encode time"):
        assert column in said


def test_every_way_to_search_has_its_row_and_what_costs_something_its_cost(finished: tuple[Path, str]) -> None:
    report = json.loads((finished[0] / "evaluate" / "report" / "report.json").read_text())
    rows = {row["model"]: row for row in report["rows"]}
    assert list(rows) == [*MODELS, "BM25", "hybrid: int8 and BM25"]
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


def test_below_the_gate_there_is_no_new_bundle_and_nothing_is_trained_again(
    finished: tuple[Path, str], teacher: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished[0], tmp_path / "run"))
    before = (copy / "bundle" / "manifest.json").read_bytes()
    with pytest.raises(GateError, match=r"mrr retention is .* below the gate's 99\.000"):
        run(teacher, copy, "evaluate.gate={mrr_retention: 99}")
    assert (copy / "bundle" / "manifest.json").read_bytes() == before
    assert (copy / "distill" / "model").stat().st_mtime_ns == (finished[0] / "distill" / "model").stat().st_mtime_ns


def test_a_stage_of_the_other_task_is_no_stage_here(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"--from quantize: no such stage; the stages are {', '.join(SEARCH_STAGES)}"):
        run(teacher, tmp_path, rerun_from="quantize")
