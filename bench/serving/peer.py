"""One server that is measured: how it is installed, made ready, started and asked."""

import http.client
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import aiohttp
import msgspec
import psutil

from bench.serving.models import Model
from bench.serving.workload import Question

START_SECONDS = 300.0
STOP_SECONDS = 20.0
SAMPLE_SECONDS = 0.25


class PeerFailed(Exception):
    """A peer could not be made ready or did not start; the message ends with what it said."""


class Peer(ABC):
    """A server of OpenAI's completions. Subclasses say what differs."""

    name: str
    """What `--peers` calls it."""
    title: str
    """What the table calls it, with how its weights are stored."""
    environment: str
    """The name of its environment in `--env` and in scripts/bench_peers.sh."""
    needs: str = "python"
    """The program in the environment's bin/ without which the peer counts as absent."""
    install: str = ""
    """The command that installs it."""
    health: str = "/health"
    path: str = "/v1/completions"
    keeps_connections: bool = True
    """A connection can be used for another request after an answer."""

    @abstractmethod
    def prepare(self, model: Model, python: Path) -> Path:
        """The model in the form it loads, made once. `python` is that of the peer's environment.

        Raises:
            PeerFailed: the conversion failed.
        """

    @abstractmethod
    def command(self, model: Model, weights: Path, python: Path, port: int) -> list[str]:
        """How it is started."""

    def variables(self) -> dict[str, str]:
        """What is set in its process's environment."""
        return {}

    def body(self, model: Model, question: Question) -> dict[str, Any]:
        """One request, greedy and streamed. Tokens rather than text where the peer takes them."""
        return {
            "model": "bench",
            "prompt": question.prompt_ids,
            "max_tokens": model.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


class Running:
    """A peer's processes: the address they answer at, and the memory they take."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], started: float) -> None:
        self.url, self._process, self._started = url, process, started
        self.start_seconds = 0.0
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def answered(self) -> None:
        """The first answer came: it has started, and its memory is watched from now on."""
        self.start_seconds = time.perf_counter() - self._started
        self._sampler.start()

    def stop(self) -> None:
        """End it, with every process it started."""
        self._ended.set()
        family = _family(self._process.pid)
        for process in family:
            process.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for process in alive:
            process.kill()
        self._process.wait()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, resident_bytes(self._process.pid))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all below it; pages that they share count for each."""
    total = 0
    for process in _family(pid):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def running(peer: Peer, model: Model, weights: Path, python: Path) -> Iterator[Running]:
    """Start a peer and wait until it is healthy; it is stopped at the end.

    Raises:
        PeerFailed: it ended, was not healthy within five minutes, or broke an answer off that somebody waited for.
    """
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            peer.command(model, weights, python, port),
            env=os.environ | offline() | peer.variables(),
            stdout=log,
            stderr=log,
        )
        server = Running(f"http://127.0.0.1:{port}", process, started)
        try:
            while not _is_healthy(port, peer.health):
                if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                    raise PeerFailed(f"it did not start:\n{_end_of(log)}")
                time.sleep(0.02)
            yield server
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError, ExceptionGroup) as error:
            raise PeerFailed(f"it broke off: {error}\n{_end_of(log)}") from error
        finally:
            server.stop()


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-3000:]


def offline() -> dict[str, str]:
    """Nobody looks for a newer model, or tells anybody what runs here."""
    return {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "ORT_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1"}


def convert(command: list[str], out: Path) -> Path:
    """Run a command that makes the file or folder `out`, once; its argument `OUT` becomes where it is to write.

    Raises:
        PeerFailed: the command failed.
    """
    if out.exists():
        return out
    staged = out.with_name(f"partial-{out.name}")
    shutil.rmtree(staged, ignore_errors=True)
    command = [str(staged) if argument == "OUT" else argument for argument in command]
    done = subprocess.run(command, env=os.environ | offline(), capture_output=True, text=True)
    if done.returncode != 0:
        raise PeerFailed(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-3000:]}")
    staged.rename(out)
    return out


def _is_healthy(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
