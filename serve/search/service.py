"""Code search: files are cut into units, embedded and indexed; queries are embedded and answered."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bundle.search import SearchBundle, SearchManifest, document_text
from bundle.units import Unit, UnparsableCode
from serve.analysis.languages import language_of
from serve.analysis.syntax import SyntaxWorkers
from serve.search.base import (
    SNIPPET_CHARACTERS,
    SNIPPET_LINES,
    FileUnits,
    ForgottenTexts,
    RepeatedPath,
    UnitIndex,
    UnitText,
    UnknownProject,
)
from serve.search.embedding import Embedder
from serve.search.messages import (
    IndexedFiles,
    IndexReport,
    IndexRequest,
    NotIndexed,
    ProjectInfo,
    SearchModel,
    SearchRequest,
    SearchResults,
    SourceFile,
)

CODE_AT_ONCE = 200_000
"""Characters of code that are cut, embedded and written together: what is lost when the process is killed."""


class Observer(Protocol):
    """Is told of every search, in seconds."""

    def searched(self, embedding: float, finding: float) -> None:
        """A query was embedded and answered."""
        ...


class CodeSearch:
    """A search bundle and an index together. One request at a time changes the index; searches go on meanwhile."""

    def __init__(self, bundle: SearchBundle, index: UnitIndex, threads: int, observer: Observer) -> None:
        """
        Args:
            bundle: what embeds.
            index: made with the same bundle; closed with this.
            threads: that embed code; 0 for as many as there are cores.
            observer: told of searches.

        Raises:
            BundleError: the bundle has no int8 export.
        """
        self.model = as_model(bundle.manifest)
        self.index = index
        self.embedded = 0
        """Units that had to be embedded since the start."""
        self._language = bundle.manifest.language
        self._embedder = Embedder(bundle, threads)
        self._observer = observer
        self._syntax = SyntaxWorkers()
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Start what the first request would otherwise wait for.

        Raises:
            RuntimeError: the workers that parse code can not start here.
        """
        await self._syntax.start()

    async def update(self, request: IndexRequest) -> IndexReport:
        """Take files in and out. What is done when this is cancelled stays, file by file.

        Raises:
            RepeatedPath: a file is there twice, or is to be both taken in and deleted.
        """
        _check_paths(request)
        async with self._changing:
            known = await asyncio.to_thread(self._files, request.project)
            changed = [file for file in request.files if known.get(file.path) != file.sha256]
            kept, named = {file.path for file in request.files}, set(request.deleted)
            deleted = [path for path in known if path in named or (request.complete and path not in kept)]
            embedded, skipped = self.embedded, []
            first, *others = _parts(changed)
            cut, refused = await self._cut_all(first)
            for following in (*others, None):
                gone = [*(file.path for file in refused), *(deleted if following is None else ())]
                skipped += refused
                # The next files are cut while these are embedded: neither waits for the other.
                put = self._put(request.project, cut, gone)
                _, (cut, refused) = await asyncio.gather(put, self._cut_all(following or []))
            info = await asyncio.to_thread(self.index.info, request.project)
            return IndexReport(
                project=request.project,
                model=self.model,
                files=info.files,
                units=info.units,
                changed=len(changed),
                deleted=len(deleted),
                embedded=self.embedded - embedded,
                skipped=tuple(skipped),
            )

    async def search(self, request: SearchRequest) -> SearchResults:
        """The best units.

        Raises:
            UnknownProject: there is no project of that name.
        """
        begun = time.monotonic()
        vector = await self._embedder.query(request.query)
        asked = time.monotonic()
        results = await asyncio.to_thread(self.index.search, request, vector)
        self._observer.searched(asked - begun, time.monotonic() - asked)
        return SearchResults(project=request.project, model=self.model, results=results)

    async def projects(self) -> list[ProjectInfo]:
        """Every project, sorted by name."""
        return await asyncio.to_thread(self.index.projects)

    async def files(self, project: str) -> IndexedFiles:
        """Every file of a project.

        Raises:
            UnknownProject: there is no project of that name.
        """
        files = await asyncio.to_thread(self.index.files, project)
        return IndexedFiles(project=project, model=self.model, files=files)

    async def delete(self, project: str) -> None:
        """Take a project out.

        Raises:
            UnknownProject: there is no project of that name.
        """
        async with self._changing:
            await asyncio.to_thread(self.index.delete, project)

    def close(self) -> None:
        """End what runs and let go of the index; what is not written by now never will be."""
        self._embedder.close()
        self.index.close()

    def _files(self, project: str) -> dict[str, str]:
        try:
            return self.index.files(project)
        except UnknownProject:
            return {}

    async def _cut_all(self, files: Sequence[SourceFile]) -> tuple[list[FileUnits], list[NotIndexed]]:
        cut, refused = [], []
        for file in files:
            try:
                cut.append(await self._cut(file))
            except UnparsableCode as error:
                refused.append(NotIndexed(path=file.path, reason=str(error)))
        return cut, refused

    async def _put(self, project: str, files: Sequence[FileUnits], deleted: Sequence[str]) -> None:
        texts = {unit.digest: unit.text for file in files for unit in file.units}
        vectors: dict[bytes, NDArray[np.float32]] = {}
        while True:
            new = sorted(await asyncio.to_thread(self.index.unknown, project, texts.keys() - vectors.keys()))
            embeddings = await self._embedder.documents([texts[digest] for digest in new])
            vectors |= dict(zip(new, embeddings, strict=True))
            self.embedded += len(new)
            # Another server may have taken out meanwhile what was there: then that is embedded as well.
            with suppress(ForgottenTexts):
                await asyncio.to_thread(self.index.update, project, files, deleted, vectors)
                return

    async def _cut(self, file: SourceFile) -> FileUnits:
        language = language_of(file.path)
        if language is not None and language != self._language:
            raise UnparsableCode(f"it is {language}, and this search bundle knows {self._language}", None, None)
        if "\0" in file.code:
            raise UnparsableCode("it holds NUL characters", None, None)
        units = await self._syntax.units(file.code)
        return FileUnits(file.path, file.sha256, tuple(text_of(unit) for unit in units))


def as_model(manifest: SearchManifest) -> SearchModel:
    """What answers name a search bundle by."""
    return SearchModel(name=manifest.name, revision=manifest.revision)


def _check_paths(request: IndexRequest) -> None:
    paths = [file.path for file in request.files]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise RepeatedPath(f"the request has more than one file at {twice!r}")
    both = set(paths) & set(request.deleted)
    if both:
        raise RepeatedPath(f"{min(both)!r} is among `files` and among `deleted`")


def _parts(files: Sequence[SourceFile]) -> list[list[SourceFile]]:
    """The files, some at a time; one part at least, because there may be files to take out."""
    parts: list[list[SourceFile]] = [[]]
    size = 0
    for file in files:
        if parts[-1] and size + len(file.code) > CODE_AT_ONCE:
            parts.append([])
            size = 0
        parts[-1].append(file)
        size += len(file.code)
    return parts


def text_of(unit: Unit) -> UnitText:
    """A unit as it is indexed."""
    text = document_text(unit)
    return UnitText(
        kind=unit.kind,
        name=unit.name,
        start_line=unit.start_line,
        end_line=unit.end_line,
        digest=hashlib.sha256(text.encode()).digest(),
        text=text,
        snippet="\n".join(unit.texts[:SNIPPET_LINES])[:SNIPPET_CHARACTERS],
    )
