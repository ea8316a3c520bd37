"""`deepcode-check index` and `deepcode-check search`: a server's code search from the command line."""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Mapping

import msgspec
from rich.console import Console
from rich.text import Text

from serve.client.errors import ClientError, UnknownProject
from serve.client.exits import Exit
from serve.client.files import FailedPath, UnreadableSource, read_source, select_files, shown
from serve.client.progress import file_progress
from serve.client.searching import AsyncSearchClient, SearchClient
from serve.client.text import count, print_failures, print_line, printable
from serve.search.messages import IndexReport, IndexRequest, SearchResult, SearchResults, SourceFile

CODE_AT_ONCE = 500_000
"""Characters of code in one request: it is answered within seconds, and a busy server takes it."""


class NoServer(Exception):
    """There is no address of a server: a bundle can not be searched."""


class _Indexed(msgspec.Struct):
    """What was done so far."""

    changed: int = 0
    deleted: int = 0
    embedded: int = 0
    last: IndexReport | None = None

    def add(self, report: IndexReport) -> None:
        self.changed += report.changed
        self.deleted += report.deleted
        self.embedded += report.embedded
        self.last = report


def index_project(options: argparse.Namespace) -> Exit:
    """Carry out `deepcode-check index`.

    Raises:
        MissingPath: one of the paths does not exist.
        NoServer: no address was given.
    """
    _check_server(options)
    selection = select_files(options.paths, options.exclude)
    failed, sources = [*selection.failed], {}
    for file in selection.files:
        try:
            sources[shown(file)] = read_source(file)
        except UnreadableSource as error:
            failed.append(FailedPath(shown(file), str(error)))
    named = {shown(file) for file in selection.files}
    try:
        indexed = asyncio.run(_index(options, sources, named, failed))
    except ClientError as error:
        print(f"not indexed: {error}", file=sys.stderr)
        return Exit.INCOMPLETE
    print_failures(failed, Console(stderr=True), "indexed")
    print_line(Console(), Text(_told(options.project, indexed, len(sources) - indexed.changed)))
    return Exit.INCOMPLETE if failed else Exit.PASSED


def search_project(options: argparse.Namespace) -> Exit:
    """Carry out `deepcode-check search`.

    Raises:
        NoServer: no address was given.
    """
    _check_server(options)
    try:
        with SearchClient(options.url, options.key) as client:
            found = client.search(options.query, options.project, k=options.k, path=options.path, kinds=options.kind)
    except UnknownProject as error:
        print(f"{error}\nindex it first: deepcode-check index PATH… --project {options.project}", file=sys.stderr)
        return Exit.INCOMPLETE
    except ClientError as error:
        print(f"not answered: {error}", file=sys.stderr)
        return Exit.INCOMPLETE
    if options.format == "json":
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    else:
        _print_results(found, Console())
    return Exit.PASSED


def _check_server(options: argparse.Namespace) -> None:
    if options.url is None:
        raise NoServer("code search needs a server that was started with --search-bundle: give its --url")


async def _index(
    options: argparse.Namespace, sources: Mapping[str, str], named: set[str], failed: list[FailedPath]
) -> _Indexed:
    """Send what the server does not have; what it refuses is added to `failed`."""
    indexed = _Indexed()
    async with AsyncSearchClient(options.url, options.key) as client:
        try:
            known = (await client.files(options.project)).files
        except UnknownProject:
            known = {}
        files = [SourceFile(path, source) for path, source in sources.items()]
        changed = [file for file in files if known.get(file.path) != file.sha256]
        gone = tuple(sorted(known.keys() - named))
        async with file_progress(len(changed), "Indexing") as advance:
            for some in _at_once(changed):
                report = await client.index(IndexRequest(project=options.project, files=tuple(some), deleted=gone))
                gone = ()
                indexed.add(report)
                failed += [FailedPath(file.path, file.reason) for file in report.skipped]
                for _ in some:
                    advance()
    return indexed


def _at_once(files: list[SourceFile]) -> Iterator[list[SourceFile]]:
    """The files of each request; there is one even when no file changed, which takes out what is gone."""
    some: list[SourceFile] = []
    size = 0
    for file in files:
        if some and size + len(file.code) > CODE_AT_ONCE:
            yield some
            some, size = [], 0
        some.append(file)
        size += len(file.code)
    yield some


def _told(project: str, indexed: _Indexed, unchanged: int) -> str:
    assert indexed.last is not None, "one request is always sent"
    return (
        f"{project}: {count(indexed.last.units, 'unit')} in {count(indexed.last.files, 'file')}; "
        f"{indexed.changed} new or changed, {unchanged} as before, {indexed.deleted} gone; "
        f"{count(indexed.embedded, 'unit')} embedded by {indexed.last.model.name} {indexed.last.model.revision}."
    )


def _print_results(found: SearchResults, console: Console) -> None:
    for result in found.results:
        print_line(console, _headline(result))
        for line in result.snippet.split("\n"):
            print_line(console, Text(f"    {printable(line).expandtabs(4)}"))
        if result.copies:
            others = ", ".join(f"{printable(copy.path)}:{copy.start_line}" for copy in result.copies)
            print_line(console, Text(f"    the same: {others}", style="dim"))
        print_line(console, Text())
    if not found.results:
        print_line(console, Text(f"Nothing was found in {found.project}."))


def _headline(result: SearchResult) -> Text:
    ranks = ", ".join(f"{part} {rank}" for part, rank in result.found_by.items())
    return Text.assemble(
        (f"{printable(result.path)}:{result.start_line}-{result.end_line}: ", "bold"),
        f"{result.kind} ",
        (printable(result.name), "bold cyan"),
        (f" ({result.score:.4f}; {ranks})", "dim"),
    )
