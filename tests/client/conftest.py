import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.server_process import COMMANDS, free_port, serving

Check = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Run the installed deepcode-check in the test's own folder."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        settings = {"cwd": tmp_path, "capture_output": True, "encoding": "utf-8", "timeout": 120} | options
        return subprocess.run([COMMANDS / "deepcode-check", *arguments], **settings)

    return run


@pytest.fixture(scope="session")
def server_url(tiny_bundle: Path) -> Iterator[str]:
    """A real server whose student is random: it finds something everywhere, always the same."""
    with serving(tiny_bundle) as url:
        yield url


@pytest.fixture
def dead_url() -> str:
    """An address where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"
