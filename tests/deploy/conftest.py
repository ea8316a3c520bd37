from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server_process import serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server_url(tiny_bundle: Path) -> Iterator[str]:
    """A real server, to hold the probes against."""
    with serving(tiny_bundle) as url:
        yield url
