"""Hygiene findings on natural code, as ruff sees them."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec

from bundle.rules import Catalogue

_BARE_EXCEPT = "bare-except"
# Ruff repairs these within the line. What it offers for the others removes code or spans lines.
_FIXED_BY_RUFF = frozenset({"none-comparison", "bool-comparison"})


class Label(msgspec.Struct, frozen=True):
    """One hygiene finding in a file: 1-based line, 0-based columns (end exclusive), and the fixed text."""

    rule: str
    line: int
    start: int
    end: int
    fix: str | None


def hygiene_labels(files: list[Path], catalogue: Catalogue) -> dict[Path, list[Label]]:
    """Every hygiene finding of the catalogue in `files`, by file, in line order.

    Raises:
        RuntimeError: ruff itself failed.
    """
    rule_of = {code: rule.id for rule in catalogue.rules for code in rule.linter}
    labels: dict[Path, list[Label]] = {}
    for start in range(0, len(files), 1000):  # a command line has a length limit
        for row in _run_ruff(files[start : start + 1000], sorted(rule_of)):
            if row["code"] in rule_of:  # a file ruff cannot parse yields a row with no rule code
                label = _label(rule_of[row["code"]], row)
                labels.setdefault(Path(row["filename"]), []).append(label)
    for found in labels.values():
        found.sort(key=lambda label: (label.line, label.start))
    return labels


def _run_ruff(files: list[Path], codes: list[str]) -> list[dict]:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--exit-zero",
        "--no-cache",
        "--ignore-noqa",
    ]
    options = ["--output-format=json", f"--select={','.join(codes)}", "--no-force-exclude"]
    result = subprocess.run([*command, *options, *map(str, files)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"ruff failed: {result.stderr.strip()[-500:]}")
    return json.loads(result.stdout)


def _label(rule: str, row: dict) -> Label:
    line, start = row["location"]["row"], row["location"]["column"] - 1
    one_line = row["end_location"]["row"] == line
    end = row["end_location"]["column"] - 1 if one_line else -1
    if rule == _BARE_EXCEPT:
        return Label(rule, line, start, start + len("except"), "except Exception")
    if rule in _FIXED_BY_RUFF:
        edit = (row["fix"] or {"edits": [None]})["edits"][0]
        if edit is not None and edit["location"]["row"] == edit["end_location"]["row"] == line:
            columns = [edit[side]["column"] - 1 for side in ("location", "end_location")]
            return Label(rule, line, columns[0], columns[1], edit["content"])
    return Label(rule, line, start, end, None)
