"""A run's stages in order: skipped when nothing they depend on changed, resumed when they were cut off."""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from safetensors import SafetensorError

from compress import ranks
from compress.errors import RecipeError, StageError

# In the order in which a run goes through them; a recipe may leave some out.
STAGES = (
    "data",
    "teacher",
    "answers",
    "logits",
    "student",
    "distill",
    "fine_tune",
    "on_policy",
    "baseline",
    "quantize",
    "recover",
    "vllm",
    "cuda",
    "onnx",
    "evaluate",
    "bundle",
    "publish",
)

_NEARLY_FULL_BYTES = 64 << 20


class StageRecord(msgspec.Struct, frozen=True):
    """What is written when a stage starts, and again when it ends: the hash of all it depends on."""

    key: str
    inputs: dict[str, Any]
    seconds: float


class Run:
    """One run folder. Each stage has a folder of its own in it, named after the stage."""

    def __init__(
        self, folder: Path, console: Console, rerun_from: str | None = None, stages: Sequence[str] = STAGES
    ) -> None:
        if rerun_from is not None and rerun_from not in stages:
            raise RecipeError(f"--from {rerun_from}: no such stage; the stages are {', '.join(stages)}")
        self.folder, self.console = folder, console
        self.keys: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        # Forgotten at once, so that a rerun that is cut off leaves no later stage that still counts as done.
        for name in stages[stages.index(rerun_from) :] if rerun_from and ranks.number() == 0 else ():
            self._forget(name)

    def stage(
        self,
        name: str,
        after: list[str],
        inputs: dict[str, Any],
        action: Callable[[Path], object],
        together: bool = False,
    ) -> Path:
        """Do one stage, unless it was done with the same inputs.

        A stage that was cut off is given its folder back as it was left, so that it can go on from its own
        checkpoints. A stage whose inputs changed starts from an empty folder.

        Args:
            after: earlier stages whose output this one reads.
            inputs: everything else it depends on; must encode as JSON.
            action: does the work into the folder it is given.
            together: all processes of a run do the work; else the first does, and the others wait for it.

        Raises:
            StageError: a file could not be written or read, as on a full disk.
        """
        folder = self.folder / name
        depends = {**inputs, "after": {earlier: self.keys[earlier] for earlier in after}}
        key = hashlib.sha256(msgspec.json.encode(depends, order="deterministic")).hexdigest()
        self.keys[name] = key
        # Beside the stage's folder and not in it: what a stage makes may be a whole of its own, as a bundle is.
        done, _ = self._records(name)
        if ranks.as_first_says(_key_in(done) == key):
            self.console.print(f"[dim]{name}: unchanged, skipped[/dim]")
            return folder
        if ranks.number() == 0:
            self._open(name, StageRecord(key, depends, 0.0))
        ranks.meet()
        begun = time.monotonic()
        try:
            if together or ranks.number() == 0:
                action(folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of many meanings.
            if isinstance(error, RuntimeError) and shutil.disk_usage(folder).free > _NEARLY_FULL_BYTES:
                raise
            raise StageError(
                f"{name} stopped: {error}. What was done is kept: mend this and give the same command again."
            ) from error
        ranks.meet()
        seconds = time.monotonic() - begun
        if ranks.number() == 0:
            _write(done, StageRecord(key, depends, round(seconds, 1)))
        self.console.print(f"[dim]{name}: {seconds:.0f} s[/dim]")
        return folder

    def _open(self, name: str, record: StageRecord) -> None:
        """Make a stage's folder ready: as it was left if it was cut off with the same inputs, else empty."""
        folder = self.folder / name
        done, started = self._records(name)
        resuming = _key_in(started) == record.key
        if not resuming:
            self._forget(name)  # before its folder goes: half a folder must not pass for a stage's output
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        done.parent.mkdir(exist_ok=True)
        _write(started, record)
        self.console.print(f"[bold]{name}[/bold]{': resumed' if resuming else ''}")

    def _records(self, name: str) -> tuple[Path, Path]:
        records = self.folder / "stages"
        return records / f"{name}.done.json", records / f"{name}.started.json"

    def _forget(self, name: str) -> None:
        for record in self._records(name):
            record.unlink(missing_ok=True)


def _key_in(file: Path) -> str | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=StageRecord).key
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _write(file: Path, record: StageRecord) -> None:
    staged = file.with_suffix(".tmp")
    staged.write_bytes(msgspec.json.encode(record))
    staged.replace(file)
