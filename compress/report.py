"""The numbers of a run as report.json, and as one page with plots that opens without a network."""

import io
from pathlib import Path

import jinja2
import matplotlib
import msgspec

from compress.evaluate import Evaluation, Row
from compress.evaluation.tables import detail_tables, score_tables

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ e.name }}: report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } th, td { padding: .3rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ccc }
.passed { color: #0a6b2d } .failed { color: #b00020 } svg { max-width: 100%; height: auto }
</style></head><body>
<h1>{{ e.name }}</h1>
<p>Held-out projects: {{ e.units.projects }}, {{ e.units.natural }} units as written and {{ e.units.planted }} with a
planted defect. A finding is right when its rule and its line are. Intervals are 95%, over resampled units.</p>
{% if e.rows | length > 1 %}<p class="{{ 'passed' if e.gate_passed else 'failed' }}">Gate:
{{ 'passed' if e.gate_passed else e.failures | join('; ') }}.</p>{% endif %}
{% macro grid(g) %}<h2>{{ g.title }}</h2>
<table><tr>{% for c in g.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in g.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endmacro %}
{% for g in scores %}{{ grid(g) }}{% endfor %}
<h2>Quality and size</h2>{{ quality }}
{% for g in details %}{{ grid(g) }}{% endfor %}
</body></html>
"""


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Write report.json and report.html into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    quality = jinja2.utils.markupsafe.Markup(_quality_plot(evaluation.rows))
    (out / "report.html").write_text(
        page.render(e=evaluation, quality=quality, scores=score_tables(evaluation), details=detail_tables(evaluation)),
        encoding="utf-8",
    )
    staged = out / "report.json.tmp"
    staged.write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=2))
    staged.replace(out / "report.json")


def _quality_plot(rows: list[Row]) -> str:
    """F1 over megabytes, as SVG."""
    figure, axes = plt.subplots(figsize=(8, 4))
    for row in rows:
        size = row.bytes_on_disk / 1e6
        axes.scatter(size, row.f1)
        axes.annotate(row.model, (size, row.f1), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("megabytes on disk")
    axes.set_ylabel("F1 on injected defects")
    axes.set_ylim(0, 1)
    axes.margins(x=0.3)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", bbox_inches="tight")
    plt.close(figure)
    text = drawing.getvalue()
    return text[text.index("<svg") :]
