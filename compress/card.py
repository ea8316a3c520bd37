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
from compress.recipe import Recipe

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

Made by `deepcode-compress run recipes/{{ recipe.name }}.yaml`, seed {{ recipe.seed }}: {{ steps }} optimiser steps
in its last loop, of up to {{ recipe.teacher.train.max_tokens_per_batch }} tokens,
over {{ data.examples.train }} training units.

![learning curve](learning-curve.svg)

## Scores

On {{ units.projects }} held-out projects, {{ units.natural }} units as written and {{ units.planted }} with a planted
defect. A finding is right when its rule and its line are. "Always clean" scores 0 on every rule.

| | precision | recall | F1 |
|---|---|---|---|
| injected defects | {{ f(s.injected.precision) }} | {{ f(s.injected.recall) }} | {{ f(s.injected.f1) }} |
| hygiene | {{ f(s.hygiene.precision) }} | {{ f(s.hygiene.recall) }} | {{ f(s.hygiene.f1) }} |

Right rule on any line: {{ f(s.rule_recall) }}. Fix right to the character, where rule and line are:
{{ f(s.fix_exact) }}. False findings per 100 clean units, before any threshold: {{ '%.1f' % s.false_per_100_clean }}.
Answers that are valid without constrained decoding: {{ f(s.validity) }}.

| rule | true | precision | recall | F1 |
|---|---|---|---|---|
{% for rule, d in s.by_rule.items() -%}
| {{ rule }} | {{ d.found + d.missed }} | {{ f(d.precision) }} | {{ f(d.recall) }} | {{ f(d.f1) }} |
{% endfor %}
Rates on planted defects are not rates on real code: real defects are rarer and stranger.

## Corpus

{{ data.files }} files; {{ data.duplicate_units }} duplicate units dropped. Projects are held out whole; these were
never trained on: {{ data.held_out_projects | join(', ') }}.

| project | source | licence it declares |
|---|---|---|
{% for p in data.projects -%}
| {{ p.project }} | {{ p.source }} | {{ p.licence }} |
{% endfor %}
"""


def publish_teacher(recipe: Recipe, teacher: Path, data: Path, evaluation: Evaluation, out: Path) -> None:
    """Write the teacher's bf16 weights (shards below 16 MB), tokenizer and README.md into `out`."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16)
    model.save_pretrained(out, max_shard_size="15MB")
    load_tokenizer(teacher).save_pretrained(out)
    summary = msgspec.json.decode((data / "summary.json").read_bytes(), type=DataSummary)
    history = msgspec.json.decode((teacher / "training.json").read_bytes())["log_history"]
    (out / "learning-curve.svg").write_text(_learning_curve(history), encoding="utf-8")
    shutil.copy(teacher / "training.json", out / "training.json")
    card = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(_CARD)
    row = evaluation.rows[0]
    text = card.render(
        recipe=recipe,
        data=summary,
        units=evaluation.units,
        row=row,
        s=row.scores,
        f="{:.3f}".format,
        steps=history[-1]["step"],
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _learning_curve(history: list[dict]) -> str:
    """Training loss over optimiser steps, as SVG."""
    points = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    figure, axes = plt.subplots(figsize=(8, 3))
    axes.plot(*zip(*points, strict=True), linewidth=1)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("training loss (weighted)")
    axes.set_ylim(bottom=0)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", bbox_inches="tight")
    plt.close(figure)
    return drawing.getvalue()
