"""The numbers of a run as report.json, and as one page that opens without a network, on a phone and on paper."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import msgspec
import yaml
from markupsafe import Markup

from compress.evaluate import Evaluation, Row
from compress.evaluation.scores import Estimate
from compress.evaluation.tables import Grid, detail_tables, score_tables
from compress.plots import quality_plot, training_curves
from compress.samples import Sample
from compress.training_log import History

_TEMPLATE = Path(__file__).with_name("templates") / "report.html.jinja"


class Story(NamedTuple):
    """How the models came to be what was measured, for the page alone."""

    histories: Mapping[str, History]  # each training loop's log, by its name
    samples: Sequence[Sample]
    recipe: Mapping[str, Any]
    lineage: Mapping[str, Any]


NO_STORY = Story({}, [], {}, {})


class Bars(NamedTuple):
    """Bars of one measure. Each row: its label, its bars' lengths from 0 to 1, and what is written beside them."""

    title: str
    names: tuple[str, ...]  # of the bars of a row
    rows: list[tuple[str, tuple[float, ...], str]]


def write_report(evaluation: Evaluation, out: Path, story: Story = NO_STORY) -> None:
    """Write report.json and report.html into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    page = jinja2.Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    rows = evaluation.rows
    text = page.render(
        e=evaluation,
        intervals=_intervals(rows),
        scores=score_tables(evaluation),
        details=detail_tables(evaluation),
        costs=_costs(rows),
        rules=_rules(rows),
        quality=Markup(quality_plot([(row.model, row.bytes_on_disk / 1e6, row.f1) for row in rows])),
        curves=[Markup(curve) for curve in training_curves(story.histories)],
        samples=story.samples,
        recipe=_plain(story.recipe),
        lineage=_plain(story.lineage),
    )
    (out / "report.html").write_text(text, encoding="utf-8")
    staged = out / "report.json.tmp"
    staged.write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=2))
    staged.replace(out / "report.json")


def _plain(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(msgspec.to_builtins(content), sort_keys=False, allow_unicode=True) if content else ""


_MEASURES: dict[str, Callable[[Row], tuple[Estimate, int]]] = {
    "defects F1": lambda row: (row.scores.f1, 3),
    "rule and line": lambda row: (row.scores.joint, 3),
    "hygiene F1": lambda row: (row.scores.hygiene_f1, 3),
    "false / 100 clean": lambda row: (row.scores.false_per_100_clean, 1),
    "valid": lambda row: (row.scores.validity, 3),
}


def _intervals(rows: Sequence[Row]) -> Grid:
    def cell(estimate: Estimate, digits: int) -> str:
        value, low, high = (f"{number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
        return f"{value} ({low}-{high})"

    cells = [(row.model, *(cell(*measure(row)) for measure in _MEASURES.values())) for row in rows]
    return Grid("Scores with 95% intervals", ("model", *_MEASURES), cells)


def _costs(rows: Sequence[Row]) -> list[Bars]:
    def bars(title: str, measure: Callable[[Row], float], digits: int = 0) -> Bars:
        most = max(measure(row) for row in rows) or 1.0
        return Bars(title, ("",), [(row.model, (measure(row) / most,), f"{measure(row):,.{digits}f}") for row in rows])

    return [
        bars("megabytes on disk", lambda row: row.bytes_on_disk / 1e6, 1),
        bars("tokens a second", lambda row: row.tokens_per_second),
        bars("megabytes of memory at the peak", lambda row: row.peak_memory_bytes / 1e6),
    ]


def _rules(rows: Sequence[Row]) -> Bars:
    """F1 of every rule: the first model, the teacher, and the last, which is shipped."""
    shown = [rows[0], rows[-1]] if len(rows) > 1 else [rows[0]]
    table = []
    for rule in rows[0].scores.by_rule:
        values = tuple(row.scores.by_rule[rule].f1 for row in shown)
        table.append((rule, values, " / ".join(f"{value:.2f}" for value in values)))
    return Bars("F1", tuple(row.model for row in shown), table)
