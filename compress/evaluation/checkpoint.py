"""One checkpoint's scores on the held-out projects of a recipe, without the run that made it."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from rich.console import Console

from bundle.manifest import file_sha256
from bundle.rules import load_catalogue
from compress.data.stage import data_stage
from compress.errors import RecipeError
from compress.evaluate import Candidate, evaluate_models
from compress.evaluation.scores import Scores
from compress.evaluation.tables import detail_tables, score_tables
from compress.pipeline import read_evaluation
from compress.recipe import Recipe
from compress.report import write_report
from compress.stages import Run

_HELD_OUT = ("validation", "test")
_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt")


def evaluate_checkpoint(model: str, recipe: Recipe, out: Path, console: Console) -> None:
    """Ask a checkpoint about the recipe's held-out units, print its scores, and write the report into `out`.

    Only projects that are held out are fetched and read. So a unit that stands word for word in a training
    project too, which a whole run would drop, is asked about here. Like a run, this goes on where it was cut
    off, and does nothing twice.

    Args:
        model: a checkpoint's folder, or a hub name.

    Raises:
        RecipeError: there is no such model, or the recipe's corpus has nothing held out.
    """
    folder = _checkpoint_folder(model)
    catalogue = load_catalogue()
    run = Run(out, console)
    data = data_stage(run, recipe, catalogue, _HELD_OUT)

    def evaluate(to: Path) -> None:
        candidate = Candidate(Path(model).name, folder, folder)
        write_report(evaluate_models(recipe, catalogue, data, [candidate], to, console), to / "report")

    evaluated = run.stage(
        "evaluate",
        after=["data"],
        inputs={
            "evaluate": recipe.evaluate,
            "seed": recipe.seed,
            "measures": Scores.__struct_fields__,
            "files": {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.is_file()},
        },
        action=evaluate,
    )
    evaluation = read_evaluation(evaluated / "report")
    for table in [*score_tables(evaluation), *detail_tables(evaluation)]:
        console.print(table.rich())
    write_report(evaluation, out)
    console.print(f"report: {out / 'report.html'}")


def _checkpoint_folder(model: str) -> Path:
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise RecipeError(f"{model} is not a checkpoint: it has no config.json; name the folder that has one")
        return Path(model)
    try:
        return Path(snapshot_download(model, allow_patterns=list(_CHECKPOINT_FILES)))
    except (HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"cannot load {model!r}: neither a folder nor a model of the hub ({reason})") from error
