"""The images: what can be known about them without building them; scripts/image_test.py builds and runs one."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serve.settings import load_settings
from tests.deploy.conftest import ROOT
from tests.support.server_process import COMMANDS, free_port

TARGETS = {"serve", "with-bundle", "serve-cuda", "vllm", "compress"}
SERVERS = TARGETS - {"compress"}


class Stage:
    """One stage of the Dockerfile, as (instruction, arguments), one a line, continuations joined."""

    def __init__(self, base: str, name: str) -> None:
        self.base, self.name = base, name
        self.lines: list[tuple[str, str]] = []


def read_stages() -> dict[str, Stage]:
    """Every stage by its name, in order."""
    found: dict[str, Stage] = {}
    stage = None
    for line in re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines():
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", arguments).groups()
            stage = found[name] = Stage(base, name)
        elif stage is not None and instruction.isupper():
            stage.lines.append((instruction, arguments))
    return found


STAGES = read_stages()


def instructions(target: str, name: str) -> list[str]:
    """The arguments of every such instruction of a target and the stages it goes on from, first ones first."""
    stage = STAGES[target]
    inherited = instructions(stage.base, name) if stage.base in STAGES else []
    return inherited + [arguments for instruction, arguments in stage.lines if instruction == name]


def image_environment(target: str = "serve") -> dict[str, str]:
    return dict(pair.split("=", 1) for line in instructions(target, "ENV") for pair in line.split())


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([COMMANDS / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_default_is_the_server_without_weights() -> None:
    assert list(STAGES)[-1] == "serve"
    assert STAGES.keys() >= TARGETS
    assert not any("/bundle" in line for line in instructions("serve", "COPY"))


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_signals_reach_a_program_that_is_not_root(target: str) -> None:
    program = "deepcode-compress" if target == "compress" else "deepcode-serve"

    assert [json.loads(line) for line in instructions(target, "ENTRYPOINT")] == [[program]]
    assert instructions(target, "USER")[-1] == "10001:10001"
    assert image_environment(target)["HOME"] == "/tmp", "the user has no home, and the root can not be written"
    assert "org.opencontainers.image.version=" in " ".join(instructions(target, "LABEL"))


@pytest.mark.parametrize("target", sorted(SERVERS))
def test_the_settings_in_an_image_are_the_servers_own(target: str) -> None:
    environment = image_environment(target)
    settings = load_settings({}, environment)

    assert (str(settings.bundle), settings.host, settings.port) == ("/bundle", "0.0.0.0", 8000)
    assert settings.engine == ("vllm" if target == "vllm" else "onnx")
    assert settings.device == ("cuda" if target == "serve-cuda" else "auto")
    assert instructions(target, "EXPOSE") == [environment["DEEPCODE_PORT"]]
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"


def test_vllms_image_is_the_one_the_cluster_runs() -> None:
    kustomization = yaml.safe_load((ROOT / "k8s" / "overlays" / "gpu" / "kustomization.yaml").read_text())
    [tag] = [image["newTag"] for image in kustomization["images"] if image["name"] == "vllm/vllm-openai"]

    assert f"ARG VLLM_IMAGE=vllm/vllm-openai:{tag}" in (ROOT / "Dockerfile").read_text().splitlines()


def test_every_file_that_is_copied_is_there_and_reaches_the_builder() -> None:
    reaching = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {
        source
        for stage in STAGES.values()
        for instruction, arguments in stage.lines
        if instruction == "COPY" and not arguments.startswith(("--from", "$"))
        for source in arguments.split()[:-1]
    }
    [default] = [line.partition("=")[2] for line in instructions("with-bundle", "ARG") if line.startswith("BUNDLE=")]

    assert {"bundle", "serve", "compress", "pyproject.toml"} <= copied
    assert [source for source in copied | {default} if not (ROOT / source).exists()] == []
    assert copied | {default} <= reaching
    assert "runs/*/bundle" in reaching, "what a run made"


def test_no_layer_keeps_what_the_build_was_told_of_its_host() -> None:
    for stage in STAGES.values():
        for instruction, arguments in stage.lines:
            if instruction == "RUN" and " install " in arguments:
                assert "--mount=type=secret,id=pip,target=/etc/pip.conf" in arguments
                assert "--mount=type=secret,id=ca," in arguments
                assert "--mount=type=cache," in arguments


@pytest.mark.parametrize("alive", [True, False])
def test_the_health_check_tells_a_living_server_from_a_dead_one(server_url: str, alive: bool) -> None:
    program, path = json.loads(instructions("serve", "HEALTHCHECK")[0].partition("CMD ")[2])
    [source] = [line.split()[0] for line in instructions("serve", "COPY") if line.endswith(f" {path}")]
    port = server_url.rpartition(":")[2] if alive else str(free_port())

    done = subprocess.run(
        [sys.executable, ROOT / source], env=os.environ | {"DEEPCODE_PORT": port}, capture_output=True, text=True
    )

    assert program == "python3"
    assert (done.returncode == 0) is alive
    assert "Traceback" not in done.stderr


def asked_for(extra: str) -> list[Requirement]:
    """What an extra of ours lists, those that it is made of included."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    found: list[Requirement] = []
    for requirement in map(Requirement, lines):
        if requirement.name == "deepcode-analyst":
            found += [item for part in requirement.extras for item in asked_for(part)]
        else:
            found.append(requirement)
    return found


def test_serving_installs_no_torch_and_no_transformers() -> None:
    waiting = asked_for("serve")
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


@pytest.mark.parametrize(("extra", "runtime"), [("serve", "onnxruntime"), ("gpu", "onnxruntime-gpu")])
def test_an_extra_that_serves_has_everything_and_one_onnx_runtime(extra: str, runtime: str) -> None:
    # Two would write over each other: pip installs both into one folder.
    names = {requirement.name for requirement in asked_for(extra)}

    assert {name for name in names if name.startswith("onnxruntime")} == {runtime}
    assert {"litestar", "tokenizers", "llguidance"} <= names
