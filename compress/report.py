"""The numbers of a run as report.json, and as one page with plots that opens without a network."""

import io
from pathlib import Path

import jinja2
import matplotlib
import msgspec

from compress.evaluate import Evaluation, Row

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
planted defect. A finding is right when its rule and its line are.</p>
<p class="{{ 'passed' if e.gate_passed else 'failed' }}">Gate:
{{ 'passed' if e.gate_passed else e.failures | join('; ') }}.</p>
<table><tr><th>model</th><th>defects P</th><th>R</th><th>F1</th><th>hygiene F1</th><th>fix exact</th>
<th>false / 100 clean</th><th>valid</th><th>length kept</th><th>terms kept</th><th>parameters</th><th>MB on disk</th>
<th>peak MB</th><th>tokens/s</th><th>units/s</th></tr>
{% for r in e.rows %}<tr><td>{{ r.model }}</td><td>{{ '%.3f' % r.precision }}</td><td>{{ '%.3f' % r.recall }}</td>
<td>{{ '%.3f' % r.f1 }}</td><td>{{ '%.3f' % r.hygiene_f1 }}</td><td>{{ '%.3f' % r.scores.fix_exact }}</td>
<td>{{ '%.1f' % r.scores.false_per_100_clean }}</td><td>{{ '%.3f' % r.scores.validity }}</td>
<td>{{ '%.2f' % r.length_retention }}</td><td>{{ '%.2f' % r.term_retention }}</td>
<td>{{ '%.2f' % (r.parameters / 1e6) }}M</td><td>{{ '%.1f' % (r.bytes_on_disk / 1e6) }}</td>
<td>{{ '%.0f' % (r.peak_memory_bytes / 1e6) }}</td><td>{{ '%.0f' % r.tokens_per_second }}</td>
<td>{{ '%.1f' % r.units_per_second }}</td></tr>
{% endfor %}</table>
<h2>Quality and size</h2>{{ quality }}
<h2>By rule, {{ e.rows[0].model }} and {{ e.rows[-1].model }}</h2>
<table><tr><th>rule</th><th>true</th><th>P</th><th>R</th><th>F1</th><th>P</th><th>R</th><th>F1</th></tr>
{% for rule, d in e.rows[0].scores.by_rule.items() %}{% set s = e.rows[-1].scores.by_rule[rule] %}
<tr><td>{{ rule }}</td><td>{{ d.found + d.missed }}</td>
{% for x in (d, s) %}<td>{{ '%.2f' % x.precision }}</td><td>{{ '%.2f' % x.recall }}</td><td>{{ '%.2f' % x.f1 }}</td>
{% endfor %}</tr>{% endfor %}</table>
</body></html>
"""


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Write report.json and report.html into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    quality = jinja2.utils.markupsafe.Markup(_quality_plot(evaluation.rows))
    (out / "report.html").write_text(page.render(e=evaluation, quality=quality), encoding="utf-8")
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
