"""The image: what can be known about it without building it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serve.settings import load_settings
from tests.deploy.conftest import ROOT
from tests.support.server_process import COMMANDS, free_port

DOCKERFILE = (ROOT / "Dockerfile").read_text()
# One instruction a line, its continuations joined.
INSTRUCTIONS = [
    line for line in re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines() if line.strip() and not line.startswith("#")
]


def instructions(name: str) -> list[str]:
    """The arguments of every such instruction."""
    return [line.partition(" ")[2] for line in INSTRUCTIONS if line.startswith(f"{name} ")]


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in instructions("ENV") for pair in line.split())


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([COMMANDS / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_signals_reach_the_server_which_is_not_root() -> None:
    assert [json.loads(line) for line in instructions("ENTRYPOINT")] == [["deepcode-serve"]]
    assert instructions("USER") == ["10001:10001"]


def test_the_settings_in_the_image_are_the_servers_own() -> None:
    environment = image_environment()
    settings = load_settings({}, environment)

    assert (str(settings.bundle), settings.host, settings.port) == ("/bundle", "0.0.0.0", 8000)
    assert instructions("EXPOSE") == [environment["DEEPCODE_PORT"]]


def test_nothing_reports_home() -> None:
    assert image_environment()["ORT_DISABLE_TELEMETRY"] == "1"


def test_every_file_that_is_copied_is_there_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = [
        source for line in instructions("COPY") if not line.startswith(("--from", "$")) for source in line.split()[:-1]
    ]

    assert {"bundle", "serve", "pyproject.toml"} <= set(copied)
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert set(copied).isdisjoint(ignored)
    assert "!runs/*/bundle" in ignored, "the default of the BUNDLE argument lies there"


@pytest.mark.parametrize("alive", [True, False])
def test_the_health_check_tells_a_living_server_from_a_dead_one(server_url: str, alive: bool) -> None:
    [line] = instructions("HEALTHCHECK")
    program, *arguments = json.loads(line.partition("CMD ")[2])
    port = server_url.rpartition(":")[2] if alive else str(free_port())

    done = subprocess.run([sys.executable, *arguments], env=os.environ | {"DEEPCODE_PORT": port}, capture_output=True)

    assert program == "python3"
    assert (done.returncode == 0) is alive


def test_serving_installs_no_torch_and_no_transformers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    waiting = [Requirement(line) for line in extras["serve"]]
    installed: set[str] = set()
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in installed:
            continue
        installed.add(name)
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue  # needed on another platform only
        waiting += [item for item in needed if item.marker is None or item.marker.evaluate({"extra": ""})]

    assert {"onnxruntime", "litestar", "tokenizers"} <= installed
    assert installed.isdisjoint({"torch", "transformers", "bitsandbytes", "peft"})
