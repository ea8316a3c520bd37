"""A run's stages: skipped when unchanged, redone when anything they depend on changed, resumed when cut off."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from compress.errors import RecipeError, StageError
from compress.stages import STAGES, Run


class Chain:
    """Three stages in a row; each adds a line to a file of its own, and remembers that it was done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, rerun_from: str | None = None, fail_in: str | None = None, **inputs: int) -> list[str]:
        """Go through data, teacher and logits; returns the stages that were done rather than skipped."""
        done: list[str] = []
        run = Run(self.folder, Console(quiet=True), rerun_from)
        for name, after in (("data", []), ("teacher", ["data"]), ("logits", ["data", "teacher"])):

            def action(out: Path, name: str = name) -> None:
                done.append(name)
                with (out / "steps").open("a") as file:
                    file.write("step\n")
                if name == fail_in:
                    raise OSError("disk full")

            run.stage(name, after, {"input": inputs.get(name, 0)}, action)
        return done

    def cut_off_in(self, name: str, **inputs: int) -> None:
        with pytest.raises(StageError, match=f"{name} stopped: disk full"):
            self.run(fail_in=name, **inputs)

    def steps(self, name: str) -> int:
        """How many actions have written into the stage's folder since it was last emptied."""
        return (self.folder / name / "steps").read_text().count("step")


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path / "run")


def test_every_stage_is_done_once_and_then_skipped(chain: Chain) -> None:
    assert chain.run() == ["data", "teacher", "logits"]
    assert chain.run() == []


@pytest.mark.parametrize(
    ("changed", "redone"),
    [("data", ["data", "teacher", "logits"]), ("teacher", ["teacher", "logits"]), ("logits", ["logits"])],
)
def test_a_changed_input_redoes_its_stage_and_all_that_read_it(chain: Chain, changed: str, redone: list[str]) -> None:
    chain.run()
    assert chain.run(**{changed: 1}) == redone
    assert [chain.steps(name) for name in redone] == [1] * len(redone), "they start from empty folders"
    assert chain.run(**{changed: 1}) == []


def test_a_stage_is_only_redone_by_what_it_reads(tmp_path: Path) -> None:
    done: list[str] = []
    for value in (0, 1):
        run = Run(tmp_path, Console(quiet=True))
        run.stage("data", [], {}, lambda out: done.append("data"))
        run.stage("distill", ["data"], {"input": value}, lambda out: done.append("distill"))
        run.stage("baseline", ["data"], {}, lambda out: done.append("baseline"))
    assert done == ["data", "distill", "baseline", "distill"]


def test_the_order_in_which_inputs_are_named_does_not_matter(tmp_path: Path) -> None:
    done: list[int] = []
    Run(tmp_path, Console(quiet=True)).stage("data", [], {"a": 1, "b": 2}, lambda out: done.append(1))
    Run(tmp_path, Console(quiet=True)).stage("data", [], {"b": 2, "a": 1}, lambda out: done.append(2))
    assert done == [1]


@pytest.mark.parametrize(
    ("stage", "redone"), [("data", ["data", "teacher", "logits"]), ("teacher", ["teacher", "logits"]), ("bundle", [])]
)
def test_from_redoes_a_stage_and_all_after_it_from_empty_folders(chain: Chain, stage: str, redone: list[str]) -> None:
    chain.run()
    assert chain.run(rerun_from=stage) == redone
    assert [chain.steps(name) for name in ("data", "teacher", "logits")] == [1, 1, 1]
    assert chain.run() == []


def test_from_an_unknown_stage_names_those_there_are(chain: Chain) -> None:
    with pytest.raises(RecipeError, match=f"--from training: no such stage; the stages are {', '.join(STAGES)}"):
        chain.run(rerun_from="training")
    assert not chain.folder.exists()


def test_a_rerun_that_is_cut_off_leaves_no_later_stage_done(chain: Chain) -> None:
    chain.run()
    with pytest.raises(StageError):
        chain.run(rerun_from="teacher", fail_in="teacher")
    assert chain.run() == ["teacher", "logits"]
    assert chain.steps("logits") == 1


def test_a_cut_off_stage_is_given_its_folder_back_and_earlier_ones_are_skipped(chain: Chain) -> None:
    chain.cut_off_in("teacher")
    assert chain.run() == ["teacher", "logits"]
    assert (chain.steps("teacher"), chain.steps("logits")) == (2, 1)


def test_a_cut_off_stage_whose_inputs_changed_starts_from_an_empty_folder(chain: Chain) -> None:
    chain.cut_off_in("teacher")
    assert chain.run(teacher=1) == ["teacher", "logits"]
    assert chain.steps("teacher") == 1


def test_going_back_to_the_inputs_before_a_cut_off_stage_does_not_trust_its_folder(chain: Chain) -> None:
    chain.run()
    chain.cut_off_in("teacher", teacher=1)
    assert chain.run() == ["teacher"], "what was made of the same teacher before still holds"
    assert chain.steps("teacher") == 1


def test_a_crash_leaves_no_record_of_being_done(chain: Chain) -> None:
    chain.cut_off_in("teacher")
    records = {file.name for file in (chain.folder / "stages").iterdir()}
    assert records == {"data.started.json", "data.done.json", "teacher.started.json"}


KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from compress.stages import Run

def action(out):
    (out / "checkpoint").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

Run(Path(sys.argv[1]), Console(quiet=True)).stage("data", [], {}, action)
"""


def test_kill_9_in_a_stage_is_resumed_with_what_it_had_written(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    found: list[str] = []
    for _ in range(2):
        run = Run(tmp_path, Console(quiet=True))
        run.stage("data", [], {}, lambda out: found.append((out / "checkpoint").read_text()))
    assert found == ["half"]


@pytest.mark.parametrize("content", ["", "{", '{"key": 3}', "[]"])
def test_a_damaged_record_counts_as_not_done(chain: Chain, content: str) -> None:
    chain.run()
    (chain.folder / "stages" / "teacher.done.json").write_text(content)
    assert chain.run() == ["teacher"]


def test_a_record_says_what_the_stage_depended_on(chain: Chain) -> None:
    chain.run(logits=5)
    records = chain.folder / "stages"
    data, logits = (json.loads((records / f"{name}.done.json").read_text()) for name in ("data", "logits"))
    assert logits["inputs"]["input"] == 5
    assert logits["inputs"]["after"]["data"] == data["key"]
    assert logits["seconds"] >= 0


def test_the_reader_is_told_what_was_skipped_and_what_was_resumed(chain: Chain, tmp_path: Path) -> None:
    chain.cut_off_in("teacher")
    with (tmp_path / "log").open("w") as log:
        run = Run(chain.folder, Console(file=log))
        run.stage("data", [], {"input": 0}, lambda out: None)
        run.stage("teacher", ["data"], {"input": 0}, lambda out: None)
    text = (tmp_path / "log").read_text()
    assert "data: unchanged, skipped" in text and "teacher: resumed" in text


def test_a_file_that_cannot_be_written_ends_the_stage_with_advice_and_it_resumes(tmp_path: Path) -> None:
    """A real limit on file size stands for a full disk."""
    room = [True]

    def action(out: Path) -> None:
        (out / "small").write_bytes(b"kept")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if not room[0]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            (out / "large").write_bytes(b"x" * 5000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def run() -> Path:
        return Run(tmp_path, Console(quiet=True)).stage("data", [], {}, action)

    room[0] = False
    with pytest.raises(StageError, match=r"data stopped: .*File too large.*give the same command again"):
        run()
    assert (tmp_path / "data" / "small").read_bytes() == b"kept"
    room[0] = True
    assert (run() / "large").stat().st_size == 5000
