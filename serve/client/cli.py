"""The command deepcode-check: its arguments and its exit codes.

0  nothing at or above --fail-on
1  findings at or above --fail-on
2  the command line cannot be carried out
3  something was not analysed (--fail-open: judge by what was)
"""

import argparse
import asyncio
import math
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from pathlib import Path

import httpx
from rich.console import Console

from serve.analysis.report import Severity
from serve.client.check import Analyzer, OptionsRefused, Outcome, check_files
from serve.client.document import encode_document
from serve.client.files import MissingPath, Selection, select_files
from serve.client.progress import file_progress
from serve.client.remote import RemoteAnalyzer
from serve.client.text import print_failures, print_findings

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class ServingNotInstalled(Exception):
    """This is the bare client; loading a bundle needs the packages of the `serve` extra."""


class Exit(IntEnum):
    """What a pipeline may rely on."""

    PASSED = 0
    FINDINGS = 1
    USAGE = 2
    INCOMPLETE = 3
    INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run deepcode-check and return its exit code."""
    # A log whose encoding lacks a character is no reason to lose the check.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        outcome = asyncio.run(_check(options, select_files(options.paths)))
        _write(outcome, options.format)
    except (MissingPath, ServingNotInstalled, OptionsRefused) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception:
        # Python's own exit code for this is 1, which would read as findings.
        traceback.print_exc()
        return Exit.INCOMPLETE
    return exit_code(outcome, options.fail_on, options.fail_open)


def build_parser() -> argparse.ArgumentParser:
    """The command line; argparse itself exits with 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="deepcode-check",
        description="Analyse Python files with a deepcode-serve or a bundle, and fail on what is found. "
        "In a folder, hidden folders, virtual environments, __pycache__ and node_modules are passed over.",
        epilog="Exit codes: 0 nothing at or above --fail-on; 1 findings at or above it; 2 wrong usage; "
        "3 something was not analysed, or the server cannot be reached.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a Python file or a folder of them")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", type=_url, help="ask the deepcode-serve at this address")
    source.add_argument(
        "--bundle",
        type=_folder,
        help="load this bundle here instead; needs pip install 'deepcode-analyst[serve]'",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.add_argument(
        "--min-confidence",
        type=_probability,
        metavar="X",
        help="only findings at least this sure, 0 to 1 (default: the bundle's threshold for each rule)",
    )
    parser.add_argument("--rules", type=_rules, metavar="A,B", help="only these rules (default: all)")
    parser.add_argument(
        "--fail-on",
        choices=(*SEVERITIES, "never"),
        default="warning",
        help="the mildest severity that fails the check (default: warning)",
    )
    parser.add_argument("--fail-open", action="store_true", help="when something was not analysed, judge by what was")
    parser.add_argument(
        "--jobs", type=_jobs, default=4, metavar="N", help="files analysed at the same time (default: 4)"
    )
    return parser


def exit_code(outcome: Outcome, fail_on: str, fail_open: bool) -> Exit:
    """The code for an outcome. An incomplete check is that first, whatever else it found."""
    if outcome.failed and not fail_open:
        return Exit.INCOMPLETE
    failing = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on != "never" else ()
    found = (finding.severity for file in outcome.checked for finding in file.report.findings)
    return Exit.FINDINGS if any(severity in failing for severity in found) else Exit.PASSED


async def _check(options: argparse.Namespace, selection: Selection) -> Outcome:
    async with _analyzer(options) as analyzer, file_progress(len(selection.files)) as advance:
        return await check_files(selection, analyzer, options.jobs, advance)


def _analyzer(options: argparse.Namespace) -> AbstractAsyncContextManager[Analyzer]:
    if options.url is not None:
        return RemoteAnalyzer(options.url, options.rules, options.min_confidence)
    try:
        from serve.client.local import BundleAnalyzer
    except ImportError as error:
        raise ServingNotInstalled(
            f"--bundle needs packages that are not installed here ({error}); "
            "run: pip install 'deepcode-analyst[serve]', or ask a server with --url"
        ) from error
    return BundleAnalyzer(options.bundle, options.rules, options.min_confidence)


def _write(outcome: Outcome, form: str) -> None:
    print_failures(outcome.failed, Console(stderr=True))
    try:
        if form == "json":
            sys.stdout.buffer.write(encode_document(outcome))
        else:
            console = Console()
            with console.capture() as text:
                print_findings(outcome, console)
            sys.stdout.write(text.get())
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough (`| head`); the interpreter's last flush must not fail over it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address like http://127.0.0.1:8000")
    return url


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a folder; a bundle is the folder that deepcode-compress writes"
        )
    return Path(text)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _rules(text: str) -> tuple[str, ...]:
    rules = tuple(rule.strip() for rule in text.split(","))
    if not all(rules):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of rules like bare-except,off-by-one")
    return rules


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
