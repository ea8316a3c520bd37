"""What the API costs beside its engine: the CPU time of each part of a server that analyses real files.

    python -m bench.overhead models/nano --write-docs          # the files below this repository's serve/
    python -m bench.overhead models/nano --source ../project --clients 1 32

The server runs in this process, its engine computes on one thread, and clients in a process of their own send every
file once: each in a request of its own, or all in one batch. What the engine's thread did not spend, the API did.
Measure on a machine that does nothing else: a neighbour on the same core makes every second of CPU time worth less.
"""

import argparse
import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec
import psutil

from bench.docs import DOCS, write_figures
from bench.serving.asking import analyze, analyze_batch, connections
from bench.verdicts import markdown
from bundle.manifest import open_bundle
from serve.api.limits import Admission
from serve.app import create_app
from serve.engine.base import Engine
from serve.launcher import make_server
from serve.settings import Settings

COMMAND = "python -m bench.overhead models/nano --write-docs"
ENGINE, LOOP = "engine", "loop"
"""The names of the engine's thread and of the event loop's."""
WARM_UP = [f"def warm(up):\n    return up + {number}\n" for number in range(32)]
"""Enough at once that every process that parses code has started."""


class Spent(msgspec.Struct, frozen=True):
    """CPU seconds of a server's parts."""

    engine: float
    """The engine's thread: the student, its grammar, its scheduling."""
    loop: float
    """The event loop's thread: HTTP, JSON, what becomes of answers."""
    threads: float
    """Every other thread of the server's process: tokenising."""
    workers: float
    """The processes that parse code."""

    @property
    def overhead(self) -> float:
        """All but the engine's, as a share of the engine's."""
        return (self.loop + self.threads + self.workers) / self.engine


class Measured(msgspec.Struct, frozen=True):
    """What analysing all files took; `units` are those that the engine was asked about."""

    units: int
    seconds: float
    spent: Spent


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[str, Engine]]:
    """The address of a server in this process, which stops at the end, and its engine.

    Raises:
        SystemExit: it did not start.
    """
    settings = Settings(bundle=bundle, port=0, threads=1, max_queue=256)
    admission = Admission(settings.max_queue)
    app = create_app(settings, open_bundle(bundle), admission)
    server = make_server(app, admission, settings)
    thread = threading.Thread(target=server.run, name=LOOP)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise SystemExit("the server did not start; the lines before this one say why")
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app.engine
    finally:
        server.should_exit = True
        thread.join()


def measure(bundle: Path, codes: Sequence[str], clients: int) -> Measured:
    """Have a fresh server analyse every file, `clients` at a time; 0 clients send them in one batch."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with serving(bundle) as (url, engine), ProcessPoolExecutor(1, mp_context=spawn) as asking:
        asking.submit(ask_all, url, WARM_UP, len(WARM_UP)).result()
        not_ours = asking.submit(os.getpid).result()
        asked, before, begun = _answered(engine), _spent(not_ours), time.perf_counter()
        asking.submit(ask_all, url, codes, clients).result()
        seconds, after = time.perf_counter() - begun, _spent(not_ours)
        spent = Spent(*(now - then for now, then in zip(after, before, strict=True)))
        return Measured(_answered(engine) - asked, seconds, spent)


def ask_all(url: str, codes: Sequence[str], clients: int) -> None:
    """POST every file to /v1/analyze, `clients` at a time, or all of them as one batch when there are 0.

    Raises:
        RuntimeError: one was refused.
    """
    try:
        asyncio.run(_ask_all(url, codes, clients))
    except* aiohttp.ClientError as errors:
        raise RuntimeError(f"the server did not answer: {errors.exceptions[0]}") from None  # the others do not pickle


async def _ask_all(url: str, codes: Sequence[str], clients: int) -> None:
    remaining = iter(codes)

    async def client() -> None:
        for code in remaining:
            await analyze(session, f"{url}/v1/analyze", msgspec.json.encode({"code": code}))

    async with connections(max(clients, 1)) as session, asyncio.TaskGroup() as tasks:
        if clients == 0:
            await analyze_batch(session, url, {f"{number}.py": code for number, code in enumerate(codes)})
        for _ in range(clients):
            tasks.create_task(client())


def _answered(engine: Engine) -> int:
    return sum(engine.stats().finished.values())


def _spent(not_ours: int) -> tuple[float, float, float, float]:
    """The fields of `Spent`, since the process began. `not_ours`: a child that is no part of the server."""
    clocks = {thread.name: time.pthread_getcpuclockid(thread.ident or 0) for thread in threading.enumerate()}
    engine, loop = time.clock_gettime(clocks[ENGINE]), time.clock_gettime(clocks[LOOP])
    workers = (child for child in psutil.Process().children() if child.pid != not_ours)
    parsing = sum(times.user + times.system for times in (child.cpu_times() for child in workers))
    return engine, loop, time.process_time() - engine - loop, parsing


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1] / "serve")
    parser.add_argument("--files", type=int, default=100, help="the most that are sent")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 0], help="0: all files in one batch")
    parser.add_argument("--write-docs", action="store_true", help="write the table into docs/bench-serve.md")
    options = parser.parse_args()
    codes = [file.read_text() for file in sorted(options.source.rglob("*.py"))][: options.files]
    rows = [["clients", "units", "units/s", "engine s", "loop s", "other threads s", "parsing s", "the API adds"]]
    for clients in options.clients:
        measured = measure(options.bundle, codes, clients)
        parts = (f"{seconds:.2f}" for seconds in msgspec.structs.astuple(measured.spent))
        rate = f"{measured.units / measured.seconds:.1f}"
        rows.append([str(clients or "batch"), str(measured.units), rate, *parts, f"{measured.spent.overhead:.1%}"])
    lines = sum(len(code.splitlines()) for code in codes)
    figures = f"{len(codes)} files of {lines} lines, CPU seconds of one server:\n\n{markdown(rows)}\n"
    print(figures)
    if options.write_docs:
        write_figures(DOCS / "bench-serve.md", COMMAND, figures)


if __name__ == "__main__":
    main()
