"""Findings as docs/real-projects.md lists them, with what people said about them.

A verdict is `true`, `debatable` or `false`, and a reason. It belongs to a project, a file, a line's text and what is
said about it, and so stays with a finding whose line has moved.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve.analysis.report import Finding

KINDS = ("true", "debatable", "false")
UNJUDGED = "?"
LONGEST_CODE = 90

# project, path, code, rule, what the finding points at
Key = tuple[str, str, str, str, str]


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """A table; the first row is its heading."""
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in ruled)


def read_verdicts(page: Path) -> dict[Key, str]:
    """Every verdict on a page that `section` wrote the tables of."""
    verdicts = {}
    for project, rows in read_tables(page.read_text(encoding="utf-8")):
        for place, code, said, verdict in rows:
            rule, _, at = said.partition(": ")
            verdicts[project, place.rpartition(":")[0], code, rule.partition(",")[0], at] = verdict
    return verdicts


def read_tables(text: str) -> list[tuple[str, list[list[str]]]]:
    """The projects of a page or section and the cells of their tables."""
    projects = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    tables = []
    for project in projects:
        lines = [line for line in project.split("\n## ")[0].splitlines() if line.startswith("| ")][2:]
        rows = [re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |")) for line in lines]
        tables.append((project.splitlines()[0], [[cell.replace("\\|", "|") for cell in row] for row in rows]))
    return tables


def section(title: str, projects: Mapping[str, Sequence[Finding]], verdicts: Mapping[Key, str]) -> str:
    """How many of each project's findings are true, and every one of them."""
    listed = {project: [_row(project, each, verdicts) for each in found] for project, found in projects.items()}
    summed = [[name, *_counts(rows)] for name, rows in listed.items()]
    together = ["together", *_counts([row for rows in listed.values() for row in rows])]
    parts = [f"## {title}", markdown([["project", *KINDS], *summed, together])]
    for name, rows in listed.items():
        heading = ["place", "code", "rule, confidence: what it points at", "verdict"]
        parts += [f"### {name}", markdown([heading, *rows])]
    return "\n\n".join(parts) + "\n"


def _row(project: str, finding: Finding, verdicts: Mapping[Key, str]) -> list[str]:
    code = finding.snippet.strip()
    code = _code(code if len(code) <= LONGEST_CODE else f"{code[: LONGEST_CODE - 1]}…")
    at = _code(finding.snippet[finding.start_column - 1 : finding.end_column - 1])
    verdict = verdicts.get((project, finding.path, code, finding.rule, at), UNJUDGED)
    said = f"{finding.rule}, {finding.confidence:.0%}: {at}"
    return [f"{finding.path}:{finding.start_line}", code, said, verdict]


def _counts(rows: Sequence[Sequence[str]]) -> list[int]:
    verdicts = [row[-1].partition(":")[0] for row in rows]
    return [verdicts.count(kind) for kind in KINDS]


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"
