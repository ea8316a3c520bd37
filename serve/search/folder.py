"""The index of many projects in a folder of this machine, each in a folder of its own."""

import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.search import SearchManifest
from serve.search.base import FileUnits, IndexUnusable, UnknownProject, Vectors
from serve.search.messages import ProjectInfo, SearchRequest, SearchResult
from serve.search.project import ProjectIndex
from serve.search.storage import DATABASE_FILE

LOCK_FILE = "lock"
GOING = ".deleted-"


class FolderIndex:
    """A `UnitIndex` that this process alone uses."""

    def __init__(self, root: Path, manifest: SearchManifest) -> None:
        """
        Args:
            root: made when it is not there.
            manifest: of the search bundle that embeds.

        Raises:
            IndexUnusable: another process uses the folder, or a project in it was made with another search bundle
                or can not be read.
        """
        self._root, self._manifest = root, manifest
        self._lock = threading.Lock()
        self._file = _lock_folder(root)
        self._projects: dict[str, ProjectIndex] = {}
        try:
            for folder in sorted(root.iterdir()):
                if folder.name.startswith(GOING):
                    shutil.rmtree(folder, ignore_errors=True)
                elif (folder / DATABASE_FILE).exists():
                    self._projects[folder.name] = ProjectIndex(folder, folder.name, manifest)
        except IndexUnusable:
            self._close_all()
            raise
        # Reading 100,000 units takes seconds; a search that comes before waits for its project alone.
        self._closing = threading.Event()
        self._loading = threading.Thread(target=self._load, name="load-index", daemon=True)
        self._loading.start()

    def projects(self) -> list[ProjectInfo]:
        """See `UnitIndex`."""
        with self._lock:
            projects = sorted(self._projects.items())
        infos = []
        for _, project in projects:
            with suppress(UnknownProject):  # it may have been deleted meanwhile
                infos.append(project.info())
        return infos

    def info(self, project: str) -> ProjectInfo:
        """See `UnitIndex`."""
        return self._project(project).info()

    def files(self, project: str) -> dict[str, str]:
        """See `UnitIndex`."""
        return self._project(project).files()

    def unknown(self, project: str, digests: Collection[bytes]) -> set[bytes]:
        """See `UnitIndex`."""
        try:
            return self._project(project).unknown(digests)
        except UnknownProject:
            return set(digests)

    def update(self, project: str, files: Sequence[FileUnits], deleted: Collection[str], vectors: Vectors) -> None:
        """See `UnitIndex`."""
        with self._lock:
            if project not in self._projects:
                self._projects[project] = ProjectIndex(self._root / project, project, self._manifest)
            index = self._projects[project]
        index.update(files, deleted, vectors)

    def search(self, request: SearchRequest, vector: NDArray[np.float32]) -> tuple[SearchResult, ...]:
        """See `UnitIndex`."""
        return self._project(request.project).search(request, vector)

    def delete(self, project: str) -> None:
        """See `UnitIndex`."""
        with self._lock:
            if project not in self._projects:
                raise UnknownProject(project)
            self._projects.pop(project).close()
            # Renamed first: half a folder is never taken for an index.
            going = self._root / f"{GOING}{uuid.uuid4().hex}"
            (self._root / project).rename(going)
        shutil.rmtree(going, ignore_errors=True)

    def close(self) -> None:
        """See `UnitIndex`."""
        self._closing.set()
        self._loading.join()
        self._close_all()

    def _close_all(self) -> None:
        with self._lock:
            for project in self._projects.values():
                project.close()
            self._projects.clear()
        os.close(self._file)

    def _project(self, name: str) -> ProjectIndex:
        with self._lock:
            if name not in self._projects:
                raise UnknownProject(name)
            return self._projects[name]

    def _load(self) -> None:
        with self._lock:
            projects = list(self._projects.values())
        for project in projects:
            if self._closing.is_set():
                return
            with suppress(UnknownProject):  # it may have been deleted meanwhile
                project.load()


def _lock_folder(root: Path) -> int:
    """The open lock of the folder; it goes with the process, however that ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = os.open(root / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise IndexUnusable(f"--index-dir {root} can not be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise IndexUnusable(
            f"--index-dir {root} is used by another deepcode-serve; give each server a folder of its own"
        ) from error
    return file
