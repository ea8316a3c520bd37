"""The command lines of `deepcode-check index` and `deepcode-check search`."""

import argparse
import re
from pathlib import Path
from typing import get_args

from serve.client.options import KEY_VARIABLE, add_exclude, as_url
from serve.search.messages import MOST_RESULTS, PROJECT_PATTERN, Kind

INDEX_COMMAND, SEARCH_COMMAND = ("index",), ("search",)


def build_index_parser() -> argparse.ArgumentParser:
    """The command line of `deepcode-check index`."""
    parser = argparse.ArgumentParser(
        prog="deepcode-check index",
        description="Make a project of a server's code search hold exactly the Python files among these paths: what "
        "changed is sent, what is gone leaves it.",
        epilog="Exit codes: 0 indexed; 2 wrong usage; 3 something was not indexed, or the server cannot be reached. "
        f"The API key of a server that wants one is read from {KEY_VARIABLE} in the environment.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a Python file or a folder of them")
    _add_server(parser)
    add_exclude(parser)
    return parser


def build_search_parser() -> argparse.ArgumentParser:
    """The command line of `deepcode-check search`."""
    parser = argparse.ArgumentParser(
        prog="deepcode-check search",
        description="Find code of a project that deepcode-check index has indexed, by what it does or how it is named.",
        epilog="Exit codes: 0 answered, also with nothing found; 2 wrong usage; 3 not answered, as when there is no "
        f"such project. The API key of a server that wants one is read from {KEY_VARIABLE} in the environment.",
    )
    parser.add_argument("query", metavar="QUERY", type=_query, help="what the code does, or words of its name")
    _add_server(parser)
    parser.add_argument("-k", type=_results, default=10, metavar="N", help="results, 1 to 100 (default: 10)")
    parser.add_argument("--path", metavar="GLOB", help="only files whose path matches; * stands for anything")
    parser.add_argument(
        "--kind", action="append", choices=get_args(Kind), help="only units of this kind; may be repeated"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(exclude=[])
    return parser


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", type=as_url, help="the address of a deepcode-serve with --search-bundle")
    parser.add_argument(
        "--project",
        type=_project,
        default=_project_of(Path.cwd()),
        metavar="NAME",
        help="what the project is called on the server (default: the current folder's name)",
    )
    parser.set_defaults(bundle=None)


def _project_of(folder: Path) -> str:
    """The folder's name, with dashes for what a project's name can not have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).lstrip("._-")[:100] or "project"


def _project(text: str) -> str:
    if not re.search(PROJECT_PATTERN, text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no project's name: give 1 to 100 letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )
    return text


def _query(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the query is empty")
    return text


def _results(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_RESULTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST_RESULTS}")
    return int(text)
