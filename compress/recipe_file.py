"""A recipe as a file: read, overridden from the command line, and checked, with errors that name the key."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from compress.errors import RecipeError
from compress.recipe import Recipe, Section


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML or JSON file. Folders and templates it names are relative to it.
        overrides: `key.sub=value` as on the command line; values are YAML.

    Raises:
        RecipeError: the file is missing or not YAML, a key is unknown (the nearest known key is named),
            or a value has the wrong type or makes no sense.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe at {path}") from error
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is not a recipe: it must be a mapping with `name`, `data` and `teacher`")
    for override in overrides:
        _apply_override(raw, override)
    try:
        recipe = msgspec.convert(raw, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {_explain(str(error))}") from error
    return _with_paths(recipe, path.parent)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, separator, value = override.partition("=")
    if not separator:
        raise RecipeError(f"--set {override!r}: write it as key.sub=value")
    *parents, key = dotted.split(".")
    place = raw
    for parent in parents:
        if not isinstance(place.setdefault(parent, {}), dict):
            raise RecipeError(f"--set {dotted}: {parent!r} is a value, not a section")
        place = place[parent]
    try:
        place[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: {value!r} is not YAML") from error


def _explain(message: str) -> str:
    """msgspec's message, with the nearest known key where a key is unknown."""
    unknown = re.search(r"unknown field `(.+?)`(?: - at `\$\.?(.*)`)?", message)
    if unknown is None:
        return message.replace("`$.", "`")
    key, place = unknown.group(1), unknown.group(2) or ""
    known = sorted(_known_keys(place))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    where = f" in `{place}`" if place else ""
    return f"unknown key `{key}`{where}; did you mean `{near[0]}`? (known: {', '.join(known)})"


def _known_keys(place: str) -> tuple[str, ...]:
    section: type[Section] = Recipe
    for name in filter(None, place.split(".")):
        annotation = next(field.type for field in msgspec.structs.fields(section) if field.name == name)
        section = next(part for part in getattr(annotation, "__args__", (annotation,)) if issubclass(part, Section))
    return section.__struct_fields__


def _with_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Names that exist as a path beside the recipe become that path; hub and package names stay names."""

    def located(name: str | None) -> str | None:
        return str((folder / name).resolve()) if name is not None and (folder / name).exists() else name

    replace = msgspec.structs.replace
    entries = [each for entry in recipe.data.corpus for each in _listed(entry, folder)]
    data = replace(recipe.data, corpus=[located(entry) or entry for entry in entries])
    if recipe.data.prompt.endswith(".jinja"):
        data = replace(data, prompt=located(recipe.data.prompt))
    teacher = replace(
        recipe.teacher,
        model=located(recipe.teacher.model),
        adapter=located(recipe.teacher.adapter),
        continue_from=located(recipe.teacher.continue_from),
    )
    student = recipe.student and replace(recipe.student, model=located(recipe.student.model))
    return replace(recipe, data=data, teacher=teacher, student=student)


def _listed(entry: str, folder: Path) -> list[str]:
    """The entries of a list of projects, one a line, `#` begins a comment; any other entry is itself."""
    if not entry.endswith(".txt"):
        return [entry]
    try:
        lines = (folder / entry).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"data.corpus: cannot read the list of projects {folder / entry}: {error}") from error
    return [text for line in lines if (text := line.partition("#")[0].strip())]
