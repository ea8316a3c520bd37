"""What a bundle tells of where it comes from."""

from pathlib import Path
from typing import Any

import msgspec

from compress.recipe import Section


def as_told(recipe: Section) -> dict[str, Any]:
    """The recipe as bundles and reports hold it: a bundle travels, so a path says nothing of the machine it was on.

    A path below the working folder is told from there on, any other by its last part.
    """
    return _told(msgspec.to_builtins(recipe), Path.cwd())


def _told(value: Any, here: Path) -> Any:
    if isinstance(value, dict):
        return {key: _told(each, here) for key, each in value.items()}
    if isinstance(value, list):
        return [_told(each, here) for each in value]
    if isinstance(value, str) and (path := Path(value)).is_absolute():
        return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
    return value
