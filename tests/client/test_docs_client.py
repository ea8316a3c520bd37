"""docs/rest.md and docs/client.md, run as a reader would: every command and every example, against a real server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve.client import errors
from serve.client.api import AsyncClient, Client

DOCS = Path(__file__).parents[2] / "docs"
IN_THE_DOCS = "http://127.0.0.1:8000"


def examples(page: str, language: str) -> list[str]:
    """The page's code blocks in one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_the_commands_of_the_rest_page_do_what_it_says(tmp_path: Path, server_url: str) -> None:
    said = []
    for command in examples("rest.md", "sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command.replace(IN_THE_DOCS, server_url)],
            cwd=tmp_path,
            env=os.environ | {"DEEPCODE_KEY": "any"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    ready, report, narrowed, stream, _, batch, bundle, refused, retried, keyed = said

    assert json.loads(ready) == {"status": "ok"}
    assert json.loads(report)["metrics"]["lines"] == 6
    assert {finding["rule"] for finding in json.loads(narrowed)["findings"]} <= {"mutable-default"}
    assert re.findall(r"^event: (\w+)$", stream, re.MULTILINE)[-1] == "report"
    assert json.loads((tmp_path / "cart.sarif").read_bytes())["version"] == "2.1.0"
    lines = {line["id"]: line for line in map(json.loads, batch.splitlines())}
    assert lines["first"]["report"]["metrics"]["lines"] == 1
    assert lines["second"]["error"]["status"] == 422
    assert json.loads(bundle)["language"] == "python"
    assert "/v1/analyze" in json.loads((tmp_path / "openapi.json").read_bytes())["paths"]
    problem, status = refused.rsplit("}", 1)
    assert json.loads(problem + "}")["type"].endswith(":unparsable-code")
    assert status.strip() == "422"
    assert json.loads(retried)["summary"] == json.loads(keyed)["summary"]


@pytest.mark.parametrize("example", examples("client.md", "python"), ids=["analyze", "stream", "asyncio", "batch"])
def test_the_examples_of_the_client_page_run(tmp_path: Path, server_url: str, example: str) -> None:
    (tmp_path / "cart.py").write_text("def f(a, b=[]):\n    return a\n")
    done = subprocess.run(
        [sys.executable, "-c", example.replace(IN_THE_DOCS, server_url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_every_call_and_every_error_is_there() -> None:
    text = (DOCS / "client.md").read_text(encoding="utf-8")
    calls = {name for kind in (Client, AsyncClient) for name in vars(kind) if not name.startswith("_")}
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}

    assert [name for name in calls - {"close", "aclose"} if f"`{name}(" not in text] == []
    assert [name for name in kinds - {"ClientError"} if f"| `{name}` |" not in text] == []
