"""deepcode-check on real projects: what it finds in them, and how long it takes cold, warm and after a change.

    python -m bench.projects models/nano                # all of them, into runs/projects
    python -m bench.projects models/nano --only tinydb

The projects are source distributions from PyPI, pinned by hash, which no teacher of ours was trained on; and this
repository as it was last committed. Each is checked by a client that loads the bundle itself; by one that asks a
server which knows nothing yet, and again when it knows everything; and once more after one function in twenty has got
another statement. Prints tables in Markdown, and writes the findings as docs/real-projects.md has them to findings.md:
with the verdicts of that page, and `?` where somebody has yet to judge.
Measure on a machine that does nothing else.
"""

import argparse
import ast
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jsonschema
import msgspec

from bench.chaos import server
from bench.verdicts import markdown, read_verdicts, section
from bundle.units import cut_units
from serve.analysis.report import Finding
from serve.client.document import CheckDocument
from serve.client.files import read_source

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "real-projects.md"
SARIF_SCHEMA = ROOT / "tests" / "client" / "schemas" / "sarif-2.1.0-rtm.5.json"
CHANGED_EVERY = 20
LOW_CONFIDENCE = "0.3"


class Published(NamedTuple):
    """A source distribution on PyPI."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


# Chosen by size and licence (MIT, BSD, MIT) before anything was found in them.
PUBLISHED = (
    Published("tinydb", "4.9.0", "6928b1fa785186bda7952a0ba05aaeedc883ede565ca9c7d608de44e5e75de70"),
    Published("wtforms", "3.3.2", "49bb51d10b7832d497e758736da4d56f7d129a015db24756f36f28992f175404"),
    Published("peewee", "4.5.3", "434576afaf806428a01f84af74c42fde59372c4f6a6eba26d9b5372113344a8a"),
)
OURS = "deepcode-analyst"


class Checked(NamedTuple):
    """One project: its size, how long each check of it took in seconds, and what two of them said."""

    name: str
    units: int
    lines: int
    seconds: tuple[float, ...]
    sure: CheckDocument
    everything: CheckDocument

    def surest_of_the_rest(self, count: int = 10) -> Sequence[Finding]:
        """Of the findings below the default thresholds those the student is surest of."""
        known = {finding.fingerprint for finding in self.sure.findings}
        rest = (finding for finding in self.everything.findings if finding.fingerprint not in known)
        return sorted(rest, key=lambda finding: -finding.confidence)[:count]


def fetch(project: Published, folder: Path) -> Path:
    """The unpacked source of a project, below `folder`; what is there already is not fetched again."""
    unpacked = folder / f"{project.name}-{project.version}"
    if not unpacked.is_dir():
        pinned = folder / f"{project.name}.txt"
        pinned.write_text(f"{project.requirement}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", project.name]
        subprocess.run([*command, "--require-hashes", "--dest", folder, "--requirement", pinned], check=True)
        with tarfile.open(folder / f"{unpacked.name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return unpacked


def committed(folder: Path) -> Path:
    """This repository as it was last committed, below `folder`."""
    unpacked = folder / OURS
    shutil.rmtree(unpacked, ignore_errors=True)
    archive = folder / f"{OURS}.tar"
    subprocess.run(["git", "-C", ROOT, "archive", "--prefix", f"{OURS}/", "--output", archive, "HEAD"], check=True)
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    return unpacked


def check(project: Path, *options: str) -> float:
    """Run deepcode-check in a project's folder and return the seconds it took.

    Raises:
        SystemExit: the command failed, or something was not analysed.
    """
    program = str(Path(sys.executable).with_name("deepcode-check"))
    command = [program, ".", "--fail-on", "never", *options]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8")
    seconds = time.perf_counter() - begun
    if done.returncode != 0:
        raise SystemExit(f"{project.name}: deepcode-check ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds


def change(files: Sequence[Path], every: int = CHANGED_EVERY) -> dict[Path, bytes]:
    """Give one function in `every` another statement at its end; what the changed files were before."""
    before = {}
    position = 0
    for file in files:
        source = file.read_bytes()
        lines = source.splitlines(keepends=True)
        ends = []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                last = node.body[-1]
                indent = lines[last.lineno - 1][: last.col_offset]
                end = last.end_lineno or last.lineno
                if indent.strip() or not lines[end - 1].endswith(b"\n"):
                    continue  # no line of its own could follow
                position += 1
                if position % every == 0:
                    ends.append((end, indent))
        # From the last line to the first, so that no place that is still to be used moves; where two functions end
        # on one line, the inner one's statement is put in after the outer one's, and so before it.
        for end, indent in sorted(ends, key=lambda place: (-place[0], len(place[1]))):
            lines.insert(end, indent + b"assert True\n")
        if ends:
            before[file] = source
            file.write_bytes(b"".join(lines))
    return before


def examine(project: Path, bundle: Path, url: str) -> Checked:
    """All checks of one project. Its SARIF is held against the official schema.

    Args:
        project: a folder; the command is run in it.
        bundle: what the client loads for the cold check.
        url: a server of the same bundle that knows nothing of the project yet.
    """
    out = project.parent / f"{project.name}.json"
    to_json = ("--format", "json", "--output", str(out.resolve()))

    def document(*options: str) -> tuple[float, CheckDocument]:
        seconds = check(project, *options, *to_json)
        return seconds, msgspec.json.decode(out.read_bytes(), type=CheckDocument)

    cold, sure = document("--bundle", str(bundle.resolve()))
    first, _ = document("--url", url)
    again, _ = document("--url", url)
    _, everything = document("--url", url, "--min-confidence", LOW_CONFIDENCE)
    sarif = project.parent / f"{project.name}.sarif"
    check(project, "--url", url, "--format", "sarif", "--output", str(sarif.resolve()))
    schema = json.loads(SARIF_SCHEMA.read_bytes())
    jsonschema.Draft4Validator(schema).validate(json.loads(sarif.read_bytes()))

    files = [project / file.path for file in sure.files]
    sources = [read_source(file) for file in files]
    before = change(files)
    try:
        changed, _ = document("--url", url)
    finally:
        for file, source in before.items():
            file.write_bytes(source)
    units = sum(len(cut_units(source)) for source in sources)
    lines = sum(source.count("\n") for source in sources)
    return Checked(project.name, units, lines, (cold, first, again, changed), sure, everything)


def times(projects: Sequence[Checked]) -> str:
    """How large each project is and how long each check of it took, as Markdown."""
    columns = ["project", "files", "lines", "units", "cold", "server, first", "again", "1 in 20 changed"]
    sizes = [[each.name, len(each.sure.files), each.lines, each.units] for each in projects]
    seconds = [[f"{value:.1f}" for value in each.seconds] for each in projects]
    return markdown([columns, *(size + spent for size, spent in zip(sizes, seconds, strict=True))])


def counts(projects: Sequence[Checked]) -> str:
    """How often each rule was found, at the default thresholds and in all, as Markdown."""
    rules = sorted({finding.rule for each in projects for finding in each.everything.findings + each.sure.findings})
    rows = [["rule", *(each.name for each in projects)]]
    for rule in rules:
        pairs = ((_of_rule(each.sure, rule), _of_rule(each.everything, rule)) for each in projects)
        rows.append([rule, *(f"{sure} / {everything}" for sure, everything in pairs)])
    totals = ((len(each.sure.findings), len(each.everything.findings)) for each in projects)
    return markdown([*rows, ["all", *(f"{sure} / {everything}" for sure, everything in totals)]])


def _of_rule(document: CheckDocument, rule: str) -> int:
    return Counter(finding.rule for finding in document.findings)[rule]


def main() -> None:
    """Fetch, check, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.projects", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/projects"), help="where the projects are unpacked")
    parser.add_argument("--only", nargs="+", choices=[*(each.name for each in PUBLISHED), OURS], metavar="PROJECT")
    parser.add_argument("--port", type=int, default=8766, help="of the server")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = set(options.only or [*(each.name for each in PUBLISHED), OURS])
    folders = [fetch(each, options.folder) for each in PUBLISHED if each.name in wanted]
    folders += [committed(options.folder)] if OURS in wanted else []
    with server(options.bundle, options.port) as (url, _):
        projects = [examine(folder, options.bundle, url) for folder in folders]
    print(f"Seconds of each check:\n\n{times(projects)}\n")
    print(f"Findings, at the default thresholds / at {LOW_CONFIDENCE} and above:\n\n{counts(projects)}\n")
    verdicts = read_verdicts(PAGE)
    listed = options.folder / "findings.md"
    listed.write_text(
        section("At the default thresholds", {each.name: each.sure.findings for each in projects}, verdicts)
        + "\n"
        + section("The surest of the rest", {each.name: each.surest_of_the_rest() for each in projects}, verdicts)
    )
    print(f"The SARIF of each fits the schema. Every finding: {listed}")


if __name__ == "__main__":
    main()
