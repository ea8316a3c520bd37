"""Which shape a student should have: some that fit a budget, each cut from the teacher and distilled for a little.

Minitron (2407.14679) ranks its candidates in this way, after a light retraining of each: before any, the order says
little. The answer is a Pareto table, not a winner: what a shape may cost is for the user to weigh.
"""

import statistics
import time
from pathlib import Path

import msgspec
import torch
from accelerate import init_empty_weights
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from bundle.rules import load_catalogue
from compress.data.tokens import load_tokenizer
from compress.distill import train_student
from compress.errors import RecipeError
from compress.pipeline import Pipeline, Prepared
from compress.recipe import NF4_BLOCK, Recipe, Shape, Student
from compress.recover import mean_kl
from compress.stages import Run
from compress.student import pruned_config, start_student

_DEPTHS = (1.0, 0.75, 0.5, 0.25)
_WIDTHS = (1.0, 0.75, 0.5, 0.375, 0.25)
_WIDTHS_EACH = 2  # at each depth the widest that fit the budget
_TIMED_TOKENS = 24


class Trial(msgspec.Struct, frozen=True):
    """One shape and what it came to. `best`: no other is at least as good in every column and better in one."""

    shape: Shape
    parameters: int
    milliseconds_per_token: float  # one answer, one token after another, in PyTorch on this machine
    kl: float  # KL(teacher ‖ student) in nats, the mean over answer tokens of validation code
    best: bool = False


def search_shape(
    recipe: Recipe,
    folder: Path,
    console: Console,
    max_parameters: int,
    max_milliseconds: float | None,
    steps: int,
) -> list[Trial]:
    """Try student shapes, print a table of them, and write it to `folder`/search/shapes.json.

    Data, teacher and soft labels are the run's own stages, so a later `run` of the recipe finds them done. Each
    shape is a stage too: a search that is cut off goes on with the next one.

    Args:
        folder: the run folder.
        max_parameters: of a student, embeddings included.
        max_milliseconds: a token; slower shapes are left out of the table. None: any.
        steps: optimiser steps each shape is distilled for.

    Raises:
        RecipeError: no shape fits the budget.
    """
    pipeline = Pipeline(recipe, Run(folder, console), load_catalogue(), console)
    prepared = pipeline.prepare()
    shapes = shapes_within(AutoConfig.from_pretrained(prepared.teacher), max_parameters)
    (folder / "search").mkdir(exist_ok=True)
    trials = [_try(pipeline, prepared, shape, steps) for shape in shapes]
    if max_milliseconds is not None:
        trials = [trial for trial in trials if trial.milliseconds_per_token <= max_milliseconds]
    if not trials:
        raise RecipeError(
            f"no shape tried is as fast as {max_milliseconds:g} ms a token on this machine; allow more, or lower "
            "--max-parameters to try smaller shapes"
        )
    trials = mark_best(trials)
    (folder / "search" / "shapes.json").write_bytes(msgspec.json.format(msgspec.json.encode(trials), indent=2))
    console.print(_table(trials, steps))
    return trials


def shapes_within(teacher: PretrainedConfig, max_parameters: int) -> list[Shape]:
    """Shapes that can be cut from a teacher and quantised, at each depth the widest within the budget.

    Raises:
        RecipeError: none is small enough.
    """
    shapes: list[Shape] = []
    smallest = None
    for depth in _DEPTHS:
        fitting: list[Shape] = []
        for width in _WIDTHS:
            shape = _scaled(teacher, depth, width)
            smallest = min(smallest or count_parameters(teacher, shape), count_parameters(teacher, shape))
            if count_parameters(teacher, shape) <= max_parameters and shape not in [*shapes, *fitting]:
                fitting.append(shape)
        shapes += fitting[:_WIDTHS_EACH]
    if not shapes:
        raise RecipeError(
            f"--max-parameters {max_parameters:,}: the smallest shape this search cuts from the teacher has "
            f"{smallest:,} parameters, embeddings included"
        )
    return shapes


def count_parameters(teacher: PretrainedConfig, shape: Shape) -> int:
    """Of a student cut from the teacher, embeddings included."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(pruned_config(teacher, shape))
    model.tie_weights()
    return model.num_parameters()


def mark_best(trials: list[Trial]) -> list[Trial]:
    """The trials with those marked that no other beats: the Pareto front of parameters, time and KL."""

    def beaten(one: Trial) -> bool:
        costs = _costs(one)
        return any(
            all(theirs <= own for theirs, own in zip(_costs(other), costs, strict=True)) and _costs(other) != costs
            for other in trials
        )

    return [msgspec.structs.replace(trial, best=not beaten(trial)) for trial in trials]


def _costs(trial: Trial) -> tuple[float, float, float]:
    return trial.parameters, trial.milliseconds_per_token, trial.kl


def _scaled(teacher: PretrainedConfig, depth: float, width: float) -> Shape:
    """The teacher's shape, scaled: sizes in whole NF4 blocks, and as many heads to a key-value head as it has."""

    def blocks(size: int) -> int:
        return max(round(size * width / NF4_BLOCK), 1) * NF4_BLOCK

    kv_heads = max(round(teacher.num_key_value_heads * width), 1)
    return Shape(
        num_hidden_layers=max(round(teacher.num_hidden_layers * depth), 1),
        hidden_size=min(blocks(teacher.hidden_size), teacher.hidden_size),
        intermediate_size=min(blocks(teacher.intermediate_size), teacher.intermediate_size),
        num_attention_heads=kv_heads * (teacher.num_attention_heads // teacher.num_key_value_heads),
        num_key_value_heads=kv_heads,
        max_position_embeddings=teacher.max_position_embeddings,
    )


def _try(pipeline: Pipeline, prepared: Prepared, shape: Shape, steps: int) -> Trial:
    recipe = msgspec.structs.replace(pipeline.recipe, student=Student(prune=shape))
    train = msgspec.structs.replace(recipe.train, max_steps=steps)

    def action(out: Path) -> None:
        if not (out / "start" / "model").is_dir():
            (out / "start").mkdir(exist_ok=True)
            start_student(recipe, pipeline.catalogue, prepared.teacher, pipeline.labelled(), out / "start")
        start = out / "start" / "model"
        train_student(
            start, load_tokenizer(start), pipeline.dataset(), train, recipe.distill, prepared.asked(), recipe.seed, out
        )
        student = _load(out / "model")
        trial = Trial(
            shape=shape,
            parameters=student.num_parameters(),
            milliseconds_per_token=_milliseconds_per_token(student),
            kl=mean_kl(
                _load(prepared.teacher),
                student,
                pipeline.read_dataset(prepared.data, prepared.teacher, "validation"),
            ),
        )
        (out / "trial.json").write_bytes(msgspec.json.encode(trial))

    sizes = (shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size, shape.num_key_value_heads)
    name = f"search/{'x'.join(map(str, sizes))}"
    folder = pipeline.run_folder.stage(
        name,
        after=prepared.made_by,
        inputs={"shape": shape, "train": train, "distill": recipe.distill, "seed": recipe.seed},
        action=action,
    )
    return msgspec.json.decode((folder / "trial.json").read_bytes(), type=Trial)


def _load(checkpoint: Path) -> PreTrainedModel:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map=device).eval()


@torch.no_grad()
def _milliseconds_per_token(model: PreTrainedModel) -> float:
    """The median over tokens that are decoded one after another behind a short prompt."""
    output = model(input_ids=torch.zeros(1, 32, dtype=torch.long, device=model.device), use_cache=True)
    times = []
    for _ in range(_TIMED_TOKENS):
        token = output.logits[:, -1:].argmax(-1)
        begun = time.perf_counter()
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        output.logits[0, -1, 0].item()  # reading a value waits for the device
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


def _table(trials: list[Trial], steps: int) -> Table:
    table = Table(title=f"student shapes after {steps} steps; * no other shape is at least as good in all columns")
    names = ("", "layers", "hidden", "MLP", "heads / KV", "parameters", "ms / token", "KL from the teacher")
    for name in names:
        table.add_column(name, justify="right")
    for trial in sorted(trials, key=lambda trial: trial.kl):
        shape = trial.shape
        table.add_row(
            "*" if trial.best else "",
            str(shape.num_hidden_layers),
            str(shape.hidden_size),
            str(shape.intermediate_size),
            f"{shape.num_attention_heads} / {shape.num_key_value_heads}",
            f"{trial.parameters:,}",
            f"{trial.milliseconds_per_token:.2f}",
            f"{trial.kl:.4f}",
        )
    return table
