"""An engine over the tiny bundle, and a server process started the way a user starts it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx
import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer

from bundle.manifest import Bundle, open_bundle
from bundle.prompt import Prompt
from bundle.search import SearchManifest, open_search_bundle
from bundle.units import cut_units
from serve.analysis import syntax
from serve.engine.base import GenerationRequest, Token
from serve.engine.batching import BatchingEngine

if TYPE_CHECKING:
    from tests.support.postgres import Database

PATIENCE_SECONDS = 120.0
SOURCE = Path(__file__).parents[2] / "bundle" / "units.py"


def open_prompt(bundle: Bundle) -> Prompt:
    return Prompt(bundle.prompt_template, bundle.catalogue, Tokenizer.from_file(str(bundle.tokenizer_file)))


def unit_requests(bundle: Bundle, count: int) -> list[GenerationRequest]:
    """Requests about real functions, shortest first: lengths differ, so that rows finish at different times."""
    prompt = open_prompt(bundle)
    units = sorted(cut_units(SOURCE.read_text()), key=lambda unit: len(unit.code))
    return [GenerationRequest(tuple(prompt.encode(unit)), bundle.catalogue.ids, unit.texts) for unit in units[:count]]


def random_ids(seed: int, count: int) -> tuple[int, ...]:
    """A prompt of so many tokens that means nothing, always the same for a seed."""
    return tuple(np.random.default_rng(seed).integers(3, 500, count).tolist())


async def complete(engine: BatchingEngine, request: GenerationRequest) -> list[Token]:
    """The whole answer."""
    async with engine.submit(request) as stream:
        return [token async for token in stream]


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="session")
def search_manifest(tiny_search_bundle: Path) -> SearchManifest:
    return open_search_bundle(tiny_search_bundle).manifest


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Database]":
    from tests.support.postgres import running_postgres  # few tests need what it imports

    with running_postgres() as database:
        yield database


@pytest.fixture
def start_engine() -> Iterator[Callable[..., BatchingEngine]]:
    """Start engines that are closed after the test."""
    engines: list[BatchingEngine] = []

    def start(
        bundle: Bundle,
        slots: int = 4,
        max_waiting: int = 64,
        prefix: Sequence[int] = (),
        kv_tokens: int | None = None,
        threads: int = 1,
    ) -> BatchingEngine:
        engines.append(BatchingEngine(bundle, prefix, slots, max_waiting, threads, "cpu", kv_tokens))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def patient_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that parse code start with their first file here, which takes long where much else runs."""
    monkeypatch.setattr(syntax, "PARSE_SECONDS", PATIENCE_SECONDS)


@dataclass
class Server:
    """A running deepcode-serve."""

    process: subprocess.Popen[bytes]
    url: str
    port: int
    stderr: IO[bytes]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def written(self) -> bytes:
        """What it has written to standard error so far."""
        return os.pread(self.stderr.fileno(), 100_000_000, 0)

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        return [msgspec.json.decode(line) for line in self.written().splitlines()]


def serve_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "serve.cli", *arguments]


@contextlib.contextmanager
def running_server(
    bundle: Path, *flags: str, start: list[str] | None = None, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """A server that is ready; killed at the end if it still runs. `start`: what starts it, before its arguments."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*(start or serve_command()), str(bundle), "--port", str(port), "--threads", "1", *flags]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DEEPCODE_")}
    # A file, because nobody would empty a pipe, and a full one stops who writes to it.
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, env=inherited | (environment or {}), stderr=stderr)
        server = Server(process, f"http://127.0.0.1:{port}", port, stderr)
        try:
            wait_until(lambda: _is_ready(server))
            yield server
        finally:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; fail when it does not come true in a long time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _is_ready(server: Server) -> bool:
    assert server.process.poll() is None, f"the server did not start: {server.written().decode()}"
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/health/ready").status_code == 200
    return False


@pytest.fixture(scope="session")
def server(tiny_bundle: Path) -> Iterator[Server]:
    with running_server(tiny_bundle) as running:
        yield running
