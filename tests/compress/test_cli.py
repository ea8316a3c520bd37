"""deepcode-compress as its users meet it: a real process, its exit code, and what it says on stderr."""

import shutil
from pathlib import Path

import msgspec
import pytest
import yaml

from bundle.manifest import open_bundle
from compress.data.corpus import split_of
from compress.evaluate import Evaluation
from tests.compress.test_examples import make_projects
from tests.support.warm_compress import Ended, WarmRun


def compress(folder: Path, *arguments: str) -> Ended:
    """Run the command in `folder`; nothing is fetched from a hub."""
    return WarmRun(*arguments, folder=folder).wait()


def write_recipe(folder: Path, **sections: object) -> None:
    recipe = {
        "name": "small",
        "data": {"corpus": ["code"]},
        "teacher": {"model": "teacher"},
        "student": {"model": "teacher"},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe | sections))


def refused(result: Ended) -> str:
    """What a refusal says: exit code 2, one message, no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    return result.stderr


def test_a_missing_recipe(tmp_path: Path) -> None:
    assert refused(compress(tmp_path, "run", "small.yaml")) == "error: no recipe at small.yaml\n"


def test_a_folder_instead_of_a_recipe(tmp_path: Path) -> None:
    assert "cannot read the recipe .: Is a directory" in refused(compress(tmp_path, "run", "."))


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    write_recipe(tmp_path, distil={"alpha": 0.5})
    assert "unknown key `distil`; did you mean `distill`?" in refused(compress(tmp_path, "run", "small.yaml"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.learning_rte=1", "did you mean `learning_rate`?"),
        ("train.learning_rate=[", "'[' is not YAML"),
        ("train", "write it as key.sub=value"),
        ("train.learning_rate=fast", "Expected `float`, got `str`"),
    ],
)
def test_a_wrong_override(tmp_path: Path, override: str, said: str) -> None:
    write_recipe(tmp_path)
    assert said in refused(compress(tmp_path, "run", "small.yaml", "--set", override))


def test_a_recipe_whose_bundle_would_hold_nothing_to_serve(tmp_path: Path) -> None:
    write_recipe(tmp_path, quantize=None, export={"onnx": None})
    said = refused(compress(tmp_path, "run", "small.yaml"))
    assert "set `export.onnx`, `export.cuda`, `export.vllm` or `quantize`" in said


@pytest.mark.parametrize("arguments", [[], ["run"], ["walk"], ["run", "a.yaml", "--fast"]])
def test_a_wrong_command_line_shows_the_usage(tmp_path: Path, arguments: list[str]) -> None:
    assert "usage: deepcode-compress" in refused(compress(tmp_path, *arguments))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A recipe of seconds: small projects, a tiny random teacher, a student that takes two steps."""
    folder = tmp_path_factory.mktemp("workplace")
    corpus = make_projects(folder / "code", count=12, functions=2)
    shutil.copytree(tiny_checkpoint, folder / "teacher")
    write_recipe(
        folder,
        data={"corpus": corpus, "test_fraction": 0.3, "validation_fraction": 0.2},
        distill={"baseline": False},
        train={"max_steps": 2, "per_device_train_batch_size": 2},
        export={"onnx": None},
        evaluate={
            "natural_units": 3,
            "planted_units": 3,
            "max_answer_tokens": 8,
            "gate": {"answer_validity": 1.0},
        },
    )
    return folder


def test_a_student_below_the_gate_ends_with_1_and_no_bundle(workplace: Path) -> None:
    result = compress(workplace, "run", "small.yaml")

    assert result.returncode == 1, result.stderr
    assert "error: small is below its gate" in result.stderr and "Traceback" not in result.stderr
    assert "answer validity is 0.000, below the gate's 1.000" in result.stderr
    assert "lower evaluate.gate" in result.stderr
    assert not (workplace / "runs" / "small" / "bundle").exists()


def test_a_student_that_passes_ends_with_0_and_a_bundle(workplace: Path) -> None:
    arguments = ["run", "small.yaml", "--set", "evaluate.gate.answer_validity=0"]
    result = compress(workplace, *arguments)

    assert result.returncode == 0, result.stderr
    bundle = open_bundle(workplace / "runs" / "small" / "bundle")
    assert list(bundle.manifest.exports) == ["nf4"]

    again = compress(workplace, *arguments)
    assert again.returncode == 0, again.stderr
    for stage in ("data", "teacher", "logits", "student", "distill", "quantize", "evaluate", "bundle"):
        assert f"{stage}: unchanged, skipped" in again.stdout


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.corpus=[no_such_package]", "'no_such_package' is neither a folder nor an installed package"),
        ("data.corpus=[]", "data.corpus leaves the train split empty"),
        ("teacher.model=no/such-model", "cannot load the tokenizer of 'no/such-model'"),
        ("student.model=no/such-model", "cannot load the tokenizer of 'no/such-model'"),
        ("data.prompt=chatty", "no template 'chatty'; name one of chat, compact"),
    ],
)
def test_what_a_recipe_points_at_is_missing(workplace: Path, override: str, said: str) -> None:
    arguments = ["run", "small.yaml", "--out", "runs/refused", "--set", override]
    result = compress(workplace, *arguments)
    assert result.returncode == 2, result.stderr
    assert said in " ".join(result.stderr.split()) and "Traceback" not in result.stderr


def test_an_unknown_stage_names_those_there_are(workplace: Path) -> None:
    said = refused(compress(workplace, "run", "small.yaml", "--from", "training"))
    assert "--from training: no such stage; the stages are data, teacher" in said


def test_evaluate_scores_a_checkpoint_on_held_out_projects_alone(workplace: Path) -> None:
    # A package that is nowhere to be had: it is a training project, so nobody asks for it.
    corpus = yaml.safe_load((workplace / "small.yaml").read_text())["data"]["corpus"]
    overrides = ["--set", f"data.corpus={[*corpus, 'pypi:no-such-package-18==1.0']}"]
    assert split_of("no-such-package-18", 11, [], 0.3, 0.2) == "train"
    arguments = ["evaluate", "teacher", "--recipe", "small.yaml", *overrides]
    result = compress(workplace, *arguments)

    assert result.returncode == 0, result.stderr
    out = workplace / "runs" / "small" / "evaluate-teacher"
    for title in (
        "by rule",
        "overall, with 95% intervals",
        "synthetic beside natural",
        "confidence",
        "no model at all",
    ):
        assert title in result.stdout
    for line in ("off-by-one", "1 defect in 100 units: precision", "always clean", "ruff alone"):
        assert line in result.stdout
    assert not (out / "data" / "train.jsonl").exists()
    evaluation = msgspec.json.decode((out / "report.json").read_bytes(), type=Evaluation)
    assert [row.model for row in evaluation.rows] == ["teacher"]
    assert evaluation.rows[0].shown is not None
    page = (out / "report.html").read_text()
    assert "ruff alone" in page and "Gate" not in page

    again = compress(workplace, *arguments)
    assert again.stdout.count("unchanged, skipped") == 2
    assert again.stdout.split("quality on")[1] == result.stdout.split("quality on")[1]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("no/such-model", "cannot load 'no/such-model': neither a folder nor a model of the hub"),
        ("code", "code is not a checkpoint: it has no config.json"),
    ],
)
def test_evaluate_of_what_is_no_checkpoint(workplace: Path, model: str, said: str) -> None:
    result = compress(workplace, "evaluate", model, "--recipe", "small.yaml")
    assert said in " ".join(refused(result).split())


def test_evaluate_needs_a_recipe(tmp_path: Path) -> None:
    assert "the following arguments are required: --recipe" in refused(compress(tmp_path, "evaluate", "teacher"))
