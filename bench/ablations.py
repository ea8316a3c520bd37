"""What each part of distillation is worth: one recipe with one thing changed at a time, over several seeds.

    python -m bench.ablations                                   # recipes/nano.yaml, seeds 7, 8 and 9
    python -m bench.ablations --only "KL only" "hidden states"  # some of the changes
    python -m bench.ablations --set train.max_steps=150         # all of them with half the training

The student before export is scored, on the recipe's held-out projects. Data, teacher and student of a seed are made
once, and so is every later stage that a change leaves as it was. It can be cut off and started again: what is done is
kept.
"""

import argparse
import shutil
from pathlib import Path
from statistics import mean, stdev

import msgspec
import yaml
from rich.console import Console
from rich.table import Table

from compress.console import quiet_libraries
from compress.evaluate import Evaluation, Row
from compress.pipeline import read_evaluation, run_recipe
from compress.recipe_file import load_recipe

# The name of a change, and what it sets in the recipe; {shape} is the shape the recipe's student is pruned to.
CHANGES: dict[str, list[str]] = {
    "as the recipe is": [],
    "labels only": ["distill.alpha=1"],
    "KL only": ["distill.alpha=0"],
    "alpha from 0.5 over 0.3 to 0.1": ["distill.alpha_schedule=[0.5, 0.3, 0.1]"],
    "alpha from 0.5 to 0.1 along a cosine": ["distill.alpha_schedule={type: cosine, start: 0.5, end: 0.1}"],
    "T = 1": ["distill.temperature=1"],
    "T = 2": ["distill.temperature=2"],
    "T = 3": ["distill.temperature=3"],
    "sampled labels": ["distill.labels=sampled"],
    "online teacher": ["distill.teacher=online"],
    "reverse KL": ["distill.objective=reverse_kl"],
    "hidden states": ["distill.teacher=online", "distill.hidden={kind: cosine}"],
    "attention relations": ["distill.teacher=online", "distill.attention={weight: 0.1}"],
    "hidden states and attention": [
        "distill.teacher=online",
        "distill.hidden={kind: cosine}",
        "distill.attention={weight: 0.1}",
    ],
    "random start": ["student.prune=null", "student.scratch={shape}"],
    "then on-policy": [
        "distill.on_policy={train: {learning_rate: 1.0e-4, max_steps: 30, per_device_train_batch_size: 8}}"
    ],
}
_FIXED = [
    "distill.baseline=false",
    "quantize=null",
    "export.onnx={precision: fp32}",
    "evaluate.validation_factor=1",
    "evaluate.gate={}",
]
# What a change does to one of these shows in the stage's record: it is then made anew.
_SHARED = ("data", "teacher", "logits", "student", "distill")


def distilled(evaluation: Evaluation) -> Row:
    """The student after its last phase, before any export."""
    return [row for row in evaluation.rows if row.model.startswith("student") and "ONNX" not in row.model][-1]


def overrides(recipe: Path, change: str, seed: int, everywhere: list[str]) -> list[str]:
    """What `deepcode-compress run --set` would say for one change and one seed; `everywhere` is said for all."""
    student = load_recipe(recipe).student
    assert student is not None and student.prune is not None, "ablations are of a recipe that prunes its student"
    shape = yaml.safe_dump(msgspec.structs.asdict(student.prune), default_flow_style=True, width=1000).strip()
    return [*_FIXED, *everywhere, f"seed={seed}", *(override.replace("{shape}", shape) for override in CHANGES[change])]


def run(recipe: Path, change: str, seed: int, everywhere: list[str], folder: Path, console: Console) -> Row:
    """One run with one change and one seed."""
    out = folder / f"{seed}-{change.replace(' ', '-').replace('=', '')}"
    shared = folder / f"{seed}-as-the-recipe-is"
    if not out.exists() and (shared / "stages").is_dir():
        for name in _SHARED:
            shutil.copytree(shared / name, out / name)
            for record in (shared / "stages").glob(f"{name}.*.json"):
                (out / "stages").mkdir(exist_ok=True)
                shutil.copy(record, out / "stages")
    run_recipe(load_recipe(recipe, overrides(recipe, change, seed, everywhere)), out, console)
    return distilled(read_evaluation(out / "evaluate" / "report"))


def table(rows: dict[str, list[Row]]) -> Table:
    """Mean and standard deviation over seeds."""
    shown = Table(title="what each change is worth", title_justify="left")
    columns = ("F1, planted defects", "hygiene F1", "false / 100 clean", "valid")
    for name in ("", *columns, "seeds"):
        shown.add_column(name, justify="left" if not name else "right")
    for change, found in rows.items():
        measured = [
            [row.f1 for row in found],
            [row.hygiene_f1 for row in found],
            [row.scores.false_per_100_clean.value for row in found],
            [row.scores.validity.value for row in found],
        ]
        spread = [f" ± {stdev(values):.3f}" if len(values) > 1 else "" for values in measured]
        cells = [f"{mean(values):.3f}{about}" for values, about in zip(measured, spread, strict=True)]
        shown.add_row(change, *cells, str(len(found)))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/nano.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="CHANGE")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipe, for all runs")
    options = parser.parse_args()
    quiet_libraries()
    console = Console(width=132)
    rows: dict[str, list[Row]] = {change: [] for change in options.only}
    for seed in options.seeds:
        for change in options.only:
            console.rule(f"{change}, seed {seed}")
            rows[change].append(run(options.recipe, change, seed, options.set, options.out, console))
            console.print(table({name: found for name, found in rows.items() if found}))


if __name__ == "__main__":
    main()
