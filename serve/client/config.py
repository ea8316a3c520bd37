"""[tool.deepcode-check] in pyproject.toml: a project's own defaults for the command line."""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serve.client.ignoring import GIT_FOLDER

FILE = "pyproject.toml"
SECTION = "tool.deepcode-check"


class ConfigError(Exception):
    """The section can not be used; the message names the file, the key and what is wrong."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The keys, each the option of that name; what is None was not set. Paths are relative to `folder`."""

    url: str | None = None
    bundle: str | None = None
    rules: tuple[str, ...] | None = None
    min_confidence: Annotated[float, Meta(ge=0, le=1)] | None = None
    fail_on: Literal["error", "warning", "note", "never"] | None = None
    fail_open: bool | None = None
    baseline: str | None = None
    exclude: tuple[str, ...] = ()
    jobs: Annotated[int, Meta(ge=1)] | None = None


def find_config(start: Path) -> tuple[Path, Config]:
    """The section of the nearest pyproject.toml that has one, in `start` or above, up to the repository's root.

    Returns:
        its folder and its content; `start` and an empty one where there is none.

    Raises:
        ConfigError: the file is no TOML, a key is unknown (the nearest known one is named), or a value is wrong.
    """
    for folder in (start, *start.parents):
        file = folder / FILE
        if file.is_file() and (section := _section(file)) is not None:
            return folder, _convert(section, file)
        if (folder / GIT_FOLDER).exists():
            break
    return start, Config()


def _section(file: Path) -> object:
    try:
        with file.open("rb") as content:
            return tomllib.load(content).get("tool", {}).get("deepcode-check")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _convert(section: object, file: Path) -> Config:
    try:
        config = msgspec.convert(section, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"[{SECTION}] in {file}: {_explain(str(error))}") from error
    if config.url is not None and config.bundle is not None:
        raise ConfigError(f"[{SECTION}] in {file}: set either url or bundle")
    return config


def _explain(message: str) -> str:
    """msgspec's message, with the nearest known key where a key is unknown."""
    unknown = re.match(r"Object contains unknown field `(.*)`", message)
    if unknown is None:
        return message
    known = msgspec.structs.fields(Config)
    [near] = difflib.get_close_matches(unknown[1], [field.encode_name for field in known], n=1, cutoff=0.0)
    return f"unknown key {unknown[1]!r}; the nearest known key is {near!r}"
