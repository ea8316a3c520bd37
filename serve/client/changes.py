"""Which lines have changed: since a git revision, or by a unified diff."""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from serve.client.files import SUFFIX, Selection
from serve.client.ignoring import repository_root

HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
ESCAPED = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
ONE_LETTER_FOLDER = re.compile(r"[a-z]/")


class UnknownChanges(Exception):
    """What has changed can not be told; the message says why and what to do."""


class ChangedLines:
    """The lines that were added or edited, by file."""

    def __init__(self, lines: Mapping[Path, Iterable[int] | None]) -> None:
        """`lines`: of each file that has changed, the numbers of its changed lines; None for all of them."""
        self._lines = {
            os.path.realpath(path): None if numbers is None else frozenset(numbers) for path, numbers in lines.items()
        }

    def narrow(self, selection: Selection) -> Selection:
        """The selection less the files that have not changed."""
        changed = tuple(path for path in selection.files if os.path.realpath(path) in self._lines)
        return msgspec.structs.replace(selection, files=changed, unchanged=len(selection.files) - len(changed))

    def touch(self, path: Path, start_line: int, end_line: int) -> bool:
        """Whether one of the lines from `start_line` to `end_line` of `path` has changed."""
        lines = self._lines.get(os.path.realpath(path), frozenset())
        return lines is None or not lines.isdisjoint(range(start_line, end_line + 1))


def changed_since(reference: str) -> ChangedLines:
    """What the working tree has that the merge base of `reference` and HEAD has not, untracked files included.

    Raises:
        UnknownChanges: there is no repository, no such revision or no merge base here.
    """
    root = Path(_git("rev-parse", "--show-toplevel").removesuffix("\n"))
    base = _merge_base(reference)
    diff = _git(
        *("-c", "core.quotePath=true", "diff", "--unified=0", "--text", "--find-renames", "--no-color"),
        *("--no-ext-diff", "--no-textconv", "--ignore-submodules", "--src-prefix=a/", "--dst-prefix=b/"),
        *(base, "--", f":(top,glob)**/*{SUFFIX}"),
    )
    lines: dict[Path, Iterable[int] | None] = {
        root / name.removeprefix("b/"): numbers for name, numbers in parse_diff(diff).items()
    }
    untracked = _git("ls-files", "-z", "--others", "--exclude-standard", "--full-name", f":(top,glob)**/*{SUFFIX}")
    lines |= {root / name: None for name in untracked.split("\0") if name}
    return ChangedLines(lines)


def changed_by(diff: bytes) -> ChangedLines:
    """What a unified diff adds. It names its files from the current folder or from the repository's root.

    Raises:
        UnknownChanges: this is no unified diff.
    """
    here = Path.cwd()
    folders = dict.fromkeys((here, repository_root(here) or here))
    lines: dict[Path, Iterable[int] | None] = {}
    for name, numbers in parse_diff(os.fsdecode(diff)).items():
        names = (name[2:], name) if ONE_LETTER_FOLDER.match(name) else (name,)
        paths = (folder / candidate for folder in folders for candidate in names)
        lines[next((path for path in paths if path.is_file()), here / name)] = numbers
    return ChangedLines(lines)


def parse_diff(diff: str) -> dict[str, list[int]]:
    """By each name that a unified diff gives a file, prefix included, the numbers of the lines it adds.

    Raises:
        UnknownChanges: this is no unified diff, or it is cut off.
    """
    added: dict[str, list[int]] = {}
    name: str | None = None
    seen_file = False
    old_left = new_left = line_number = number = 0
    for number, line in enumerate(diff.removesuffix("\n").split("\n"), start=1):
        if old_left > 0 or new_left > 0:
            kind = line[:1]
            if kind not in ("+", "-", "\\", " ", "", "\r"):
                raise UnknownChanges(f"line {number} of the diff is not one of a hunk: {line[:60]!r}")
            if kind == "+":
                if name is not None:
                    added[name].append(line_number)
                line_number, new_left = line_number + 1, new_left - 1
            elif kind == "-":
                old_left -= 1
            elif kind != "\\":
                line_number, old_left, new_left = line_number + 1, old_left - 1, new_left - 1
        elif line.startswith("+++ "):
            seen_file, told = True, _file_name(line[4:].removesuffix("\r"))
            name = None if told == "/dev/null" else told
            if name is not None:
                added.setdefault(name, [])
        elif line.startswith("@@@"):
            raise UnknownChanges("this diff compares a merge with all its parents; make one with git diff BASE HEAD")
        elif line.startswith("@@ "):
            hunk = HUNK.match(line)
            if hunk is None or not seen_file:
                raise UnknownChanges(f"line {number} of the diff is no hunk of a file: {line[:60]!r}")
            old_left, line_number, new_left = int(hunk[1] or 1), int(hunk[2]), int(hunk[3] or 1)
    if old_left > 0 or new_left > 0:
        raise UnknownChanges(f"the diff is cut off: its last hunk, before line {number}, lacks lines")
    if diff.strip() and not seen_file and "diff --git " not in diff:
        raise UnknownChanges("this is no unified diff; make one with git diff, or with diff -u")
    return added


def _file_name(told: str) -> str:
    if not told.startswith('"'):
        return told.split("\t")[0]
    quoted = os.fsencode(told[1 : told.rindex('"')])
    return os.fsdecode(ESCAPE.sub(lambda found: _unescaped(found[1]), quoted))


def _unescaped(code: bytes) -> bytes:
    return bytes([int(code, 8) & 0xFF]) if code.isdigit() else ESCAPED.get(code, code)


def _merge_base(reference: str) -> str:
    try:
        commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}").strip()
    except UnknownChanges as error:
        raise UnknownChanges(f"there is no revision {reference!r} here; {_remedy(reference)}") from error
    try:
        return _git("merge-base", commit, "HEAD").strip()
    except UnknownChanges as error:
        raise UnknownChanges(f"{reference!r} and HEAD have no commit in common here; {_remedy(reference)}") from error


def _remedy(reference: str) -> str:
    if _git("rev-parse", "--is-shallow-repository").strip() == "true":
        return (
            "this clone is shallow: run git fetch --unshallow, or have CI clone it whole "
            "(GitHub: fetch-depth: 0; GitLab: GIT_DEPTH: 0)"
        )
    return f"fetch it (git fetch origin {reference.removeprefix('origin/')}) or correct --changed-since"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        raise UnknownChanges(f"--changed-since needs git, which does not run here ({error.strerror})") from error
    if done.returncode:
        said = os.fsdecode(done.stderr).strip().removeprefix("fatal: ") or f"git {arguments[0]} failed"
        raise UnknownChanges(f"git says: {said}")
    return os.fsdecode(done.stdout)
