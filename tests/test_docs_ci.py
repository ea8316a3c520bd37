"""docs/ci.md names the inputs there are, and its examples use no others."""

import re

import pytest
import yaml

from tests.client.test_integrations import ACTION, GITLAB_TEXT, OPTIONS, options_in
from tests.test_docs import DOCS, table


@pytest.mark.parametrize(
    ("heading", "inputs"),
    [
        ("GitHub", set(ACTION["inputs"])),
        ("GitLab", set(yaml.safe_load(GITLAB_TEXT.split("\n---\n")[0])["spec"]["inputs"])),
    ],
)
def test_every_input_is_documented(heading: str, inputs: set[str]) -> None:
    assert set(table("ci.md", heading)) == inputs


def test_the_examples_in_the_docs_name_what_there_is() -> None:
    text = (DOCS / "ci.md").read_text(encoding="utf-8")
    examples = re.findall(r"```(?:yaml|sh|toml|console)?\n(.*?)```", text, re.DOTALL)

    commands = [line for example in examples for line in example.splitlines() if "deepcode-check " in line]
    given = {option for line in commands for option in options_in(line)}
    assert given <= OPTIONS
    used = re.findall(r"uses: \S*deepcode-analyst@.*?\n((?:\s+.*\n)*)", text)
    assert used
    for block in used:
        keys = set(re.findall(r"^\s+([a-z-]+):", block, re.MULTILINE)) - {"with"}
        assert keys <= set(ACTION["inputs"])
