"""Which files a check is about, and their text as Python itself would read it."""

import os
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from serve.client.ignoring import Patterns, git_ignores, is_left_out, own_git_ignore

SUFFIX = ".py"
UNWALKED_FOLDERS = frozenset({"__pycache__", "node_modules"})
VIRTUAL_ENVIRONMENT_MARK = "pyvenv.cfg"


class MissingPath(Exception):
    """A path on the command line does not exist."""


class UnreadableSource(Exception):
    """A file that Python itself could not read as source; the message says why."""


class SkippedPath(msgspec.Struct, frozen=True):
    """Something that was left out on purpose."""

    path: str
    reason: str


class FailedPath(msgspec.Struct, frozen=True):
    """Something that should have been analysed and was not. The place is in the file, when there is one."""

    path: str
    message: str
    line: int | None = None
    column: int | None = None


class Selection(msgspec.Struct, frozen=True):
    """The files to analyse, sorted and each once, and what of the given paths is not among them.

    `unchanged` counts files that would be here, had they changed.
    """

    files: tuple[Path, ...]
    skipped: tuple[SkippedPath, ...]
    failed: tuple[FailedPath, ...]
    unchanged: int = 0


def select_files(paths: Sequence[Path], excluded: Sequence[Patterns] = ()) -> Selection:
    """The Python files among `paths` and in the folders among them.

    Hidden folders, virtual environments, caches and what git ignores are passed over inside a folder. A folder
    behind a symbolic link is not walked into, so that a loop ends and no file counts twice.

    Args:
        paths: files and folders.
        excluded: what to leave out even where it was named.

    Raises:
        MissingPath: one of `paths` does not exist.
    """
    found: list[Path | SkippedPath | FailedPath] = []
    for path in paths:
        if not path.exists():
            raise MissingPath(f"{shown(path)} does not exist")
        if is_left_out(path, excluded):
            found.append(SkippedPath(shown(path), "excluded"))
        elif path.is_dir():
            found.extend(_walk(path, excluded))
        elif path.suffix == SUFFIX:
            found.append(_regular(path))
        else:
            found.append(SkippedPath(shown(path), f"not a {SUFFIX} file"))

    unique: dict[str, Path] = {}
    candidates = [item for item in found if isinstance(item, Path)]
    for path in sorted(candidates, key=lambda path: (path.is_symlink(), path.as_posix())):
        unique.setdefault(os.path.realpath(path), path)
    return Selection(
        files=tuple(sorted(unique.values(), key=Path.as_posix)),
        skipped=tuple(item for item in found if isinstance(item, SkippedPath)),
        failed=tuple(item for item in found if isinstance(item, FailedPath)),
    )


def read_source(path: Path) -> str:
    """A file's text with `\\n` line ends, decoded by its coding cookie, its byte-order mark or as UTF-8.

    Raises:
        UnreadableSource: the file can not be opened, or is no text in its own encoding.
    """
    try:
        with tokenize.open(path) as file:
            text = file.read()
        text.encode()  # some codecs a cookie may name produce surrogates, which no request can carry
    except OSError as error:
        raise UnreadableSource(f"cannot be read: {error.strerror or error}") from error
    except UnicodeError as error:
        raise UnreadableSource(
            f"is not text in its encoding ({error}); save it as UTF-8 or give it a `# coding:` line"
        ) from error
    except (SyntaxError, LookupError) as error:
        raise UnreadableSource(
            f"names no encoding that can be used ({error}); save it as UTF-8 or correct its `# coding:` line"
        ) from error
    if "\0" in text:
        raise UnreadableSource("is binary, not Python source")
    return text


def shown(path: Path) -> str:
    """How a path is named in a request and in a report: as it was given, with `/`, below here when it is."""
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return os.fsencode(path.as_posix()).decode(errors="replace")


def _walk(folder: Path, excluded: Sequence[Patterns]) -> Iterator[Path | SkippedPath | FailedPath]:
    unlistable: list[OSError] = []
    patterns = {os.fspath(folder): (*excluded, *git_ignores(folder))}
    for root, folders, names in os.walk(folder, onerror=unlistable.append):
        here, left_out = Path(root), patterns.pop(root)
        inside = [
            name for name in sorted(folders) if _is_walked(here / name) and not is_left_out(here / name, left_out)
        ]
        folders[:] = [name for name in inside if not (here / name).is_symlink()]
        for name in folders:
            patterns[os.path.join(root, name)] = (*left_out, *own_git_ignore(here / name))
        for name in sorted(set(inside) - set(folders)):
            yield SkippedPath(shown(here / name), "a symbolic link to a folder; name it to have it analysed")
        for name in sorted(names):
            if name.endswith(SUFFIX) and not is_left_out(here / name, left_out):
                yield _regular(here / name)
    for error in unlistable:
        yield FailedPath(shown(Path(error.filename)), f"cannot be listed: {error.strerror}")


def _is_walked(folder: Path) -> bool:
    if folder.name.startswith(".") or folder.name in UNWALKED_FOLDERS:
        return False
    return not (folder / VIRTUAL_ENVIRONMENT_MARK).exists()


def _regular(path: Path) -> Path | SkippedPath:
    if path.is_file():
        return path
    reason = "a symbolic link that leads nowhere" if path.is_symlink() else "not a regular file"
    return SkippedPath(shown(path), reason)
