"""The whole way from code to a served bundle, and back on its feet after being killed anywhere in it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bundle.manifest import open_bundle
from compress.evaluate import gate_failures
from compress.recipe import Gate
from compress.stages import STAGES
from tests.support.server_process import COMMANDS, serving

# `publish` is for recipes without a student.
STUDENT_STAGES = [stage for stage in STAGES if stage != "publish"]
RECIPE = Path(__file__).parents[1] / "support" / "micro.yaml"


def compress(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [COMMANDS / "deepcode-compress", "run", RECIPE, "--out", out, *options]
    # One thread: sums are then made in one order, and two runs can be compared exactly.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nobody interrupted, and what it printed."""
    out = tmp_path_factory.mktemp("micro") / "run"
    process = compress(out)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return out, said


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
    assert (run / "bundle" / "report.html").read_text().count("<svg") == 1


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
    said, _ = compress(run).communicate(timeout=120)
    assert said.count("unchanged, skipped") == len(STUDENT_STAGES)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_killed_in_every_stage_it_resumes_to_the_same_scores(finished: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = finished
    run = tmp_path / "run"
    for stage in STUDENT_STAGES:
        process = compress(run)
        started, done = (run / "stages" / f"{stage}.{state}.json" for state in ("started", "done"))
        deadline = time.monotonic() + 120
        while not started.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        # Somewhere inside the stage, a little later in each.
        time.sleep(0.05 * STUDENT_STAGES.index(stage))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert started.exists(), f"the run never came to {stage}"
        assert stage in ("data", "student", "quantize", "onnx", "bundle") or not done.exists(), stage
    said, _ = (process := compress(run)).communicate(timeout=300)
    assert process.returncode == 0, said
    assert quality(run) == quality(whole)
    open_bundle(run / "bundle")


def test_a_run_below_its_gate_fails_and_writes_no_bundle(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", run, copy], check=True)
    subprocess.run(["rm", "-r", copy / "bundle", copy / "stages" / "bundle.done.json"], check=True)
    process = compress(copy, "--set", "evaluate.gate.answer_validity=1.1")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "answer validity is" in said and "below the gate's 1.100" in said
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
