"""deepcode-compress in processes of their own that start with torch and transformers already imported.

Importing them takes seconds. A fork server does it once; each run is a fork of it: with its own process id, streams,
folder and exit code, and as dead after a SIGKILL as any other.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import torch

from compress.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["compress.pipeline", "compress.code_search.pipeline"])


class Ended(NamedTuple):
    """What came of a command; `returncode` is negative for a signal."""

    returncode: int
    stdout: str
    stderr: str


class WarmRun:
    """A command that was started; what it prints goes into files until it ends."""

    def __init__(self, *arguments: object, folder: Path | None = None) -> None:
        """
        Args:
            folder: where it runs; None: here.
        """
        self._printed = Path(tempfile.mkdtemp(prefix="compress."))
        words = [str(argument) for argument in arguments]
        self._process: ForkServerProcess = _CONTEXT.Process(
            target=_command, args=(words, folder or Path.cwd(), self._printed)
        )
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.join()

    def wait(self, timeout: float = 300) -> Ended:
        """Wait for its end.

        Raises:
            TimeoutError: it is still running; it is killed.
        """
        self._process.join(timeout)
        late = self._process.exitcode is None
        if late:
            self.kill()
        code = self._process.exitcode
        assert code is not None
        stdout, stderr = ((self._printed / stream).read_text(encoding="utf-8") for stream in ("1", "2"))
        shutil.rmtree(self._printed)
        if late:
            raise TimeoutError(f"it still ran after {timeout:.0f} s, having said:\n{stdout}\n{stderr}")
        return Ended(code, stdout, stderr)


def kill_in_every_stage(stages: Sequence[str], run: Path, *arguments: object, later: float) -> Iterator[str]:
    """Start a run again and again, and kill it in one stage after the other. Yields each stage after its kill.

    Args:
        run: the folder of the run.
        arguments: of the command, which writes there.
        later: seconds by which each is killed later in its stage than the one before.
    """
    for place, stage in enumerate(stages):
        process = WarmRun(*arguments)
        started = run / "stages" / f"{stage}.started.json"
        deadline = time.monotonic() + 120
        while not started.exists() and process.running and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(later * place)
        process.kill()
        assert started.exists(), f"the run never came to {stage}"
        yield stage


def _command(arguments: list[str], folder: Path, printed: Path) -> None:
    for stream in (sys.stdout, sys.stderr):
        number = stream.fileno()
        os.dup2(os.open(printed / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    # One thread: sums are then made in one order, and two runs can be compared exactly.
    os.environ.update({"COLUMNS": "200", "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    sys.exit(main(arguments))
