"""The whole way from code to a served bundle, and back on its feet after being killed anywhere in it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bundle.manifest import open_bundle
from compress.gate import gate_failures
from compress.recipe import Gate
from compress.samples import SAMPLES_FILE, read_samples
from compress.stages import STAGES
from tests.support.server_process import COMMANDS, serving
from tests.support.warm_compress import WarmRun, kill_in_every_stage

# `publish` is for recipes without a student, the others for those that ask for them.
OPTIONAL = {"answers", "fine_tune", "on_policy", "recover", "vllm", "cuda", "publish"}
STUDENT_STAGES = [stage for stage in STAGES if stage not in OPTIONAL]
RECIPE = Path(__file__).parents[1] / "support" / "micro.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nobody interrupted, by the installed command, and what it printed."""
    out = tmp_path_factory.mktemp("micro") / "run"
    return out, printed(COMMANDS / "deepcode-compress", "run", RECIPE, "--out", out)


def printed(*command: object) -> str:
    """What a command says that ends with 0."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    result = subprocess.run(
        list(map(str, command)),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def quality(run: Path) -> list[dict]:
    """Every score of a run but those that depend on how fast the machine was."""
    rows = json.loads((run / "evaluate" / "report" / "report.json").read_text())["rows"]
    measured = ("peak_memory_bytes", "tokens_per_second", "units_per_second")
    return [{key: value for key, value in row.items() if key not in measured} for row in rows]


def test_a_run_ends_with_a_checked_bundle_and_its_scores(finished: tuple[Path, str]) -> None:
    run, said = finished
    bundle = open_bundle(run / "bundle")
    assert sorted(bundle.manifest.exports) == ["nf4", "onnx"]
    assert [row["model"] for row in quality(run)] == [
        "teacher",
        "student, labels only",
        "student, distilled",
        "student, NF4",
        "student, ONNX int4",
    ]
    for column in ("defects P", "hygiene P", "clean", "valid", "length", "terms", "peak MB", "tokens/s"):
        assert column in said
    assert bundle.manifest.lineage["stages"].keys() == set(STUDENT_STAGES) - {"bundle"}
    page = (run / "bundle" / "report.html").read_text()
    assert page.count("<svg") > 6, "a curve for everything that is logged and changes"
    for part in ("Scores with 95% intervals", "tokens a second", "Rule by rule", "Answers side by side", "draws: 1"):
        assert part in page
    assert re.search(r'(src|href)="(?!#)|@import|url\((?!#)', page) is None, "it needs no network"


def test_the_answers_on_the_page_are_those_that_were_scored(finished: tuple[Path, str]) -> None:
    run, _ = finished
    samples = read_samples(run / "evaluate" / SAMPLES_FILE)
    assert samples and len({sample.kind for sample in samples}) == len(samples)
    for sample in samples:
        assert [name for name, _ in sample.answers] == ["teacher", "student, distilled", "student, ONNX int4"]
        assert sample.code.startswith("1")


# What is cheap to skip of a run whose training is looked at.
SHORT = ("distill.baseline=false", "quantize=null", "evaluate.natural_units=2", "evaluate.planted_units=2")


def changed(
    finished: tuple[Path, str], folder: Path, *overrides: str, launcher: Sequence[object] = ()
) -> tuple[Path, str]:
    """A copy of the finished run, gone through again with other keys: its data and teacher are as they were."""
    copy = folder / "run"
    subprocess.run(["cp", "-r", finished[0], copy], check=True)
    options = [part for override in (*SHORT, *overrides) for part in ("--set", override)]
    arguments = ["run", RECIPE, "--out", copy, *options]
    if launcher:
        said = printed(*launcher, "-m", "compress.cli", *arguments)
    else:
        ended = WarmRun(*arguments).wait()
        assert ended.returncode == 0, ended.stderr
        said = ended.stdout
    assert "data: unchanged, skipped" in said and "teacher: unchanged, skipped" in said
    return copy, said


def logged(run: Path) -> dict:
    """What distilling logged last."""
    history = json.loads((run / "distill" / "model" / "training.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry][-1]


def test_an_online_teacher_with_layer_losses_goes_the_whole_way(finished: tuple[Path, str], tmp_path: Path) -> None:
    layers = ("distill.hidden={weight: 0.5, kind: cosine}", "distill.attention={weight: 0.1}")
    run, _ = changed(finished, tmp_path, "distill.teacher=online", *layers)
    stages = open_bundle(run / "bundle").manifest.lineage["stages"]
    assert "logits" not in stages and "distill" in stages
    assert {"hidden", "attention", "teacher_entropy"} <= logged(run).keys()


def test_sampled_labels_go_the_whole_way_in_two_processes(finished: tuple[Path, str], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    run, said = changed(finished, tmp_path, "distill.labels=sampled", "distill.samples=16", launcher=torchrun)
    assert json.loads((run / "logits" / "labels" / "key.json").read_text())["labels"] == "sampled"
    assert "top_k_mass" not in logged(run)
    assert said.count("data: unchanged, skipped") == 1, "one process speaks"
    open_bundle(run / "bundle")


def test_the_bundle_answers_requests(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    code = tmp_path / "code.py"
    code.write_text("def f(a, b=[]):\n    if a == None:\n        return b\n    return a\n")
    with serving(run / "bundle") as url:
        command = [COMMANDS / "deepcode-check", code, "--url", url, "--format", "json", "--fail-on", "never"]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["schema_version"] == 1


def test_a_second_run_does_nothing_and_says_so(finished: tuple[Path, str]) -> None:
    run, _ = finished
    before = {file: file.stat().st_mtime_ns for file in (run / "bundle").rglob("*") if file.is_file()}
    ended = WarmRun("run", RECIPE, "--out", run).wait()
    assert ended.stdout.count("unchanged, skipped") == len(STUDENT_STAGES)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_killed_in_every_stage_it_resumes_to_the_same_scores(finished: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = finished
    run = tmp_path / "run"
    for stage in kill_in_every_stage(STUDENT_STAGES, run, "run", RECIPE, "--out", run, later=0.05):
        done = (run / "stages" / f"{stage}.done.json").exists()
        assert stage in ("data", "student", "quantize", "onnx", "bundle") or not done, stage
    ended = WarmRun("run", RECIPE, "--out", run).wait()
    assert ended.returncode == 0, ended.stderr
    assert quality(run) == quality(whole)
    open_bundle(run / "bundle")


def test_a_higher_gate_asks_nobody_again_and_leaves_no_bundle(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", run, copy], check=True)
    subprocess.run(["rm", "-r", copy / "bundle", copy / "stages" / "bundle.done.json"], check=True)
    ended = WarmRun("run", RECIPE, "--out", copy, "--set", "evaluate.gate.answer_validity=1.1").wait()
    assert ended.returncode == 1
    assert "evaluate: unchanged, skipped" in ended.stdout
    assert "below the gate&#39;s 1.100" in (copy / "evaluate" / "report" / "report.html").read_text()
    assert "answer validity is" in ended.stderr and "below the gate's 1.100" in ended.stderr
    assert not (copy / "bundle" / "manifest.json").exists()


def test_the_gate_names_every_measure_that_is_below_it() -> None:
    retention = {
        "f1_retention": 0.9,
        "hygiene_f1_retention": 0.7,
        "answer_validity": 0.99,
        "length_retention": 0.8,
        "term_retention": 0.5,
    }
    gate = Gate(f1_retention=0.85, hygiene_f1_retention=0.8, term_retention=0.85)
    assert [failure.split(" is ")[0] for failure in gate_failures(gate, retention)] == [
        "hygiene f1 retention",
        "term retention",
    ]
