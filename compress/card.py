"""A teacher ready to be shipped: bf16 weights, tokenizer, and a model card written from its own run."""

import io
import shutil
from pathlib import Path

import jinja2
import matplotlib
import msgspec
import torch
from transformers import AutoModelForCausalLM

from compress.data.build import DataSummary
from compress.data.tokens import load_tokenizer
from compress.evaluate import Evaluation
from compress.evaluation.tables import detail_tables
from compress.recipe import Recipe
from compress.training_log import TRAINING_LOG, History, training_history

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_CARD = """\
---
language: code
license: apache-2.0
library_name: transformers
---
# {{ recipe.name }}

A Qwen2-architecture model of {{ '%.2f' % (row.parameters / 1e6) }}M parameters, trained from scratch to find defects
in Python units. It is the built-in teacher, so that the toolchain can be tried without a model hub.

Made by `deepcode-compress run recipes/{{ recipe.name }}.yaml`, seed {{ recipe.seed }}, from {{ data.examples.train }}
training units:

{% for each in loops -%}
- {{ each.title }}: {{ each.steps }} optimiser steps
{%- if each.tokens %} of up to {{ each.tokens }} tokens{% endif %}
{% endfor %}
{%- if continued %}- it went on from the weights that `teacher.continue_from` names: {{ continued }}
{% endif %}
![learning curve](learning-curve.svg)

## Scores

On {{ units.projects }} held-out projects, {{ units.natural }} units as written and {{ units.planted }} with a planted
defect. A finding is right when its rule and its line are. What each measure means is in `docs/evaluation.md`.
At the default thresholds, {{ '%.1f' % shown.false_per_100_clean.value }} false findings are shown per 100 clean units.
{% for grid in details %}
### {{ grid.title }}

{{ grid.markdown() }}
{% endfor %}
Rates on planted defects are not rates on real code: real defects are rarer and stranger. The hygiene truth is what
ruff says, so a model can at best be as good at it as ruff.

## Corpus

{{ data.files }} files; {{ data.duplicate_units }} duplicate units dropped. Projects are held out whole; these were
never trained on: {{ data.held_out_projects | join(', ') }}.

| project | source | licence it declares |
|---|---|---|
{% for p in data.projects -%}
| {{ p.project }} | {{ p.source }} | {{ p.licence }} |
{% endfor %}
"""


class Loop(msgspec.Struct, frozen=True):
    """One training loop as the trainer logged it."""

    title: str
    tokens: int | None  # in a step, at most
    history: History

    @property
    def steps(self) -> int:
        return int(self.history[-1]["step"])


def publish_teacher(recipe: Recipe, teacher: Path, data: Path, evaluation: Evaluation, out: Path) -> None:
    """Write the teacher's bf16 weights (shards below 16 MB), tokenizer and README.md into `out`.

    Args:
        teacher: a checkpoint with training.json in it; a first loop's checkpoint is beside it in `first`.
    """
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16)
    model.save_pretrained(out, max_shard_size="15MB")
    load_tokenizer(teacher).save_pretrained(out)
    summary = msgspec.json.decode((data / "summary.json").read_bytes(), type=DataSummary)
    loops = training_loops(recipe, teacher)
    (out / "learning-curve.svg").write_text(_learning_curve(loops), encoding="utf-8")
    shutil.copy(teacher / TRAINING_LOG, out / TRAINING_LOG)
    card = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(_CARD)
    row = evaluation.rows[0]
    continued = recipe.teacher.continue_from
    text = card.render(
        recipe=recipe,
        data=summary,
        units=evaluation.units,
        row=row,
        shown=row.shown or row.scores,
        loops=loops,
        continued=continued and Path(continued).name,
        details=detail_tables(evaluation),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def training_loops(recipe: Recipe, teacher: Path) -> list[Loop]:
    """The loops a teacher went through in this run, the first one first.

    A teacher that went on from other weights has the loop that made those, where they tell of it, for its first.
    """
    train, focus = recipe.teacher.train, recipe.teacher.focus
    tokens = train.max_tokens_per_batch if train is not None else None
    if focus is None:
        return [Loop("training", tokens, training_history(teacher))]
    second = Loop("the analysis above all", focus.max_tokens_per_batch, training_history(teacher))
    if recipe.teacher.continue_from is not None:
        before = training_history(Path(recipe.teacher.continue_from))
        return [*([Loop("the weights it went on from", None, before)] if before else []), second]
    first = Loop("the code above all", tokens, training_history(teacher.with_name("first")))
    return [first, second]


def _learning_curve(loops: list[Loop]) -> str:
    """Training loss over optimiser steps, a panel for each loop because they weigh their losses apart, as SVG."""
    figure, panels = plt.subplots(1, len(loops), figsize=(8, 3), squeeze=False)
    for axes, loop in zip(panels[0], loops, strict=True):
        points = [(entry["step"], entry["loss"]) for entry in loop.history if "loss" in entry]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_title(loop.title, fontsize=10)
        axes.set_xlabel("optimiser step")
        axes.set_ylim(bottom=0)
    panels[0][0].set_ylabel("training loss (weighted)")
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", bbox_inches="tight")
    plt.close(figure)
    return drawing.getvalue()
