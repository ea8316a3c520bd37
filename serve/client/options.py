"""The command line of deepcode-check, and the project's own defaults for it."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import httpx

from serve.analysis.report import Severity
from serve.client.config import ConfigError, find_config
from serve.client.ignoring import InvalidPattern, Patterns
from serve.client.messages import Server

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
FORMATS = ("text", "json", "sarif", "gitlab", "github", "junit", "rdjson")
BASELINE_COMMAND = ("baseline", "write")
# Not an option: other users of a machine can read command lines.
KEY_VARIABLE = "DEEPCODE_KEY"
DEFAULTS = {"fail_on": "warning", "fail_open": False, "jobs": 4}


def build_parser() -> argparse.ArgumentParser:
    """The command line of a check; argparse itself exits with 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="deepcode-check",
        description="Analyse Python files with a deepcode-serve or a bundle, and fail on what is found. "
        "In a folder, hidden folders, virtual environments, __pycache__, node_modules and what git ignores are "
        "passed over. [tool.deepcode-check] in pyproject.toml sets defaults; "
        f"the API key of a server that wants one is read from {KEY_VARIABLE} in the environment.",
        epilog="Exit codes: 0 nothing at or above --fail-on; 1 findings at or above it; 2 wrong usage; "
        "3 something was not analysed, or the server cannot be reached. "
        "To accept what there is today: deepcode-check baseline write FILE PATH…",
    )
    _add_analysis(parser)
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the --format to FILE, and text to standard output"
    )
    parser.add_argument(
        "--fail-on",
        choices=(*SEVERITIES, "never"),
        help="the mildest severity that fails the check (default: warning)",
    )
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="only findings that are not in this baseline")
    changes = parser.add_mutually_exclusive_group()
    changes.add_argument(
        "--changed-since", metavar="REF", help="only findings on lines changed since the merge base with REF"
    )
    changes.add_argument(
        "--stdin-diff", action="store_true", help="only findings on lines that a unified diff on standard input adds"
    )
    fixing = parser.add_mutually_exclusive_group()
    fixing.add_argument("--fix", action="store_true", help="apply the verified fixes, and report what is left")
    fixing.add_argument(
        "--diff",
        action="store_true",
        help="write what --fix would change to standard output as a patch; change nothing",
    )
    return parser


def build_baseline_parser() -> argparse.ArgumentParser:
    """The command line of `deepcode-check baseline write`."""
    parser = argparse.ArgumentParser(
        prog="deepcode-check baseline write",
        description="Write what is found today to a baseline, which deepcode-check --baseline then leaves out.",
        epilog="Exit codes: 0 written; 2 wrong usage; 3 something was not analysed, and nothing was written.",
    )
    parser.add_argument("baseline", metavar="FILE", type=Path, help="the baseline to write")
    _add_analysis(parser)
    return parser


def _add_analysis(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a Python file or a folder of them")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--url", type=as_url, help="ask the deepcode-serve at this address")
    source.add_argument(
        "--bundle",
        type=_folder,
        help="load this bundle here instead; needs pip install 'deepcode-analyst[serve]'",
    )
    add_exclude(parser)
    parser.add_argument(
        "--min-confidence",
        type=_probability,
        metavar="X",
        help="only findings at least this sure, 0 to 1 (default: the bundle's threshold for each rule)",
    )
    parser.add_argument("--rules", type=_rules, metavar="A,B", help="only these rules (default: all)")
    parser.add_argument(
        "--fail-open",
        action="store_true",
        default=None,
        help="when something was not analysed, judge by what was",
    )
    parser.add_argument("--jobs", type=_jobs, metavar="N", help="files analysed at the same time (default: 4)")


def add_exclude(parser: argparse.ArgumentParser) -> None:
    """What of the paths is left out."""
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave out what this pattern, as in a .gitignore, matches below the current folder; may be repeated",
    )


def failing_severities(fail_on: str) -> tuple[Severity, ...]:
    """The severities that fail a check: `fail_on` and what is worse; none for `never`."""
    return tuple(severity for severity in SEVERITIES if fail_on in SEVERITIES[SEVERITIES.index(severity) :])


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options, from the command line, else from pyproject.toml, else the defaults.

    `exclude` becomes a list of Patterns, the project's first; `key` is the API key or None. A wrong command line or
    a section that can not be used ends with SystemExit(2), as in argparse.
    """
    options = parser.parse_args(arguments)
    here = Path.cwd()
    try:
        folder, config = find_config(here)
        options.exclude = [Patterns.below(folder, config.exclude), Patterns.below(here, options.exclude)]
    except (ConfigError, InvalidPattern) as error:
        parser.error(str(error))
    try:
        if options.url is None and options.bundle is None:
            options.url = None if config.url is None else as_url(config.url)
            options.bundle = None if config.bundle is None else _folder(str(folder / config.bundle))
    except argparse.ArgumentTypeError as error:
        parser.error(f"[tool.deepcode-check] in {folder / 'pyproject.toml'}: {error}")
    if options.url is None and options.bundle is None:
        parser.error(
            "one of the arguments --url --bundle is required, or url or bundle in [tool.deepcode-check] "
            "of pyproject.toml"
        )
    options.key = os.environ.get(KEY_VARIABLE) or None
    if options.url is not None:
        try:
            Server(options.url, options.key)
        except ValueError as error:
            parser.error(f"--url with {KEY_VARIABLE}: {error}")
    own = {name: getattr(config, name) for name in ("rules", "min_confidence", "fail_on", "fail_open", "jobs")}
    own["baseline"] = None if config.baseline is None else folder / config.baseline
    for name, value in vars(options).items():
        if value is None:
            setattr(options, name, DEFAULTS.get(name) if own.get(name) is None else own[name])
    return options


def as_url(text: str) -> httpx.URL:
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
