"""The init container's script: a bundle is there and whole, or the pod does not start and says why."""

import hashlib
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bundle.manifest import open_bundle
from compress.packing import pack
from tests.deploy.conftest import ROOT

SCRIPT = ROOT / "k8s" / "base" / "fetch_bundle.py"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    folder = tmp_path / "store"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(url: str, sha256: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"BUNDLE_URL": url, "BUNDLE_SHA256": sha256, "no_proxy": "127.0.0.1"}
    return subprocess.run([sys.executable, SCRIPT, folder], env=environment, capture_output=True, text=True)


def test_the_bundle_is_unpacked_and_nothing_is_left_beside_it(
    store: tuple[Path, str], tiny_bundle: Path, tmp_path: Path
) -> None:
    folder, url = store
    archive = pack(tiny_bundle, folder, None)  # as bundle.env says it is made
    unpacked = tmp_path / "bundle"
    unpacked.mkdir()

    done = fetch(f"{url}/{archive.name}", hashlib.sha256(archive.read_bytes()).hexdigest(), unpacked)

    assert (done.returncode, done.stderr) == (0, "")
    assert open_bundle(unpacked).manifest == open_bundle(tiny_bundle).manifest
    assert {path.name for path in unpacked.iterdir()} == {path.name for path in tiny_bundle.iterdir()}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other.tar.gz", "its sha256 is "),
        ("gone.tar.gz", "404"),
        ("escaping.tar.gz", "outside the destination"),
        ("linking.tar.gz", "no plain file"),
    ],
)
def test_what_is_not_the_bundle_is_refused_and_nothing_of_it_unpacked(
    store: tuple[Path, str], tmp_path: Path, name: str, said: str
) -> None:
    folder, url = store
    with tarfile.open(folder / "escaping.tar.gz", "w:gz") as archive:
        archive.add(SCRIPT, arcname="manifest.json")
        archive.add(SCRIPT, arcname="../escaped.py")
    (tmp_path / "link").symlink_to(tmp_path)
    with tarfile.open(folder / "linking.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "link", arcname="onnx")
        archive.add(SCRIPT, arcname="onnx/escaped.py")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "other.tar.gz").write_bytes(b"something else")
    unpacked = tmp_path / "bundle"
    unpacked.mkdir()

    done = fetch(f"{url}/{name}", sums.get(name, "0" * 64), unpacked)

    assert done.returncode == 1
    assert f"{url}/{name} was not unpacked: " in done.stderr
    assert said in done.stderr
    assert list(unpacked.iterdir()) == []
    assert not (tmp_path / "escaped.py").exists()
