"""deepcode-compress: from a teacher and code to a small student in a checked bundle."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from compress.code_search.recipe import SearchRecipe
from compress.console import make_console, quiet_libraries
from compress.errors import GateError, RecipeError, StageError
from compress.recipe_file import load_any_recipe, load_recipe


def main(arguments: list[str] | None = None) -> int:
    """Entry point.

    Exit codes: 0 done, 1 below the gate (for `doctor`: something is wrong), 2 the recipe or the command line is
    wrong, 3 a stage could not do its work.
    """
    options = _parser().parse_args(arguments)
    console = make_console()
    try:
        return options.command(options, console)
    except RecipeError as error:
        _complain(str(error))
        return 2
    except GateError as error:
        _complain(str(error))
        return 1
    except StageError as error:
        _complain(str(error))
        return 3


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False).print("error:", message, soft_wrap=True, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deepcode-compress", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="do every stage of a recipe; what is done already is skipped")
    run.add_argument("recipe", type=Path)
    run.add_argument("--out", type=Path, help="the run folder (default: runs/<recipe's name>)")
    _add_overrides(run)
    run.add_argument("--from", metavar="STAGE", dest="rerun_from", help="redo this stage and all after it")
    run.set_defaults(command=_run)
    doctor = commands.add_parser("doctor", help="look at a recipe, its models and this machine before any work")
    doctor.add_argument("recipe", type=Path)
    doctor.add_argument("--out", type=Path, help="where the run would be (default: runs/<recipe's name>)")
    _add_overrides(doctor)
    doctor.set_defaults(command=_doctor)
    search = commands.add_parser("search-shape", help="try student shapes within a budget, briefly; print a table")
    search.add_argument("recipe", type=Path)
    search.add_argument("--max-parameters", type=float, required=True, help="of a student, as in 1.5e9")
    search.add_argument("--max-milliseconds", type=float, help="a token on this machine; slower shapes are left out")
    search.add_argument("--steps", type=int, default=100, help="optimiser steps a shape (default: 100)")
    search.add_argument("--out", type=Path, help="the run folder (default: runs/<recipe's name>)")
    _add_overrides(search)
    search.set_defaults(command=_search)
    evaluate = commands.add_parser("evaluate", help="score a checkpoint on a recipe's held-out projects")
    evaluate.add_argument("model", help="a checkpoint's folder, or a hub name")
    evaluate.add_argument("--recipe", type=Path, required=True, help="whose corpus and `evaluate` section to use")
    evaluate.add_argument("--out", type=Path, help="default: runs/<recipe's name>/evaluate-<model's name>")
    _add_overrides(evaluate)
    evaluate.set_defaults(command=_evaluate)
    pack = commands.add_parser("pack", help="make one file of a bundle, with its checksum and signature, to release it")
    pack.add_argument("bundle", type=Path)
    pack.add_argument("--out", type=Path, default=Path("dist"), help="the folder to write to (default: dist)")
    pack.add_argument("--key", type=Path, help="a minisign secret key to sign with (default: no new signature)")
    pack.set_defaults(command=_pack)
    new_key = commands.add_parser("new-key", help="make a minisign key to sign bundles with, without a password")
    new_key.add_argument("file", type=Path, help="for the secret key; the public one is written to FILE.pub")
    new_key.set_defaults(command=_new_key)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a key of the recipe: train.learning_rate=1.0e-4",
    )


def _run(options: argparse.Namespace, console: Console) -> int:
    recipe = load_any_recipe(options.recipe, options.overrides)
    folder = options.out or Path("runs") / recipe.name
    # torch takes seconds to import; a wrong recipe should not
    if isinstance(recipe, SearchRecipe):
        with console.status("loading"):
            quiet_libraries()
            from compress.code_search.pipeline import run_search_recipe

        run_search_recipe(recipe, folder, console, options.rerun_from)
        return 0
    with console.status("loading"):
        quiet_libraries()
        from compress.pipeline import run_recipe

    run_recipe(recipe, folder, console, options.rerun_from)
    return 0


def _doctor(options: argparse.Namespace, console: Console) -> int:
    recipe = load_any_recipe(options.recipe, options.overrides)
    folder = options.out or Path("runs") / recipe.name
    with console.status("looking"):
        quiet_libraries()
        from compress.doctor import diagnose, is_well, table

        if isinstance(recipe, SearchRecipe):
            from compress.code_search.doctor import diagnose_search

            checks = diagnose_search(recipe, folder)
        else:
            checks = diagnose(recipe, folder)
    console.print(table(recipe.name, checks))
    return 0 if is_well(checks) else 1


def _search(options: argparse.Namespace, console: Console) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    with console.status("loading"):
        quiet_libraries()
        from compress.shape_search import search_shape

    search_shape(
        recipe,
        options.out or Path("runs") / recipe.name,
        console,
        int(options.max_parameters),
        options.max_milliseconds,
        options.steps,
    )
    return 0


def _evaluate(options: argparse.Namespace, console: Console) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    with console.status("loading"):
        quiet_libraries()
        from compress.evaluation.checkpoint import evaluate_checkpoint

    name = Path(options.model).name
    evaluate_checkpoint(options.model, recipe, options.out or Path("runs") / recipe.name / f"evaluate-{name}", console)
    return 0


def _pack(options: argparse.Namespace, console: Console) -> int:
    from compress.packing import pack

    console.print(pack(options.bundle, options.out, options.key), soft_wrap=True)
    return 0


def _new_key(options: argparse.Namespace, console: Console) -> int:
    from compress.packing import make_key

    console.print(make_key(options.file), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
