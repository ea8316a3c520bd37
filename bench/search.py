"""Code search in figures: how fast code is indexed, again after a change, and how fast and how large a search is.

    python -m bench.search runs/search/bundle --analysis models/nano --write-docs
    python -m bench.search runs/search/bundle --source ../project --units 20000 --embedded 1000

Indexing takes whole files from a folder: cut, embedded, written. Then all are sent again, a few of them with one more
statement in every unit: as few as hold a twentieth of the units. For the search of many units their embeddings are
drawn, as embedding all would take long: an exact search compares every vector, whatever is in it. Queries are
docstrings' first sentences. Measure on a machine that does nothing else.
"""

import argparse
import asyncio
import multiprocessing
import random
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import quantiles

import httpx
import msgspec
import numpy as np

from bench.chaos import server
from bench.docs import DOCS, write_figures
from bench.verdicts import markdown
from bundle.search import SearchBundle, open_search_bundle
from bundle.units import Unit, UnparsableCode, cut_units
from serve.search.base import FileUnits
from serve.search.folder import FolderIndex
from serve.search.messages import IndexReport, IndexRequest, SearchRequest, SourceFile
from serve.search.service import CodeSearch, text_of

COMMAND = "python -m bench.search runs/search/bundle --analysis models/nano --write-docs"
PROJECT = "bench"
FILES_AT_ONCE = 500
LARGEST_FILE = 200_000
CHANGED = 0.05
"""The share of units."""
ANALYSED, LARGEST_ANALYSED = 30, 8_000
"""Files, and characters of each."""
REQUEST_SECONDS = 600.0
PORT = 8766


class Indexing(msgspec.Struct, frozen=True):
    """Whole files into a new index, then all of them again with a few changed."""

    first: IndexReport
    first_s: float
    again: IndexReport
    again_s: float


class Searching(msgspec.Struct, frozen=True):
    """A new process with an index: bytes of memory, seconds until it can be searched, milliseconds of each search."""

    units: int
    disk_bytes: int
    memory_bytes: int
    open_s: float
    times_ms: dict[str, list[float]]


class Unobserved:
    """Nobody counts here."""

    def searched(self, embedding: float, finding: float) -> None:
        """See `serve.search.service.Observer`."""


def sources(folders: Sequence[Path]) -> Iterator[SourceFile]:
    """The Python files below the folders that are UTF-8 and of a usual size."""
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            try:
                code = file.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if len(code) <= LARGEST_FILE:
                yield SourceFile(f"{folder.name}/{file.relative_to(folder).as_posix()}", code)


def cut(file: SourceFile) -> list[Unit]:
    """The units of a file; none where it does not parse."""
    try:
        return cut_units(file.code)
    except UnparsableCode:
        return []


def first_files(files: Iterator[SourceFile], units: int) -> list[SourceFile]:
    """As many files as hold so many units."""
    taken, held = [], 0
    for file in files:
        taken.append(file)
        held += len(cut(file))
        if held >= units:
            break
    return taken


def with_one_more_statement(file: SourceFile) -> SourceFile:
    """The file with a statement at the end of every unit that ends in a line of its own."""
    lines = file.code.split("\n")
    for unit in sorted(cut(file), key=lambda unit: -unit.end_line):
        last = lines[unit.end_line - 1]
        indent = last[: len(last) - len(last.lstrip())]
        lines.insert(unit.end_line, f"{indent}_changed = True")
    changed = SourceFile(file.path, "\n".join(lines))
    return changed if cut(changed) else file  # a unit that ends inside brackets can not be added to


def some_changed(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files, as few of them changed, in every unit, as hold a twentieth of all units."""
    counts = {file.path: len(cut(file)) for file in files}
    left = CHANGED * sum(counts.values())
    changed = {}
    for file in random.Random(0).sample(files, len(files)):
        after = with_one_more_statement(file)
        if left > 0 and after is not file:
            changed[file.path] = after
            left -= counts[file.path]
    return [changed.get(file.path, file) for file in files]


async def index(bundle: SearchBundle, files: Sequence[SourceFile], folder: Path, threads: int) -> Indexing:
    """Index the files, then again with a twentieth of the units changed, each in one request."""
    search = CodeSearch(bundle, FolderIndex(folder, bundle.manifest), threads, Unobserved())
    await search.start()
    reports, seconds = [], []
    for sent in (files, some_changed(files)):
        begun = time.perf_counter()
        reports.append(await search.update(IndexRequest(project=PROJECT, files=tuple(sent), complete=True)))
        seconds.append(time.perf_counter() - begun)
    search.close()
    return Indexing(reports[0], seconds[0], reports[1], seconds[1])


def fill(bundle: SearchBundle, files: Iterator[SourceFile], count: int, folder: Path) -> list[str]:
    """Write an index of so many units with drawn embeddings; returns some first sentences of docstrings."""
    rng, width = np.random.default_rng(0), bundle.manifest.dimensions[0]
    index = FolderIndex(folder, bundle.manifest)
    queries: list[str] = []
    held = 0
    batch: list[FileUnits] = []
    for file in files:
        units = cut(file)[: count - held]
        held += len(units)
        queries += [unit.summary for unit in units if unit.summary is not None]
        batch.append(FileUnits(file.path, file.sha256, tuple(text_of(unit) for unit in units)))
        if len(batch) == FILES_AT_ONCE:
            _put(index, batch, rng, width)
            batch = []
        if held == count:
            break
    _put(index, batch, rng, width)
    index.close()
    return queries


def _put(index: FolderIndex, files: Sequence[FileUnits], rng: np.random.Generator, width: int) -> None:
    new = sorted(index.unknown(PROJECT, {unit.digest for file in files for unit in file.units}))
    index.update(PROJECT, files, (), dict(zip(new, _drawn(rng, len(new), width), strict=True)))


def _drawn(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    vectors = rng.standard_normal((count, width), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def look_up(root: Path, folder: Path, queries: Sequence[str]) -> Searching:
    """Open an index in this process, which should be new, and search it."""
    manifest = open_search_bundle(root).manifest
    before = _resident()
    begun = time.perf_counter()
    vectors = _drawn(np.random.default_rng(1), len(queries), manifest.dimensions[0])
    index = FolderIndex(folder, manifest)
    index.search(SearchRequest(query=queries[0], project=PROJECT), vectors[0])  # waits until it is in memory
    opened = time.perf_counter() - begun
    memory = _resident() - before
    filters: dict[str, dict] = {
        "everywhere": {},
        "methods alone": {"kinds": ("method",)},
        "files with an e": {"path": "*e*"},
    }
    times: dict[str, list[float]] = {}
    for name, chosen in filters.items():
        for query, vector in zip(queries, vectors, strict=True):
            begun = time.perf_counter()
            index.search(SearchRequest(query=query, project=PROJECT, **chosen), vector)
            times.setdefault(name, []).append(1000 * (time.perf_counter() - begun))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    found = Searching(index.info(PROJECT).units, size, memory, opened, times)
    index.close()
    return found


def _resident() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def analyse_beside(analysis: Path, search: Path, files: Sequence[SourceFile], scratch: Path) -> dict[str, list[float]]:
    """Milliseconds of analyses, one after another, while a server does nothing else and while it indexes."""
    codes = [file.code for file in files if len(file.code) < LARGEST_ANALYSED][:ANALYSED]
    flags = ("--search-bundle", str(search), "--index-dir", str(scratch), "--cache-bytes", "0")
    with server(analysis, PORT, *flags) as (url, _):
        _analyse(url, codes[:2])  # warms up
        times = {"alone": _analyse(url, codes)}
        indexing = threading.Thread(target=_index_for_ever, args=(url, files), daemon=True)
        indexing.start()
        times["while it indexes"] = _analyse(url, codes)
        if not indexing.is_alive():
            raise SystemExit("the server did not index while it was asked to analyse")
    return times


def _analyse(url: str, codes: Sequence[str]) -> list[float]:
    times = []
    for code in codes:
        begun = time.perf_counter()
        httpx.post(f"{url}/v1/analyze", json={"code": code}, timeout=REQUEST_SECONDS).raise_for_status()
        times.append(1000 * (time.perf_counter() - begun))
    return times


def _index_for_ever(url: str, files: Sequence[SourceFile]) -> None:
    """Until the server is gone."""
    with suppress(httpx.TransportError):
        for number in count():
            request = IndexRequest(project=f"{PROJECT}{number}", files=tuple(files))
            body = msgspec.json.encode(request)
            headers = {"Content-Type": "application/json"}
            sent = httpx.post(f"{url}/v1/index", content=body, headers=headers, timeout=REQUEST_SECONDS)
            sent.raise_for_status()


def as_markdown(indexing: Indexing, searching: Searching, analyses: dict[str, list[float]]) -> str:
    """The figures as tables."""
    rows: list[list[object]] = [["indexing", "files", "units", "embedded", "seconds", "units/s", "times as fast"]]
    for name, report, seconds in (
        ("all", indexing.first, indexing.first_s),
        ("again, 5% of the units changed", indexing.again, indexing.again_s),
    ):
        rates = (f"{seconds:.2f}", f"{report.units / seconds:.0f}", f"{indexing.first_s / seconds:.1f}")
        rows.append([name, report.files, report.units, report.embedded, *rates])
    found: list[list[object]] = [["search, the query embedded", "units", "p50 ms", "p95 ms"]]
    found += [[name, searching.units, *_percentiles(times)] for name, times in searching.times_ms.items()]
    size = (
        f"{searching.disk_bytes / 1e6:.0f} MB on disk, {searching.memory_bytes / 1e6:.0f} MB of memory, "
        f"{searching.open_s:.1f} s until the first search."
    )
    parts = [markdown(rows), markdown(found), size]
    if analyses:
        head: list[object] = ["analyses of one file after another", "files", "p50 ms", "p95 ms"]
        parts.append(markdown([head, *([name, len(times), *_percentiles(times)] for name, times in analyses.items())]))
    return "\n\n".join(parts) + "\n"


def _percentiles(times: Sequence[float]) -> tuple[str, str]:
    percentiles = quantiles(times, n=100)
    return f"{percentiles[49]:.1f}", f"{percentiles[94]:.1f}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="a search bundle")
    parser.add_argument("--analysis", type=Path, metavar="BUNDLE", help="also: what indexing costs its analyses")
    parser.add_argument("--source", type=Path, nargs="+", help="folders of Python (default: this Python's packages)")
    parser.add_argument("--units", type=int, default=100_000, help="that are searched")
    parser.add_argument("--embedded", type=int, default=2000, help="that are embedded, to see how fast that is")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0, help="that embed; 0 for every core")
    parser.add_argument("--write-docs", action="store_true", help="write the tables into docs/search.md")
    options = parser.parse_args()
    bundle = open_search_bundle(options.bundle)
    folders = options.source or [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        few = first_files(sources(folders), options.embedded)
        indexing = asyncio.run(index(bundle, few, scratch / "small", options.threads))
        queries = fill(bundle, sources(folders), options.units, scratch / "large")
        chosen = queries[:: max(1, len(queries) // options.queries)][: options.queries]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as new_process:
            searching = new_process.submit(look_up, options.bundle, scratch / "large", chosen).result()
        analyses = {}
        if options.analysis is not None:
            analyses = analyse_beside(options.analysis, options.bundle, few, scratch / "beside")
    figures = as_markdown(indexing, searching, analyses)
    print(figures)
    if options.write_docs:
        write_figures(DOCS / "search.md", COMMAND, figures)


if __name__ == "__main__":
    main()
