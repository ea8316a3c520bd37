"""The OpenAPI document is the truth: schemathesis makes requests from it and holds the answers against it."""

import re
import subprocess
from pathlib import Path

from tests.serve.conftest import Server
from tests.support.server_process import COMMANDS


def test_the_server_keeps_to_its_openapi_document(server: Server, tmp_path: Path) -> None:
    command = [
        *(COMMANDS / "schemathesis", "run", f"{server.url}/schema/openapi.json"),
        *("--phases", "coverage,fuzzing", "--max-examples", "5", "--request-timeout", "60"),
        # Any text is a valid `code` to the schema, and what does not parse is refused all the same.
        # Nor does the framework's answer to OPTIONS know every method of a path that two handlers share.
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance,allow_header_conformance"),
        *("--suppress-health-check", "all", "--no-color"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert re.search(r"(\d+) generated, \1 passed", done.stdout)
