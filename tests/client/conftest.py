import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

Check = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Run the installed deepcode-check in the test's own folder."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        command = [BIN / "deepcode-check", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120, **options)

    return run


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle whose student is random: it finds something everywhere, always the same."""
    # Here, because it imports torch, which takes seconds that most of these tests need not wait for.
    from tests.support.tiny_bundle import make_tiny_bundle, make_tiny_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_checkpoint(folder / "checkpoint")
    return make_tiny_bundle(folder / "checkpoint", folder / "bundle")


@pytest.fixture(scope="session")
def server_url(tiny_bundle: Path) -> Iterator[str]:
    """A real deepcode-serve process with the tiny bundle."""
    port = free_port()
    process = subprocess.Popen([BIN / "deepcode-serve", tiny_bundle, "--port", str(port)])
    try:
        wait_until_ready(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def dead_url() -> str:
    """An address where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"deepcode-serve ended with {process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise RuntimeError("deepcode-serve did not become ready within a minute")
