"""The stages of a recipe in order. Each takes the folders of earlier ones and writes its own."""

from pathlib import Path

import msgspec
from rich.console import Console

from bundle.rules import load_catalogue
from compress.data.build import build_examples, corpus_fingerprint
from compress.data.corpus import find_sources
from compress.recipe import Recipe
from compress.stages import Run
from compress.teacher import prepare_teacher

CORPUS_CACHE = Path.home() / ".cache" / "deepcode-analyst" / "corpus"


def run_recipe(recipe: Recipe, folder: Path, console: Console, rerun_from: str | None = None) -> None:
    """Go through every stage the recipe asks for; see `Run.stage` for what is skipped and resumed.

    Raises:
        RecipeError: the recipe names something that is not there or cannot work.
        GateError: the shipped student is below the recipe's gate; the bundle was not written.
    """
    catalogue = load_catalogue()
    run = Run(folder, console, rerun_from)

    sources, projects = find_sources(recipe.data.corpus, CORPUS_CACHE)
    data = run.stage(
        "data",
        after=[],
        inputs={
            "data": recipe.data,
            "seed": recipe.seed,
            "corpus": corpus_fingerprint(sources),
            "catalogue": catalogue,
        },
        action=lambda out: build_examples(recipe.data, sources, projects, catalogue, recipe.seed, out),
    )
    run.stage(
        "teacher",
        after=["data"],
        inputs={"teacher": recipe.teacher, "seed": recipe.seed},
        action=lambda out: prepare_teacher(recipe, catalogue, data, out),
    )


def recipe_as_json(recipe: Recipe) -> dict:
    """The recipe as plain values, for the lineage."""
    return msgspec.to_builtins(recipe)
