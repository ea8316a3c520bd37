"""A release: one version everywhere, and workflows that GitHub would run and that give nothing away."""

import re
import subprocess
import tomllib

import yaml

from tests.deploy.conftest import ROOT
from tests.deploy.test_dockerfile import STAGES, TARGETS
from tests.support.server_process import COMMANDS

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"]


def test_the_version_is_the_same_wherever_it_is_named() -> None:
    named = {
        "CHANGELOG.md": re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[:1],
        "Dockerfile": re.findall(r"^ARG VERSION=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE),
        "compose.yaml": re.findall(r"image: deepcode-analyst:(.+)", (ROOT / "compose.yaml").read_text()),
    }
    for file in (ROOT / "k8s").rglob("kustomization.yaml"):
        images = yaml.safe_load(file.read_text()).get("images", ())
        ours = [image["newTag"] for image in images if image["name"].startswith("deepcode-")]
        if ours:
            named[str(file.relative_to(ROOT))] = ours

    assert len(named) >= 6
    assert {version for versions in named.values() for version in versions} == {VERSION}
    assert [place for place, versions in named.items() if not versions] == []


def test_the_workflows_are_what_github_runs() -> None:
    command = [COMMANDS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]
    done = subprocess.run(command, capture_output=True, text=True)

    assert {file.name for file in WORKFLOWS} == {"ci.yml", "release.yml"}
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflows_pin_what_they_run_and_give_nothing_away() -> None:
    command = [COMMANDS / "zizmor", "--offline", "--strict-collection", "--no-progress", ROOT / ".github"]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_workflows_name_is_there() -> None:
    commands = [step["run"] for job in jobs("ci.yml").values() for step in job["steps"] if "run" in step]

    assert ".ci/run" in commands
    assert [command for command in commands if not (ROOT / command.removeprefix("sudo ")).is_file()] == []
    released = set(jobs("release.yml")["image"]["strategy"]["matrix"]["target"])
    assert "serve" in released
    assert released <= TARGETS & STAGES.keys()
