"""The command deepcode-check: what it does and its exit codes.

0  nothing at or above --fail-on
1  findings at or above --fail-on
2  the command line cannot be carried out
3  something was not analysed (--fail-open: judge by what was)
"""

import argparse
import asyncio
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from rich.console import Console

from serve.client.baseline import UnusableBaseline, read_baseline, write_baseline
from serve.client.changes import ChangedLines, UnknownChanges, changed_by, changed_since
from serve.client.check import Analyzer, OptionsRefused, Outcome, RuleText, check_files
from serve.client.comments import ignored_lines, is_ignored
from serve.client.exits import Exit
from serve.client.files import MissingPath, Selection, select_files, shown
from serve.client.fixes import FixedFile, NotFixed, fix_file, replace_file
from serve.client.options import (
    BASELINE_COMMAND,
    build_baseline_parser,
    build_parser,
    failing_severities,
    parse,
)
from serve.client.output import UnwritableOutput, ensure_writable, write_report
from serve.client.progress import file_progress
from serve.client.remote import RemoteAnalyzer
from serve.client.search_commands import NoServer, index_project, search_project
from serve.client.search_options import (
    INDEX_COMMAND,
    SEARCH_COMMAND,
    build_index_parser,
    build_search_parser,
)
from serve.client.text import count, print_failures, print_not_fixed


class ServingNotInstalled(Exception):
    """This is the bare client; loading a bundle needs the packages of the `serve` extra."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run deepcode-check and return its exit code."""
    # A log whose encoding lacks a character is no reason to lose the check.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, run, rest = _command(arguments)
    try:
        return run(parse(parser, rest))
    except (
        MissingPath,
        NoServer,
        ServingNotInstalled,
        OptionsRefused,
        UnknownChanges,
        UnusableBaseline,
        UnwritableOutput,
    ) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception:
        # Python's own exit code for this is 1, which would read as findings.
        traceback.print_exc()
        return Exit.INCOMPLETE


def _command(
    arguments: Sequence[str],
) -> tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], Exit], Sequence[str]]:
    """What is to be run, how its command line is read, and the rest of that."""
    if tuple(arguments[:2]) == BASELINE_COMMAND:
        return build_baseline_parser(), _write_baseline, arguments[2:]
    if tuple(arguments[:1]) == INDEX_COMMAND:
        return build_index_parser(), index_project, arguments[1:]
    if tuple(arguments[:1]) == SEARCH_COMMAND:
        return build_search_parser(), search_project, arguments[1:]
    return build_parser(), _check, arguments


def exit_code(outcome: Outcome, fail_on: str, fail_open: bool) -> Exit:
    """The code for an outcome. An incomplete check is that first, whatever else it found."""
    if outcome.failed and not fail_open:
        return Exit.INCOMPLETE
    failing = failing_severities(fail_on)
    found = (finding.severity for file in outcome.checked for finding in file.report.findings)
    return Exit.FINDINGS if any(severity in failing for severity in found) else Exit.PASSED


def _check(options: argparse.Namespace) -> Exit:
    # What can be wrong with the command line is found out before anything is analysed.
    ensure_writable(options.output)
    known = frozenset() if options.baseline is None else read_baseline(options.baseline)
    changes = _changes(options)
    selection = select_files(options.paths, options.exclude)
    if changes is not None:
        selection = changes.narrow(selection)
    outcome, rules = asyncio.run(_analyze(options, selection))
    outcome = _without_ignored(outcome)
    locations = {shown(path): path for path in selection.files}
    if changes is not None:
        outcome = outcome.without(
            "unchanged",
            lambda file, finding: not changes.touch(locations[file.path], finding.start_line, finding.end_line),
        )
    if options.baseline is not None:
        outcome = outcome.without("baseline", lambda file, finding: finding.fingerprint in known)
    fixed: list[FixedFile] = []
    if options.fix or options.diff:
        fixed = _plan_fixes(outcome, locations)
    if options.fix:
        outcome = _apply(outcome, fixed, locations)
    write_report(options, outcome, rules, fixed)
    return exit_code(outcome, options.fail_on, options.fail_open)


def _write_baseline(options: argparse.Namespace) -> Exit:
    outcome, _ = asyncio.run(_analyze(options, select_files(options.paths, options.exclude)))
    outcome = _without_ignored(outcome)
    print_failures(outcome.failed, Console(stderr=True))
    if outcome.failed and not options.fail_open:
        print(f"{options.baseline} was not written: the check is incomplete.", file=sys.stderr)
        return Exit.INCOMPLETE
    try:
        number = write_baseline(options.baseline, outcome)
    except OSError as error:
        raise UnusableBaseline(f"the baseline {options.baseline} cannot be written: {error.strerror}") from error
    print(f"{options.baseline}: {count(number, 'known finding')} in {count(len(outcome.checked), 'file')}.")
    return Exit.PASSED


def _changes(options: argparse.Namespace) -> ChangedLines | None:
    if options.changed_since is not None:
        return changed_since(options.changed_since)
    if options.stdin_diff:
        return changed_by(sys.stdin.buffer.read())
    return None


async def _analyze(options: argparse.Namespace, selection: Selection) -> tuple[Outcome, tuple[RuleText, ...]]:
    async with _analyzer(options) as analyzer, file_progress(len(selection.files)) as advance:
        outcome = await check_files(selection, analyzer, options.jobs, advance)
        describes_rules = outcome.checked and "format" in options and options.format == "sarif"
        return outcome, await analyzer.rules() if describes_rules else ()


def _analyzer(options: argparse.Namespace) -> AbstractAsyncContextManager[Analyzer]:
    if options.url is not None:
        return RemoteAnalyzer(options.url, options.rules, options.min_confidence, options.key)
    try:
        from serve.client.local import BundleAnalyzer
    except ImportError as error:
        raise ServingNotInstalled(
            f"--bundle needs packages that are not installed here ({error}); "
            "run: pip install 'deepcode-analyst[serve]', or ask a server with --url"
        ) from error
    return BundleAnalyzer(options.bundle, options.rules, options.min_confidence)


def _without_ignored(outcome: Outcome) -> Outcome:
    ignored = {file.path: ignored_lines(file.source) for file in outcome.checked}
    return outcome.without("comment", lambda file, finding: is_ignored(finding, ignored[file.path]))


def _plan_fixes(outcome: Outcome, locations: dict[str, Path]) -> list[FixedFile]:
    fixed = []
    for file in outcome.checked:
        try:
            planned = fix_file(file, locations[file.path])
        except NotFixed as error:
            print_not_fixed(file.path, str(error), Console(stderr=True))
        else:
            fixed += [planned] if planned is not None else []
    return fixed


def _apply(outcome: Outcome, fixed: Sequence[FixedFile], locations: dict[str, Path]) -> Outcome:
    gone: dict[str, tuple[object, ...]] = {}
    for file in fixed:
        try:
            replace_file(locations[file.path], file.after)
        except OSError as error:
            print_not_fixed(file.path, f"cannot be written: {error.strerror}", Console(stderr=True))
        else:
            gone[file.path] = file.findings
    return outcome.without("fixed", lambda file, finding: finding in gone.get(file.path, ()))
