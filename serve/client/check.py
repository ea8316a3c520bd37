"""A check: every selected file analysed, several at a time, whatever happens to one of them."""

import asyncio
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from serve.analysis.report import Finding, Report, Severity
from serve.client.files import FailedPath, Selection, SkippedPath, UnreadableSource, read_source, shown


class FileRefused(Exception):
    """This file was not analysed; another one may be. The place is in the file, when there is one."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line, self.column = line, column


class AnalyzerUnavailable(Exception):
    """No further file can be analysed: the server does not answer, or the bundle does not load."""


class OptionsRefused(Exception):
    """What was asked for holds for no file at all, such as a rule the bundle does not know."""


class RuleText(msgspec.Struct, frozen=True):
    """What a bundle says of one of its rules. `{at}` and `{fix}` stand for a finding's text and its fix."""

    id: str
    severity: Severity
    title: str
    message: str
    hint: str


class Analyzer(Protocol):
    """Whatever turns one file's text into a report."""

    async def analyze(self, code: str, path: str) -> Report:
        """The report of one file.

        Raises:
            FileRefused: this file can not be analysed.
            AnalyzerUnavailable: nothing can be analysed any more.
            OptionsRefused: nothing can be analysed in the way that was asked for.
        """
        ...

    async def rules(self) -> tuple[RuleText, ...]:
        """The rules this analyzer knows; none when it does not tell."""
        ...


class CheckedFile(msgspec.Struct, frozen=True):
    """One file's text, with `\\n` line ends, and what was said about it."""

    path: str
    source: str
    report: Report


Hidden = Literal["unchanged", "comment", "baseline", "fixed"]


class Outcome(msgspec.Struct, frozen=True):
    """Everything a check has to tell, sorted by path. It is complete when nothing failed.

    `hidden` counts the findings that were taken out: those on unchanged lines, those a comment in the code
    ignores, those a baseline knows, and those that were fixed. `unchanged_files` were not analysed at all.
    """

    checked: tuple[CheckedFile, ...]
    skipped: tuple[SkippedPath, ...]
    failed: tuple[FailedPath, ...]
    hidden: dict[Hidden, int] = {}
    unchanged_files: int = 0

    def without(self, reason: Hidden, is_hidden: Callable[[CheckedFile, Finding], bool]) -> "Outcome":
        """This outcome less the findings for which `is_hidden` holds; they are counted under `reason`."""
        checked, count = [], 0
        for file in self.checked:
            findings = tuple(finding for finding in file.report.findings if not is_hidden(file, finding))
            count += len(file.report.findings) - len(findings)
            report = msgspec.structs.replace(file.report, findings=findings)
            checked.append(msgspec.structs.replace(file, report=report))
        hidden = self.hidden | {reason: self.hidden.get(reason, 0) + count}
        return msgspec.structs.replace(self, checked=tuple(checked), hidden=hidden)


async def check_files(selection: Selection, analyzer: Analyzer, jobs: int, on_file_done: Callable[[], None]) -> Outcome:
    """Analyse the selected files, at most `jobs` at a time.

    Once the analyzer is unavailable the remaining files are not tried: each is reported as failed.

    Raises:
        OptionsRefused: the analyzer would refuse every file.
    """
    checked: list[CheckedFile] = []
    failed: list[FailedPath] = [*selection.failed]
    unavailable: list[str] = []
    refused: list[OptionsRefused] = []
    waiting = iter(selection.files)

    async def work() -> None:
        for file in waiting:
            path = shown(file)
            try:
                source = read_source(file)
                if unavailable:
                    failed.append(FailedPath(path, unavailable[0]))
                else:
                    checked.append(CheckedFile(path, source, await analyzer.analyze(source, path)))
            except UnreadableSource as error:
                failed.append(FailedPath(path, str(error)))
            except FileRefused as error:
                failed.append(FailedPath(path, str(error), error.line, error.column))
            except AnalyzerUnavailable as error:
                unavailable.append(str(error))
                failed.append(FailedPath(path, unavailable[0]))
            except OptionsRefused as error:
                refused.append(error)
                return
            on_file_done()

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(jobs, len(selection.files))):
            workers.create_task(work())
    if refused:
        raise refused[0]
    return Outcome(
        checked=tuple(sorted(checked, key=lambda file: file.path)),
        skipped=selection.skipped,
        failed=tuple(sorted(failed, key=lambda failure: failure.path)),
        unchanged_files=selection.unchanged,
    )
