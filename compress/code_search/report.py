"""The numbers of a search run as report.json, as tables, and as one page that opens without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import yaml
from markupsafe import Markup

from compress.code_search.evaluate import SearchEvaluation, SearchRow
from compress.evaluation.scores import Estimate
from compress.evaluation.tables import Grid
from compress.plots import training_curves
from compress.training_log import History

_TEMPLATE = Path(__file__).parents[1] / "templates" / "search-report.html.jinja"
REPORT_FILE = "report.json"


def search_tables(evaluation: SearchEvaluation) -> list[Grid]:
    """Every way to search in one line: what it finds, and what it costs; and embeddings cut short."""
    units, kept = evaluation.units, evaluation.retention
    title = f"{evaluation.name}: {units['queries']} queries over {units['projects']} held-out projects"
    columns = ("model", "MRR@10", "recall@1", "@5", "@10", "parameters", "MB", "bytes/unit", "texts/s")
    tables = [Grid(title, columns, [_line(row) for row in evaluation.rows])]
    widths = sorted({width for row in evaluation.rows for width in row.by_width}, reverse=True)
    if widths:
        rows = [
            (row.model, f"{row.scores.mrr.value:.3f}", *(f"{row.by_width[width]:.3f}" for width in widths))
            for row in evaluation.rows
            if row.by_width
        ]
        tables.append(Grid("MRR@10 of embeddings cut short", ("model", "whole", *map(str, widths)), rows))
    shares = (f"{kept[name]:.3f}" for name in ("mrr_retention", "recall_at_10_retention", "encode_time", "bytes"))
    tables.append(
        Grid(
            "The int8 student beside its teacher, as shares",
            ("", "MRR@10", "recall@10", "encode time", "bytes"),
            [("student, int8 / teacher", *shares)],
        )
    )
    return tables


def _line(row: SearchRow) -> tuple[str, ...]:
    def estimate(value: Estimate) -> str:
        return f"{value.value:.3f} ({value.low:.3f}-{value.high:.3f})"

    scores = row.scores
    shown = [scores.recall_at_1, scores.recall_at_5, scores.recall_at_10]
    return (
        row.model,
        estimate(scores.mrr),
        *(f"{each.value:.3f}" for each in shown),
        f"{row.parameters / 1e6:.2f}M" if row.parameters is not None else "",
        f"{row.bytes_on_disk / 1e6:.1f}" if row.bytes_on_disk is not None else "",
        f"{row.bytes_per_embedding:,}" if row.bytes_per_embedding is not None else "",
        f"{row.texts_per_second:.0f}" if row.texts_per_second is not None else "",
    )


def write_search_report(
    evaluation: SearchEvaluation, histories: Mapping[str, History], recipe: Mapping[str, Any], out: Path
) -> None:
    """Write report.json and report.html into `out`.

    Args:
        histories: each training loop's log, by its name.
    """
    out.mkdir(parents=True, exist_ok=True)
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    text = page.render(
        e=evaluation,
        tables=search_tables(evaluation),
        curves=[Markup(curve) for curve in training_curves(histories)],
        recipe=yaml.safe_dump(msgspec.to_builtins(recipe), sort_keys=False, allow_unicode=True),
    )
    (out / "report.html").write_text(text, encoding="utf-8")
    staged = out / f"{REPORT_FILE}.tmp"
    staged.write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=2))
    staged.replace(out / REPORT_FILE)


def read_search_evaluation(report: Path) -> SearchEvaluation:
    """The evaluation a run wrote."""
    return msgspec.json.decode((report / REPORT_FILE).read_bytes(), type=SearchEvaluation)
