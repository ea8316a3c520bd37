"""What is left out: paths that patterns in the syntax of a .gitignore match."""

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from pathspec import GitIgnoreSpec

GIT_FOLDER = ".git"
GIT_IGNORE = ".gitignore"


class InvalidPattern(Exception):
    """A pattern that means nothing; the message names it."""


class Patterns(msgspec.Struct, frozen=True):
    """Patterns that hold below a folder."""

    root: str
    spec: GitIgnoreSpec

    @classmethod
    def below(cls, root: Path, lines: Iterable[str]) -> "Patterns":
        """The patterns of `lines`, relative to `root`.

        Raises:
            InvalidPattern: one of them is malformed.
        """
        try:
            return cls(os.path.abspath(root), GitIgnoreSpec.from_lines(lines))
        except ValueError as error:
            raise InvalidPattern(str(error)) from error

    def verdict(self, path: str, is_folder: bool) -> bool | None:
        """True: left out; False: taken in again by a `!` pattern; None: not mentioned."""
        relative = os.path.relpath(path, self.root)
        if relative == os.curdir or relative.startswith(os.pardir):
            return None
        return self.spec.check_file(f"{relative}/" if is_folder else relative).include


def is_left_out(path: Path, patterns: Sequence[Patterns]) -> bool:
    """Whether the last of `patterns` that mentions `path` leaves it out."""
    absolute, is_folder = os.path.abspath(path), path.is_dir()
    verdicts = (one.verdict(absolute, is_folder) for one in reversed(patterns))
    return next((verdict for verdict in verdicts if verdict is not None), False)


def git_ignores(folder: Path) -> tuple[Patterns, ...]:
    """What holds inside `folder` by the .gitignore files from the repository's root down to it.

    Outside a repository only its own counts. None do for a folder that is itself ignored: who names it wants
    what is in it.
    """
    absolute = Path(os.path.abspath(folder))
    root = repository_root(absolute)
    if root is None:
        return own_git_ignore(absolute)
    above = [parent for parent in reversed(absolute.parents) if parent.is_relative_to(root)]
    patterns = _read(root, root / GIT_FOLDER / "info" / "exclude")
    for step, below in pairwise([*above, absolute]):
        patterns = (*patterns, *own_git_ignore(step))
        if is_left_out(below, patterns):
            return ()
    return (*patterns, *own_git_ignore(absolute))


def own_git_ignore(folder: Path) -> tuple[Patterns, ...]:
    """What the .gitignore in `folder` says."""
    return _read(folder, folder / GIT_IGNORE)


def repository_root(folder: Path) -> Path | None:
    """The nearest of `folder` and the folders above it that is the root of a git repository."""
    absolute = Path(os.path.abspath(folder))
    return next((step for step in (absolute, *absolute.parents) if (step / GIT_FOLDER).exists()), None)


def _read(root: Path, file: Path) -> tuple[Patterns, ...]:
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ()  # git passes over a file that is not there, or that it may not read, as well
    try:
        return (Patterns.below(root, lines),)
    except InvalidPattern:
        # git ignores a malformed line and heeds the others.
        return tuple(patterns for line in lines for patterns in _pattern(root, line))


def _pattern(root: Path, line: str) -> tuple[Patterns, ...]:
    try:
        return (Patterns.below(root, [line]),)
    except InvalidPattern:
        return ()
