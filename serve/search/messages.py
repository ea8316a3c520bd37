"""What is sent to a code search and what it answers, for server and client alike."""

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PROJECT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
MOST_RESULTS = 100

Project = Annotated[str, Meta(pattern=PROJECT_PATTERN)]
Path = Annotated[str, Meta(min_length=1, max_length=4096)]
Kind = Literal["function", "method", "class", "module"]
Part = Literal["embedding", "bm25"]


class SourceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a project: its path within it, and its text."""

    path: Path
    code: str

    @property
    def sha256(self) -> str:
        """By which a file that did not change is known."""
        return hashlib.sha256(self.code.encode()).hexdigest()


class IndexRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files to take into a project's index, in place of those of the same path, and paths that leave it.

    `complete`: these are all the files of the project, so that every other leaves.
    """

    project: Project
    files: Annotated[tuple[SourceFile, ...], Meta(max_length=10_000)] = ()
    deleted: Annotated[tuple[Path, ...], Meta(max_length=100_000)] = ()
    complete: bool = False


class NotIndexed(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is not in the index, and why; what the index knew of it before is forgotten."""

    path: str
    reason: str


class SearchModel(msgspec.Struct, frozen=True, kw_only=True):
    """What embeds code and queries: vectors of one revision mean nothing to another."""

    name: str
    revision: str


class ProjectInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One project's index in numbers."""

    project: str
    files: int
    units: int


class IndexReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a request has changed, and what the index holds now.

    `changed` files were read and `deleted` ones left; `embedded` units had to be, those that were in the index
    already under the same name with the same code did not.
    """

    project: str
    model: SearchModel
    files: int
    units: int
    changed: int
    deleted: int
    embedded: int
    skipped: tuple[NotIndexed, ...] = ()


class IndexedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Every file of a project's index by its path, with the sha256 of its text in UTF-8."""

    project: str
    model: SearchModel
    files: dict[str, str]


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question in words, or words of an identifier.

    `path`: only files whose path matches, where `*` stands for anything, slashes included, `?` for one character and
    `[…]` for one of these; `kinds`: only such units.
    """

    query: Annotated[str, Meta(min_length=1, max_length=2000, pattern=r"\S")]
    project: Project
    k: Annotated[int, Meta(ge=1, le=MOST_RESULTS)] = 10
    path: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    kinds: Annotated[tuple[Kind, ...], Meta(min_length=1, max_length=4)] | None = None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a unit stands: its file and its lines, from 1 and inclusive."""

    path: str
    start_line: int
    end_line: int


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """A unit that was found.

    `score` is that of the rank fusion; `found_by` has the rank that each part of the search gave the unit, from 1;
    `snippet` its first lines, without docstring, blank lines and indentation; `copies` where the same unit stands too.
    """

    path: str
    start_line: int
    end_line: int
    kind: Kind
    name: str
    snippet: str
    score: float
    found_by: dict[Part, int]
    copies: tuple[Place, ...] = ()


class SearchResults(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, the best first."""

    project: str
    model: SearchModel
    results: tuple[SearchResult, ...]
