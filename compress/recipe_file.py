"""A recipe as a file: read, overridden from the command line, and checked, with errors that name the key."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from compress.code_search.recipe import SearchRecipe
from compress.errors import RecipeError
from compress.recipe import Corpus, Recipe, Section

AnyRecipe = TypeVar("AnyRecipe", Recipe, SearchRecipe)
AnyCorpus = TypeVar("AnyCorpus", bound=Corpus)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe of the analysis task; see `load_any_recipe`.

    Raises:
        RecipeError: as there, or the recipe is of another task.
    """
    recipe = load_any_recipe(path, overrides)
    if isinstance(recipe, SearchRecipe):
        raise RecipeError(f"{path} has `task: search`, which only `deepcode-compress run` and `doctor` take")
    return recipe


def load_any_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe | SearchRecipe:
    """Read and check a recipe. Its `task` says what it may hold: `analysis`, when it does not say, or `search`.

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
    if raw.get("task") == "search":
        search = _checked(raw, SearchRecipe, path)
        teacher = msgspec.structs.replace(search.teacher, model=_located(search.teacher.model, path.parent))
        return msgspec.structs.replace(search, data=_with_corpus(search.data, path.parent), teacher=teacher)
    return _with_paths(_checked(raw, Recipe, path), path.parent)


def _checked(raw: dict[str, Any], kind: type[AnyRecipe], path: Path) -> AnyRecipe:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {_explain(str(error), kind)}") from error


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


def _explain(message: str, recipe: type[Section]) -> str:
    """msgspec's message, with the nearest known key where a key is unknown."""
    unknown = re.search(r"unknown field `(.+?)`(?: - at `\$\.?(.*)`)?", message)
    if unknown is None:
        return message.replace("`$.", "`")
    key, place = unknown.group(1), unknown.group(2) or ""
    known = sorted(_known_keys(recipe, place))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    where = f" in `{place}`" if place else ""
    return f"unknown key `{key}`{where}; did you mean `{near[0]}`? (known: {', '.join(known)})"


def _known_keys(section: type[Section], place: str) -> tuple[str, ...]:
    for name in filter(None, place.split(".")):
        annotation = next(field.type for field in msgspec.structs.fields(section) if field.name == name)
        section = next(part for part in getattr(annotation, "__args__", (annotation,)) if issubclass(part, Section))
    return section.__struct_fields__


def _with_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Names that exist as a path beside the recipe become that path; hub and package names stay names."""

    def located(name: str | None) -> str | None:
        return name and _located(name, folder)

    replace = msgspec.structs.replace
    data = _with_corpus(recipe.data, folder)
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


def _with_corpus(data: AnyCorpus, folder: Path) -> AnyCorpus:
    """The corpus with lists of projects written out, and folders as paths."""
    entries = [each for entry in data.corpus for each in _listed(entry, folder)]
    return msgspec.structs.replace(data, corpus=[_located(entry, folder) for entry in entries])


def _located(name: str, folder: Path) -> str:
    return str((folder / name).resolve()) if (folder / name).exists() else name


def _listed(entry: str, folder: Path) -> list[str]:
    """The entries of a list of projects, one a line, `#` begins a comment; any other entry is itself."""
    if not entry.endswith(".txt"):
        return [entry]
    try:
        lines = (folder / entry).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"data.corpus: cannot read the list of projects {folder / entry}: {error}") from error
    return [text for line in lines if (text := line.partition("#")[0].strip())]
