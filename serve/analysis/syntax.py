"""What is done with the syntax of code nobody has checked: cutting, measuring, asking it about findings, trying fixes.

Code can be written to stall or to crash a parser, so this runs in a worker process: hostile code costs a
worker its time, then the worker is killed and the next one starts; the event loop never waits.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import anyio
import anyio.to_process
import msgspec

from bundle.answer import AnswerFinding
from bundle.evidence import Evidence
from bundle.units import Unit, UnparsableCode, cut_units, normalise, parse, units_in
from serve.analysis.findings import Candidate
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
        """Start every worker, so that no file's time is spent on that.

        Raises:
            RuntimeError: workers can not start here.
        """
        try:
            async with asyncio.TaskGroup() as starting:
                for _ in range(WORKERS):
                    starting.create_task(self._run(_measured, "", seconds=START_SECONDS))
        except* anyio.BrokenWorkerProcess as error:
            raise RuntimeError(
                "the worker process that parses code did not start; a script that uses this must run its "
                "own code under `if __name__ == '__main__':`, because workers import it"
            ) from error

    async def cut(self, source: str) -> CutFile:
        """Cut and measure a file.

        Raises:
            UnparsableCode: it does not parse, or not in time.
        """
        return await self._read(_measured, source)

    async def units(self, source: str) -> list[Unit]:
        """Cut a file, and no more.

        Raises:
            UnparsableCode: it does not parse, or not in time.
        """
        return await self._read(cut_units, source)

    async def _read(self, read: Callable[[str], _Result], source: str) -> _Result:
        try:
            result = await self._run(_unless_unparsable, read, source)
        except (TimeoutError, anyio.BrokenWorkerProcess) as error:
            raise UnparsableCode("the code is too large or too deeply nested to parse", None, None) from error
        if isinstance(result, _Unparsable):
            raise UnparsableCode(result.reason, result.line, result.column)
        return result

    async def check(self, unit: Unit, candidates: Sequence[Candidate], lines: Sequence[str]) -> list[Candidate]:
        """The candidates as far as the syntax bears them out.

        What it contradicts has no confidence any more, and a fix with which the file does not parse is no fix; both
        also when that could not be found out.

        Args:
            unit: which the candidates are about.
            candidates: any.
            lines: of the whole file.
        """
        if all(candidate.unit_line is None for candidate in candidates):
            return list(candidates)
        try:
            return await self._run(_check, unit.texts, tuple(candidates), tuple(lines))
        except (TimeoutError, anyio.BrokenWorkerProcess, RecursionError, MemoryError):
            return [msgspec.structs.replace(candidate, confidence=0.0, fix=None) for candidate in candidates]

    async def _run(self, function: Callable[..., _Result], *arguments: object, seconds: float | None = None) -> _Result:
        async with self._limiter:
            with anyio.fail_after(PARSE_SECONDS if seconds is None else seconds):
                return await anyio.to_process.run_sync(function, *arguments, cancellable=True)


def apply_edit(lines: Sequence[str], edit: Edit) -> str:
    """The file's text with one single-line edit applied."""
    changed = list(lines)
    line = lines[edit.start_line - 1]
    changed[edit.start_line - 1] = line[: edit.start_column - 1] + edit.text + line[edit.end_column - 1 :]
    return "\n".join(changed)


def _measured(source: str) -> CutFile:
    source = normalise(source)
    tree = parse(source)
    return CutFile(tuple(source.split("\n")), tuple(units_in(tree, source)), measure(source, tree))


def _unless_unparsable(read: Callable[[str], _Result], source: str) -> _Result | _Unparsable:
    try:
        return read(source)
    except UnparsableCode as error:
        # Some errors have column 0; ours count from 1.
        column = error.column if error.column is None else max(error.column, 1)
        return _Unparsable(error.reason, error.line, column)
    except (RecursionError, MemoryError):
        return _Unparsable("the code is nested too deeply", None, None)


def _check(texts: tuple[str, ...], candidates: tuple[Candidate, ...], lines: tuple[str, ...]) -> list[Candidate]:
    evidence = Evidence(texts)
    return [_checked(candidate, evidence, lines) for candidate in candidates]


def _checked(candidate: Candidate, evidence: Evidence, lines: Sequence[str]) -> Candidate:
    if candidate.unit_line is None:
        return candidate
    finding = AnswerFinding(candidate.rule, candidate.unit_line, candidate.at, candidate.fix)
    confidence = 0.0 if evidence.contradicts(finding) else candidate.confidence
    fix = candidate.fix if candidate.edit is not None and _parses(apply_edit(lines, candidate.edit)) else None
    return msgspec.structs.replace(candidate, confidence=confidence, fix=fix)


def _parses(source: str) -> bool:
    try:
        parse(source)
    except UnparsableCode:
        return False
    return True
