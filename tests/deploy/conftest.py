import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.kustomized import FOLDERS, Rendered, render
from tests.support.server_process import serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server_url(tiny_bundle: Path) -> Iterator[str]:
    """A real server, to hold the probes against."""
    with serving(tiny_bundle) as url:
        yield url


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rendered]:
    """Every folder of k8s/ as kubectl builds it; without kubectl the tests that need it are skipped."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl (1.27 or newer) to build the overlays with")
    return render(ROOT / "k8s", tmp_path_factory.mktemp("k8s"))


@pytest.fixture(params=FOLDERS)
def built(request: pytest.FixtureRequest, rendered: dict[str, Rendered]) -> Rendered:
    """Each of them in turn."""
    return rendered[request.param]
