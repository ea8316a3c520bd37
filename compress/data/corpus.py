"""Where code comes from: the standard library, folders, installed packages, published packages.

Everything is held by *project*, because training and held-out code are split by project and never by
function: two functions of one project share names and habits, and a split between them measures memory.
"""

import functools
import hashlib
import importlib.util
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import msgspec

from compress.errors import RecipeError

# Not code one would review: tests, vendored copies, generated tables.
SKIPPED_FOLDERS = frozenset(
    [
        "test",
        "tests",
        "testing",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "encodings",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "_vendor",
        "vendor",
        "vendored",
        "extern",
        "pydoc_data",
        "node_modules",
        ".git",
        ".venv",
        "migrations",
    ]
)
STDLIB = "stdlib"
PUBLISHED = "pypi:"


class SourceFile(msgspec.Struct, frozen=True):
    """One Python file of one project, with its path inside the project for people to read."""

    project: str
    path: str
    file: Path


class ProjectInfo(msgspec.Struct, frozen=True):
    """Where a project's code came from and under which licence, for the model card."""

    project: str
    source: str
    licence: str


def is_here(entry: str, cache: Path) -> bool:
    """Whether an entry needs no fetching: it is no published package, or one that was fetched before.

    Args:
        entry: as in a corpus, or a teacher's name.
        cache: where published packages are kept once downloaded.
    """
    name, _, version = entry.removeprefix(PUBLISHED).partition("==")
    return not entry.startswith(PUBLISHED) or (cache / f"{name}-{version}").is_dir()


def find_sources(
    corpus: list[str], cache: Path, wanted: Callable[[str], bool] = lambda project: True
) -> tuple[list[SourceFile], list[ProjectInfo]]:
    """Every Python file of a corpus, sorted by project and path.

    Args:
        corpus: `stdlib`, a folder, the name of an installed package, or `pypi:name==version`.
        cache: where published packages are kept once downloaded.
        wanted: which projects to take, by name; published packages that are not wanted are not fetched.

    Raises:
        RecipeError: an entry that is none of these, or an entry without Python files.
    """
    files: list[SourceFile] = []
    projects: list[ProjectInfo] = []
    for entry in corpus:
        if entry.startswith(PUBLISHED) and not wanted(entry.removeprefix(PUBLISHED).partition("==")[0]):
            continue
        found, infos = _sources_of(entry, cache)
        if not found:
            raise RecipeError(f"data.corpus: {entry!r} has no Python files; name a folder or package with code")
        taken = [source for source in found if wanted(source.project)]
        files += taken
        projects += infos if taken else []
    files.sort(key=lambda source: (source.project, source.path))
    return files, projects


def _sources_of(entry: str, cache: Path) -> tuple[list[SourceFile], list[ProjectInfo]]:
    if entry == STDLIB:
        return _standard_library()
    if entry.startswith(PUBLISHED):
        return _published(entry.removeprefix(PUBLISHED), cache)
    if Path(entry).is_dir():
        root = Path(entry).resolve()
        return list(_walk(root, root.name)), [ProjectInfo(root.name, "a folder", "its owner's")]
    if Path(entry).is_file():
        raise RecipeError(f"data.corpus: {entry!r} is a file; name the folder it is in")
    return _installed(entry)


def _standard_library() -> tuple[list[SourceFile], list[ProjectInfo]]:
    """Each top-level module or package of the standard library counts as a project of its own."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        SourceFile(Path(found.path).parts[0].removesuffix(".py"), f"stdlib/{found.path}", found.file)
        for found in _walk(root, "stdlib")
    ]
    version = f"Python {sys.version_info.major}.{sys.version_info.minor} standard library"
    return files, [ProjectInfo("stdlib", version, "PSF-2.0")]


def _installed(name: str) -> tuple[list[SourceFile], list[ProjectInfo]]:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"data.corpus: {name!r} is neither a folder nor an installed package")
    root = Path(next(iter(spec.submodule_search_locations)))
    owners = _distributions().get(name, [])
    info = metadata.metadata(owners[0]) if owners else None
    return list(_walk(root, name)), [ProjectInfo(name, "installed package", _licence(info))]


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Which distributions each package came with; kept, because it reads what every one of them installed."""
    return metadata.packages_distributions()


def _published(requirement: str, cache: Path) -> tuple[list[SourceFile], list[ProjectInfo]]:
    """A package as its authors published it, fetched once by pip as a wheel, never installed or run."""
    name, separator, version = requirement.partition("==")
    if not separator:
        raise RecipeError(f"data.corpus: pin {PUBLISHED}{requirement} to a version ({PUBLISHED}{name}==1.2.3)")
    folder = cache / f"{name}-{version}"
    if not folder.is_dir():
        download_package(requirement, folder, _is_code_or_licence)
    metadata_file = next(folder.glob("*.dist-info/METADATA"), None)
    info = metadata.PathDistribution(metadata_file.parent).metadata if metadata_file else None
    return list(_walk(folder, name)), [ProjectInfo(name, requirement, _licence(info))]


def _is_code_or_licence(name: str) -> bool:
    return name.endswith((".py", "METADATA")) or "LICENSE" in name


def download_package(requirement: str, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Files of a published wheel into `folder`, which is whole or not there. Nothing of it is installed or run.

    Args:
        requirement: `name==version`.
        wanted: which files, by their name in the wheel.

    Raises:
        RecipeError: pip could not fetch it.
    """
    staged = folder.with_name(f"{folder.name}.partial")
    staged.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run([*command, "--dest", str(staged), requirement], capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise RecipeError(f"pip could not fetch {requirement}: {reason}")
    for wheel in staged.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(staged, [name for name in archive.namelist() if wanted(name)])
        wheel.unlink()
    staged.rename(folder)


def _licence(info: metadata.PackageMetadata | None) -> str:
    """The licence a package declares: its SPDX expression, its classifier, or its short free text."""
    if info is None:
        return "not declared"
    classifiers = [c.split(" :: ")[-1] for c in info.get_all("Classifier") or [] if c.startswith("License ::")]
    named = [(info.get_all(field) or [None])[0] for field in ("License-Expression", "License")]
    declared = [named[0], *classifiers, named[1]]
    return next((text for text in declared if text and len(text) < 80), "not declared")


def _walk(root: Path, project: str) -> Iterator[SourceFile]:
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if file.is_file() and SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]):
            yield SourceFile(project, relative.as_posix(), file)


def split_of(project: str, seed: int, holdout: list[str], test: float, validation: float) -> str:
    """Which of train, validation and test a project belongs to: the same on every machine and in every recipe.

    Args:
        holdout: projects that are test whatever their hash says.
        test, validation: the fractions of projects that go there.
    """
    if project in holdout:
        return "test"
    digest = hashlib.sha256(f"{seed}:{project}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"
