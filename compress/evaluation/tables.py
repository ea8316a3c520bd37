"""An evaluation as tables: the same ones in a terminal, in the report and in a model card."""

from collections.abc import Callable, Sequence

import msgspec
from rich.table import Table

from compress.evaluate import Evaluation
from compress.evaluation.measures import REALISTIC_RATE
from compress.evaluation.scores import Estimate, Scores


class Grid(msgspec.Struct, frozen=True):
    """A table of ready texts. The first column is a label; the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """For a model card."""
        rule = ("---",) * len(self.columns)
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.columns, rule, *self.rows))

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left")
        table.add_column(self.columns[0], no_wrap=True)
        for column in self.columns[1:]:
            table.add_column(column, justify="right")
        for row in self.rows:
            table.add_row(*row)
        return table


def score_tables(evaluation: Evaluation) -> list[Grid]:
    """Every model in one line of each: what was kept, and what it costs."""
    return [_quality(evaluation), _cost(evaluation)]


def detail_tables(evaluation: Evaluation) -> list[Grid]:
    """The last model alone: rules, intervals, synthetic beside natural, calibration, baselines."""
    return [
        _by_rule(evaluation),
        _overall(evaluation),
        _side_by_side(evaluation),
        _confidence(evaluation),
        _baselines(evaluation),
    ]


def _quality(evaluation: Evaluation) -> Grid:
    units = evaluation.units
    rows = []
    for row in evaluation.rows:
        scores = row.scores
        found = (row.precision, row.recall, row.f1, scores.fix_exact.value)
        hygiene = (scores.hygiene.precision, scores.hygiene.recall, scores.hygiene.f1)
        kept = (scores.validity.value, row.length_retention, row.term_retention)
        rows.append((row.model, *_shares(*found, *hygiene), f"{scores.false_per_100_clean.value:.1f}", *_shares(*kept)))
    return Grid(
        f"{evaluation.name}: quality on {units['projects']} held-out projects "
        f"({units['natural']} units as written, {units['planted']} with a planted defect)",
        ("model", "defects P", "R", "F1", "fix", "hygiene P", "R", "F1", "false/100 clean", "valid", "length", "terms"),
        rows,
    )


def _cost(evaluation: Evaluation) -> Grid:
    rows = [
        (
            row.model,
            f"{row.parameters / 1e6:.2f}M",
            f"{row.bytes_on_disk / 1e6:.1f}",
            f"{row.kv_bytes_per_token:,}",
            f"{row.peak_memory_bytes / 1e6:.0f}",
            f"{row.tokens_per_second:.0f}",
            f"{row.units_per_second:.1f}",
        )
        for row in evaluation.rows
    ]
    columns = ("model", "parameters", "MB on disk", "KV bytes/token", "peak MB", "tokens/s", "units/s")
    return Grid("what it costs", columns, rows)


def _by_rule(evaluation: Evaluation) -> Grid:
    row = evaluation.rows[-1]
    rows = []
    for rule, every in row.scores.by_rule.items():
        shown = (row.shown or row.scores).by_rule[rule]
        shares = (every.precision, every.recall, every.f1, evaluation.thresholds[rule], shown.precision, shown.recall)
        rows.append((rule, str(every.found + every.missed), *_shares(*shares)))
    columns = ("rule", "true", "P", "R", "F1", "threshold", "P at it", "R at it")
    return Grid(f"{row.model}: by rule", columns, rows)


# What a line says, its measure, and its digits after the point.
_RARE = f"1 defect in {1 / REALISTIC_RATE:.0f} units"
_OVERALL: tuple[tuple[str, Callable[[Scores], Estimate], int], ...] = (
    ("injected: joint rule and line", lambda scores: scores.joint, 3),
    ("injected: F1", lambda scores: scores.f1, 3),
    ("injected: macro F1", lambda scores: scores.macro_f1, 3),
    ("injected: rule named on any line", lambda scores: scores.rule_recall, 3),
    ("injected: fix exact, of those found", lambda scores: scores.fix_exact, 3),
    ("hygiene: F1", lambda scores: scores.hygiene_f1, 3),
    ("hygiene: macro F1", lambda scores: scores.macro_hygiene_f1, 3),
    ("false findings per 100 clean units", lambda scores: scores.false_per_100_clean, 1),
    (f"{_RARE}: precision", lambda scores: scores.realistic_precision, 3),
    (f"{_RARE}: recall", lambda scores: scores.joint, 3),
    ("valid answers", lambda scores: scores.validity, 3),
    ("valid without the grammar's help", lambda scores: scores.unaided, 3),
    ("findings dropped because the syntax contradicts them", lambda scores: scores.contradicted, 3),
)


def _overall(evaluation: Evaluation) -> Grid:
    row = evaluation.rows[-1]
    both = (row.scores, row.shown or row.scores)
    rows = [
        (label, *(_with_interval(measure(scores), digits) for scores in both)) for label, measure, digits in _OVERALL
    ]
    title = f"{row.model}: overall, with 95% intervals"
    return Grid(title, ("measure", "every finding", "at the default thresholds"), rows)


def _side_by_side(evaluation: Evaluation) -> Grid:
    scores = evaluation.rows[-1].scores
    planted, natural = scores.hygiene_planted, scores.hygiene_natural
    rows = [
        ("hygiene: precision", *_shares(planted.precision, natural.precision)),
        ("hygiene: recall", *_shares(planted.recall, natural.recall)),
        ("hygiene: F1", *_shares(planted.f1, natural.f1)),
        ("injected: recall", _with_interval(scores.joint, 3), "unknown"),
        ("injected: findings per 100 units", "", _with_interval(scores.injected_per_100_natural, 1)),
    ]
    return Grid(f"{evaluation.rows[-1].model}: synthetic beside natural", ("measure", "planted", "as written"), rows)


def _confidence(evaluation: Evaluation) -> Grid:
    confidence = evaluation.confidence
    errors = ["-" if error is None else f"{error:.3f}" for error in (confidence.error_raw, confidence.error_calibrated)]
    rows = [
        ("findings it is fitted on (validation)", str(confidence.validation_findings)),
        ("rules with a curve", str(len(confidence.knots))),
        ("findings it is tried on (test)", str(confidence.test_findings)),
        ("expected calibration error, raw", errors[0]),
        ("expected calibration error, calibrated", errors[1]),
    ]
    return Grid(f"{evaluation.rows[-1].model}: confidence", ("calibration", ""), rows)


def _baselines(evaluation: Evaluation) -> Grid:
    last = evaluation.rows[-1]
    lines = [(baseline.name, baseline.scores) for baseline in evaluation.baselines]
    lines.append((last.model, last.scores))
    if last.shown is not None:
        lines.append((f"{last.model}, at the thresholds", last.shown))
    rows = [
        (
            name,
            *_shares(scores.injected.f1, scores.joint.value, scores.hygiene.f1, scores.hygiene_natural.f1),
            f"{scores.false_per_100_clean.value:.1f}",
        )
        for name, scores in lines
    ]
    columns = ("who answers", "injected F1", "joint", "hygiene F1", "hygiene F1 as written", "false/100 clean")
    return Grid("beside no model at all", columns, rows)


def _shares(*numbers: float) -> list[str]:
    return [f"{number:.3f}" for number in numbers]


def _with_interval(estimate: Estimate, digits: int) -> str:
    """`0.512 (0.470-0.553)`."""
    value, low, high = (f"{number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}-{high})"
