"""An engine over the tiny bundle, and a server process started the way a user starts it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer

from bundle.manifest import Bundle, open_bundle
from bundle.prompt import Prompt
from bundle.units import cut_units
from serve.engine.base import GenerationRequest, Token
from serve.engine.batching import BatchingEngine

PATIENCE_SECONDS = 30.0
SOURCE = Path(__file__).parents[2] / "bundle" / "units.py"


def open_prompt(bundle: Bundle) -> Prompt:
    return Prompt(bundle.prompt_template, bundle.catalogue, Tokenizer.from_file(str(bundle.tokenizer_file)))


def unit_requests(bundle: Bundle, count: int) -> list[GenerationRequest]:
    """Requests about real functions, shortest first: lengths differ, so that rows finish at different times."""
    prompt = open_prompt(bundle)
    units = sorted(cut_units(SOURCE.read_text()), key=lambda unit: len(unit.code))
    return [
        GenerationRequest(tuple(prompt.encode(unit)), bundle.catalogue.ids, len(unit.lines)) for unit in units[:count]
    ]


async def complete(engine: BatchingEngine, request: GenerationRequest) -> list[Token]:
    """The whole answer."""
    async with engine.submit(request) as stream:
        return [token async for token in stream]


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture
def start_engine() -> Iterator[Callable[..., BatchingEngine]]:
    """Start engines that are closed after the test."""
    engines: list[BatchingEngine] = []

    def start(bundle: Bundle, slots: int = 4, max_waiting: int = 64, prefix: bool = True) -> BatchingEngine:
        shared = open_prompt(bundle).prefix_ids if prefix else []
        engines.append(BatchingEngine(bundle, shared, slots, max_waiting, threads=1))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@dataclass
class Server:
    """A running deepcode-serve."""

    process: subprocess.Popen[str]
    url: str
    port: int

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


def serve_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "serve.cli", *arguments]


@contextlib.contextmanager
def running_server(bundle: Path, *flags: str) -> Iterator[Server]:
    """A server that is ready; killed at the end if it still runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = serve_command(str(bundle), "--port", str(port), "--threads", "1", *flags)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEEPCODE_")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    server = Server(process, f"http://127.0.0.1:{port}", port)
    try:
        wait_until(lambda: _is_ready(server))
        yield server
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; fail when it does not come true in a long time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _is_ready(server: Server) -> bool:
    assert server.process.poll() is None, "the server did not start"
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/health/ready").status_code == 200
    return False


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Server]:
    with running_server(tiny_bundle) as running:
        yield running
