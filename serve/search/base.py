"""What an index of projects is, whoever keeps it: a folder of this machine, or a database."""

import fnmatch
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from serve.search.messages import Kind, ProjectInfo, SearchRequest, SearchResult

FUSED = 100
"""Of each ranking, so many of its best are fused; `compress` chose the weight between them with as many."""
SNIPPET_LINES, SNIPPET_CHARACTERS = 12, 2_000
MOST_COPIES = 20

Vectors = Mapping[bytes, NDArray[np.float32]]
"""The embedding of each text, by the text's digest."""


class IndexUnusable(Exception):
    """The index can not be used with this server; the message says where it is and what to do."""


class IndexAway(Exception):
    """What keeps the index can not be reached now."""


class UnknownProject(LookupError):
    """No such project is in the index."""

    def __init__(self, project: str) -> None:
        super().__init__(f"there is no project {project!r} in this index")


class ForgottenTexts(LookupError):
    """Texts that were not `unknown` have gone since, as others change the project too: ask once more which are."""


class RepeatedPath(ValueError):
    """A request says two things of one file."""


class UnitText(msgspec.Struct, frozen=True):
    """A unit as it is indexed: `digest` tells texts apart, `text` is embedded and split into words."""

    kind: Kind
    name: str
    start_line: int
    end_line: int
    digest: bytes
    text: str
    snippet: str


class FileUnits(msgspec.Struct, frozen=True):
    """A file's units, and the sha256 of its text."""

    path: str
    sha256: str
    units: tuple[UnitText, ...]


def path_filter(request: SearchRequest) -> Callable[[str], bool]:
    """Whether a path passes the request's filter; fnmatch's pattern never goes back over what a `*` has taken."""
    pattern = re.compile(fnmatch.translate(request.path or "*"))
    return lambda path: pattern.match(path) is not None


class UnitIndex(Protocol):
    """Keeps units with their embeddings and finds them. Its methods block; several threads may call them."""

    def projects(self) -> list[ProjectInfo]:
        """Every project, sorted by name."""
        ...

    def info(self, project: str) -> ProjectInfo:
        """One of them.

        Raises:
            UnknownProject: there is none of this name.
        """
        ...

    def files(self, project: str) -> dict[str, str]:
        """The sha256 of every file of a project, by its path.

        Raises:
            UnknownProject: there is none of this name.
        """
        ...

    def unknown(self, project: str, digests: Collection[bytes]) -> set[bytes]:
        """Which of these texts the project has no embedding of; a project that is not there has none."""
        ...

    def update(self, project: str, files: Sequence[FileUnits], deleted: Collection[str], vectors: Vectors) -> None:
        """Put `files` in the place of what there was under their paths, and take out `deleted`.

        A process that is killed meanwhile leaves each file as it was, as it was to be, or as one that is not there.

        Args:
            project: made when it is not there.
            files: each path once.
            deleted: paths; those that are not there are ignored.
            vectors: of every text that was `unknown`.

        Raises:
            ForgottenTexts: more are now; nothing was changed.
        """
        ...

    def search(self, request: SearchRequest, vector: NDArray[np.float32]) -> tuple[SearchResult, ...]:
        """The best units, the best first.

        Args:
            request: what is asked for.
            vector: the query's embedding.

        Raises:
            UnknownProject: there is no project of that name.
        """
        ...

    def delete(self, project: str) -> None:
        """Take a project out with all its files.

        Raises:
            UnknownProject: there is none of this name.
        """
        ...

    def close(self) -> None:
        """Let go of it; nothing is lost."""
        ...
