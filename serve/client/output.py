"""Where a check's report goes: the format that was asked for, text beside a file, or a patch."""

import argparse
import os
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console

from serve.client.check import Outcome, RuleText
from serve.client.document import encode_document
from serve.client.fixes import FixedFile, unified_diff
from serve.client.github import encode_github
from serve.client.gitlab import encode_gitlab
from serve.client.junit import encode_junit
from serve.client.options import failing_severities
from serve.client.rdjson import encode_rdjson
from serve.client.sarif import encode_sarif
from serve.client.text import print_failures, print_findings, print_totals


class UnwritableOutput(Exception):
    """The report can not be written where it was asked for."""


def ensure_writable(output: Path | None) -> None:
    """Find out before the analysis, not after it, that there is nowhere to write.

    Raises:
        UnwritableOutput: `output` is a folder, or in none.
    """
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise UnwritableOutput(f"--output {output} is not a file in a folder that exists")


def write_report(
    options: argparse.Namespace, outcome: Outcome, rules: Sequence[RuleText], fixed: Sequence[FixedFile]
) -> None:
    """Write the report to --output and to standard output, and what went wrong to standard error.

    Args:
        options: the command line.
        outcome: what is reported.
        rules: what is known of the rules; SARIF describes them.
        fixed: what --diff shows.

    Raises:
        UnwritableOutput: --output can not be written.
    """
    errors = Console(stderr=True)
    print_failures(outcome.failed, errors)
    if options.output is not None:
        try:
            options.output.write_bytes(encode(options.format, options.fail_on, outcome, rules))
        except OSError as error:
            raise UnwritableOutput(f"--output {options.output} cannot be written: {error.strerror}") from error
    try:
        if options.diff:
            sys.stdout.buffer.write(b"".join(map(unified_diff, fixed)))
            print_totals(outcome, errors)
        elif options.output is not None or options.format == "text":
            console = Console()
            with console.capture() as text:
                print_findings(outcome, console)
            sys.stdout.write(text.get())
        else:
            sys.stdout.buffer.write(encode(options.format, options.fail_on, outcome, rules))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough (`| head`); the interpreter's last flush must not fail over it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def encode(form: str, fail_on: str, outcome: Outcome, rules: Sequence[RuleText]) -> bytes:
    """The outcome in one of the formats."""
    match form:
        case "json":
            return encode_document(outcome)
        case "sarif":
            return encode_sarif(outcome, rules)
        case "gitlab":
            return encode_gitlab(outcome)
        case "github":
            return encode_github(outcome)
        case "junit":
            return encode_junit(outcome, failing_severities(fail_on))
        case "rdjson":
            return encode_rdjson(outcome)
    text = StringIO()
    print_findings(outcome, Console(file=text, force_terminal=False))
    return text.getvalue().encode()
