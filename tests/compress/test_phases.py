"""Every phase a recipe may ask for, in one run: the teacher's answers to a bundle in the form vLLM loads."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bundle.manifest import open_bundle
from compress.stages import STAGES
from tests.compress.test_pipeline import RECIPE, quality
from tests.support.warm_compress import WarmRun

PHASES = {
    "distill.teacher_answers": {"agree": False, "max_units": 16, "max_answer_tokens": 16},
    "distill.fine_tune": {"max_steps": 2, "bf16": False},
    "distill.on_policy": {
        "train": {"max_steps": 2, "per_device_train_batch_size": 2, "bf16": False},
        "max_answer_tokens": 4,
    },
    "distill.baseline": False,
    "quantize.recover": {"train": {"max_steps": 2, "bf16": False}, "max_kl": 0.0},
    "export": {"onnx": None, "vllm": {"group_size": 32, "calibration_examples": 4}, "cuda": {}},
    "evaluate": {"natural_units": 2, "planted_units": 2, "max_answer_tokens": 8},
    "train.max_steps": 4,
    "teacher.train.max_steps": 4,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("phases") / "run"
    options = [part for key, value in PHASES.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    ended = WarmRun("run", RECIPE, "--out", out, *options).wait()
    assert ended.returncode == 0, ended.stderr
    return out, ended.stdout


def test_each_phase_starts_from_the_one_before_and_has_a_row(finished: tuple[Path, str]) -> None:
    run, said = finished
    assert [row["model"] for row in quality(run)] == [
        "teacher",
        "student, distilled",
        "student, fine-tuned",
        "student, on-policy",
        "student, NF4",
        "student, W4A16",
        "student, ONNX int4 for CUDA",
    ]
    distilled, tuned, on_policy = (
        load_file(run / stage / "model" / "model.safetensors") for stage in ("distill", "fine_tune", "on_policy")
    )
    assert any((distilled[name] != tuned[name]).any() for name in distilled)
    assert any((tuned[name] != on_policy[name]).any() for name in distilled)
    assert "teacher's answers: " in said and "4 bits: KL from the student" in said


def test_the_bundle_holds_the_recovered_student_and_those_for_vllm_and_cuda(finished: tuple[Path, str]) -> None:
    run, _ = finished
    bundle = open_bundle(run / "bundle")
    assert {kind: export.quantization for kind, export in bundle.manifest.exports.items()} == {
        "nf4": "nf4",
        "vllm": "w4a16",
        "cuda": "int4",
    }
    assert bundle.manifest.lineage["stages"].keys() == set(STAGES) - {"baseline", "onnx", "bundle", "publish"}
    shipped, kept = (load_file(folder / "nf4" / "model.safetensors") for folder in (run / "bundle", run / "recover"))
    assert shipped.keys() == kept.keys() and all((shipped[name] == kept[name]).all() for name in kept)


def test_what_comes_after_distilling_is_no_input_of_it(finished: tuple[Path, str]) -> None:
    run, _ = finished
    inputs = json.loads((run / "stages" / "distill.done.json").read_text())["inputs"]
    assert {inputs["distill"][name] for name in ("teacher_answers", "fine_tune", "on_policy")} == {None}
    assert set(inputs["after"]) == {"data", "answers", "teacher", "logits", "student"}
