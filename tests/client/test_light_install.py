"""`pip install deepcode-analyst`, without extras, is enough to ask a server."""

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.client.scripted_server import report_answer, scripted_server

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))  # None makes an import fail
from serve.client.cli import main
sys.exit(main())
"""


def check_without(missing: Iterable[str], *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the client in a Python that lacks these modules."""
    command = [sys.executable, "-c", WITHOUT, ",".join(missing), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def bare_install() -> set[str]:
    """The distributions that the bare install brings along."""
    found: set[str] = set()
    waiting = ["deepcode-analyst"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return found


def test_a_server_can_be_asked_with_nothing_but_the_bare_install(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    brought_along = bare_install()
    missing = {
        module
        for module, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & brought_along
    }
    assert {"torch", "onnxruntime", "litestar", "yaml"} <= missing

    with scripted_server(lambda number, request: report_answer(request)) as server:
        done = check_without(missing, "a.py", "--url", server.url, folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_bundle_without_the_serve_extra_names_what_to_install(tmp_path: Path) -> None:
    done = check_without(["onnxruntime"], ".", "--bundle", ".", folder=tmp_path)

    assert done.returncode == 2
    assert "pip install 'deepcode-analyst[serve]'" in done.stderr
