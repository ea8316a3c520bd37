"""What is done with the syntax of code nobody has checked: cutting, measuring, trying fixes.

Code can be written to stall or to crash a parser, so this runs in a worker process: hostile code costs a
worker its time, then the worker is killed and the next one starts; the event loop never waits.
"""

import tokenize
from collections.abc import Callable, Sequence
from typing import TypeVar

import anyio
import anyio.to_process
import msgspec

from bundle.units import Unit, UnparsableCode, cut_units, normalise, parse
from serve.analysis.metrics import measure
from serve.analysis.report import Edit, Metrics

PARSE_SECONDS = 10.0
# A crowded machine may take its time to start a process, and nobody waits for an answer yet.
START_SECONDS = 120.0
WORKERS = 2

_Result = TypeVar("_Result")


class CutFile(msgspec.Struct, frozen=True):
    """A parsed file: its normalised lines, its units, its metrics."""

    lines: tuple[str, ...]
    units: tuple[Unit, ...]
    metrics: Metrics


class _Unparsable(msgspec.Struct, frozen=True):
    """An UnparsableCode on its way between processes."""

    reason: str
    line: int | None
    column: int | None


class SyntaxWorkers:
    """At most `WORKERS` processes, started when they are needed, killed when they take too long."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(WORKERS)

    async def start(self) -> None:
        """Start a worker, so that the first file does not wait for one.

        Raises:
            RuntimeError: workers can not start here.
        """
        try:
            await self._run(_cut, "", seconds=START_SECONDS)
        except anyio.BrokenWorkerProcess as error:
            raise RuntimeError(
                "the worker process that parses code did not start; a script that uses this must run its "
                "own code under `if __name__ == '__main__':`, because workers import it"
            ) from error

    async def cut(self, source: str) -> CutFile:
        """Cut and measure a file.

        Raises:
            UnparsableCode: it does not parse, or not in time.
        """
        try:
            result = await self._run(_cut, source)
        except (TimeoutError, anyio.BrokenWorkerProcess) as error:
            raise UnparsableCode("the code is too large or too deeply nested to parse", None, None) from error
        if isinstance(result, _Unparsable):
            raise UnparsableCode(result.reason, result.line, result.column)
        return result

    async def parses_after(self, lines: Sequence[str], edits: Sequence[Edit]) -> list[bool]:
        """For each edit alone, whether the file parses with it; False also when out of time."""
        if not edits:
            return []
        try:
            return await self._run(_parses_after, tuple(lines), tuple(edits))
        except (TimeoutError, anyio.BrokenWorkerProcess):
            return [False] * len(edits)

    async def _run(
        self, function: Callable[..., _Result], *arguments: object, seconds: float = PARSE_SECONDS
    ) -> _Result:
        async with self._limiter:
            with anyio.fail_after(seconds):
                return await anyio.to_process.run_sync(function, *arguments, cancellable=True)


def apply_edit(lines: Sequence[str], edit: Edit) -> str:
    """The file's text with one single-line edit applied."""
    changed = list(lines)
    line = lines[edit.start_line - 1]
    changed[edit.start_line - 1] = line[: edit.start_column - 1] + edit.text + line[edit.end_column - 1 :]
    return "\n".join(changed)


def _cut(source: str) -> CutFile | _Unparsable:
    source = normalise(source)
    try:
        units = cut_units(source)
        metrics = measure(source, parse(source))
    except UnparsableCode as error:
        # Some errors have column 0; ours count from 1.
        column = error.column if error.column is None else max(error.column, 1)
        return _Unparsable(error.reason, error.line, column)
    except (RecursionError, MemoryError):
        return _Unparsable("the code is nested too deeply", None, None)
    except (tokenize.TokenError, SyntaxError) as error:
        return _Unparsable(str(error), None, None)
    return CutFile(tuple(source.split("\n")), tuple(units), metrics)


def _parses_after(lines: tuple[str, ...], edits: tuple[Edit, ...]) -> list[bool]:
    verdicts = []
    for edit in edits:
        try:
            parse(apply_edit(lines, edit))
        except UnparsableCode:
            verdicts.append(False)
        else:
            verdicts.append(True)
    return verdicts
