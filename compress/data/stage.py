"""The data stage as a run keeps it: examples are made anew only when the corpus or the recipe changed."""

from collections.abc import Sequence
from pathlib import Path

from bundle.rules import Catalogue
from compress.data.build import SPLITS, build_examples, corpus_fingerprint, split_in
from compress.data.corpus import find_sources
from compress.recipe import Recipe
from compress.stages import Run

CORPUS_CACHE = Path.home() / ".cache" / "deepcode-analyst" / "corpus"


def data_stage(run: Run, recipe: Recipe, catalogue: Catalogue, splits: Sequence[str] = SPLITS) -> Path:
    """The folder with the examples of `splits`; projects of other splits are neither fetched nor read.

    Raises:
        RecipeError: an entry of the corpus can not be found, or a split is empty.
    """
    sources, projects = find_sources(
        recipe.data.corpus, CORPUS_CACHE, wanted=lambda project: split_in(recipe.data, project) in splits
    )
    return run.stage(
        "data",
        after=[],
        inputs={
            "data": recipe.data,
            "seed": recipe.seed,
            "corpus": corpus_fingerprint(sources),
            "catalogue": catalogue,
        },
        action=lambda out: build_examples(recipe.data, sources, projects, catalogue, recipe.seed, out, splits),
    )
