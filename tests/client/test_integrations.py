"""The ready-made integrations: what they name exists, and their scripts run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.client.options import build_parser
from tests.client.reports import make_finding
from tests.client.scripted_server import Answer, problem_answer, reporting, scripted_server
from tests.support.server_process import COMMANDS

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
GITLAB_TEXT = (ROOT / "templates" / "deepcode-check.yml").read_text(encoding="utf-8")
OPTIONS = set(re.findall(r"--[a-z-]+", build_parser().format_usage()))


def check_step() -> dict[str, Any]:
    [step] = [step for step in ACTION["runs"]["steps"] if step.get("id") == "check"]
    return step


def options_in(script: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z]+[a-z-]*", script))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.py").write_text("if value == None:\n    pass\n")
    (folder / "my file.py").write_text("if value == None:\n    pass\n")
    return folder


def test_every_option_the_action_gives_exists_and_every_input_is_used() -> None:
    assert options_in(check_step()["run"]) - {"--"} <= OPTIONS

    used = set(re.findall(r"inputs\.([a-z-]+)", json.dumps(ACTION["runs"])))
    assert used == set(ACTION["inputs"])


def test_the_actions_script_has_no_input_spliced_into_it() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def run_action(project: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run the action's own script as a runner does, and return what it sets as outputs."""
    runner = project.parent
    (runner / "deepcode").mkdir(exist_ok=True)
    if not (runner / "deepcode" / "bin").exists():
        (runner / "deepcode" / "bin").symlink_to(COMMANDS)
    outputs = runner / "outputs"
    outputs.write_text("")
    defaults = {name: str(told["default"]) for name, told in ACTION["inputs"].items()}
    values = defaults | {name.replace("_", "-"): value for name, value in inputs.items()}
    step = check_step()
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda found: values[found[1]], told)
        for name, told in step["env"].items()
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=project,
        env=os.environ | variables | {"RUNNER_TEMP": str(runner), "GITHUB_OUTPUT": str(outputs)},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    return done, dict(line.split("=", 1) for line in outputs.read_text().splitlines())


def test_the_action_writes_sarif_to_upload_and_fails_on_findings(project: Path) -> None:
    with scripted_server(reporting(make_finding())) as server:
        done, outputs = run_action(project, url=server.url)

    assert done.returncode == 1, done.stderr
    assert outputs["exit-code"] == "1"
    assert len(json.loads(Path(outputs["sarif-file"]).read_text())["runs"][0]["results"]) == 2
    assert "a.py:1:10: warning none-comparison" in done.stdout


def test_the_action_hands_every_input_on(project: Path) -> None:
    (project / "known.json").write_text('{"version": 1, "findings": []}')
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "-m", "base"], cwd=project, check=True)
    with scripted_server(reporting(make_finding(severity="warning"))) as server:
        done, outputs = run_action(
            project,
            url=server.url,
            paths="a.py\nmy file.py\n",
            exclude="a.*\n",
            changed_since="HEAD",
            baseline="known.json",
            rules="none-comparison, bare-except",
            min_confidence="0.25",
            fail_on="error",
            fail_open="true",
            jobs="2",
            upload_sarif="false",
        )

    assert done.returncode == 0, done.stderr
    assert outputs == {"exit-code": "0"}
    [request] = server.requests
    assert request["path"] == "my file.py"
    assert (request["rules"], request["min_confidence"]) == (["none-comparison", "bare-except"], 0.25)
    assert done.stdout.startswith("::warning file=my file.py,line=1,")


def test_the_action_uploads_what_there_is_of_an_incomplete_check(project: Path) -> None:
    def refuse_one(number: int, request: dict[str, Any]) -> Answer:
        refused = request["path"] == "a.py"
        return problem_answer(422, "no") if refused else reporting(make_finding())(number, request)

    with scripted_server(refuse_one) as server:
        done, outputs = run_action(project, url=server.url)

    assert done.returncode == 3
    [run] = json.loads(Path(outputs["sarif-file"]).read_text())["runs"]
    assert run["invocations"][0]["executionSuccessful"] is False
    assert len(run["results"]) == 1


def test_an_input_is_never_read_as_shell_or_as_an_option(project: Path) -> None:
    done, _ = run_action(
        project, url="$(touch pwned)", changed_since="`touch pwned`", paths="--fail-open\n; touch pwned"
    )

    assert done.returncode == 2
    assert not (project / "pwned").exists()


def gitlab_job(**inputs: str) -> dict[str, Any]:
    """The job, with inputs filled in as GitLab does, by text."""
    header, job = GITLAB_TEXT.split("\n---\n")
    declared = yaml.safe_load(header)["spec"]["inputs"]
    values = {name: told.get("default") for name, told in declared.items()} | inputs
    return yaml.safe_load(re.sub(r"\$\[\[ inputs\.([a-z-]+) \]\]", lambda found: values[found[1]], job))


def test_every_input_of_the_gitlab_component_is_used_and_every_option_exists() -> None:
    header, job = GITLAB_TEXT.split("\n---\n")
    declared = yaml.safe_load(header)["spec"]["inputs"]

    assert set(re.findall(r"inputs\.([a-z-]+)", job)) == set(declared)
    [install, check] = gitlab_job(url="http://x")["deepcode-check"]["script"]
    assert install.startswith("pip install")
    assert options_in(check) <= OPTIONS
    [action] = [action for action in build_parser()._actions if "--fail-on" in action.option_strings]
    assert tuple(declared["fail-on"]["options"]) == action.choices


def test_the_gitlab_components_script_runs_and_writes_the_report_it_names(project: Path) -> None:
    with scripted_server(reporting(make_finding())) as server:
        job = gitlab_job(url=server.url, options="--min-confidence 0.25")["deepcode-check"]
        path = f"{COMMANDS}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", job["script"][1]],
            cwd=project,
            env=os.environ | job["variables"] | {"PATH": path},
            capture_output=True,
            timeout=120,
        )

    assert done.returncode == 1, done.stderr
    report = json.loads((project / job["artifacts"]["reports"]["codequality"]).read_text())
    assert [entry["location"]["path"] for entry in report] == ["a.py", "my file.py"]
    assert {request["min_confidence"] for request in server.requests} == {0.25}


@pytest.fixture
def pre_commit() -> list[str]:
    pytest.importorskip("pre_commit", reason="pre-commit is not installed; it comes with the dev extra")
    return [sys.executable, "-m", "pre_commit"]


def test_pre_commit_accepts_the_manifest(pre_commit: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*pre_commit, "validate-manifest", ROOT / ".pre-commit-hooks.yaml"],
        env=os.environ | {"PRE_COMMIT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout


def test_the_hook_runs_under_pre_commit(pre_commit: list[str], project: Path, tmp_path: Path) -> None:
    """With the command installed here in the place of the environment that pre-commit would build."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    manifest = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    (hooks / ".pre-commit-hooks.yaml").write_text(manifest.replace("language: python", "language: system"))
    (project / "notes.txt").write_text("no code\n")
    for folder in (hooks, project):
        for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
            identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
            subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    revision = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=hooks, text=True).strip()

    def run(url: str) -> subprocess.CompletedProcess[str]:
        hook = {"id": "deepcode-check", "args": ["--url", url]}
        config = {"repos": [{"repo": str(hooks), "rev": revision, "hooks": [hook]}]}
        (project / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
        subprocess.run(["git", "add", "."], cwd=project, check=True)
        path = f"{COMMANDS}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [*pre_commit, "run", "--all-files"],
            cwd=project,
            env=os.environ | {"PATH": path, "PRE_COMMIT_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=120,
        )

    with scripted_server(reporting(make_finding())) as server:
        found = run(server.url)
    with scripted_server(reporting()) as clean_server:
        clean = run(clean_server.url)

    assert found.returncode == 1, found.stderr
    assert "a.py:1:10: warning none-comparison" in found.stdout
    assert sorted(request["path"] for request in server.requests) == ["a.py", "my file.py"]
    assert clean.returncode == 0, clean.stdout
