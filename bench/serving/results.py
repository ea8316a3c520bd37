"""The figures as Markdown and as a plot."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

from bench.serving.asking import Load
from bench.serving.measure import LONGEST_PROJECT_SECONDS, Measured, ProjectTime

MIB = 2**20
_LOADS = (
    "| server | clients | analyses/s (slowest to fastest round) | tokens/s | first text p50 / p95 ms "
    "| latency p50 / p99 ms | failed |\n|---|---:|---:|---:|---:|---:|---:|"
)


def markdown(model: str, results: Sequence[Measured]) -> str:
    """Every figure, in tables below a heading for the model."""
    present = [result for result in results if result.absent is None]
    parts = [f"## {model}", _overview(present), "\n".join([_LOADS, *(row for each in present for row in _rows(each))])]
    if any(result.project for result in present):
        parts.append(_projects(present))
    parts += [_api(result) for result in present if result.api]
    if absent := [f"- {result.title}: {result.absent}" for result in results if result.absent is not None]:
        parts.append("Not measured:\n\n" + "\n".join(absent))
    return "\n\n".join(parts) + "\n"


def _overview(results: Sequence[Measured]) -> str:
    rows = ["| server | first answer after s | peak MiB |", "|---|---:|---:|"]
    return "\n".join(
        rows + [f"| {each.title} | {_number(each.start_s)} | {(each.peak_bytes or 0) / MIB:.0f} |" for each in results]
    )


def _rows(result: Measured) -> list[str]:
    return [
        f"| {result.title} | {load.clients} | {load.analyses_per_s:.1f}{_spread(load)} | {load.tokens_per_s:.0f} "
        f"| {_pair(load.first_text_p50, load.first_text_p95)} | {_pair(load.latency_p50, load.latency_p99)} "
        f"| {load.failures} |"
        for load in result.loads
    ]


def _spread(load: Load) -> str:
    return f" ({load.rounds[0]:.1f} to {load.rounds[-1]:.1f})" if len(load.rounds) > 1 else ""


def _projects(results: Sequence[Measured]) -> str:
    rows = ["| server | units | project, s | again with 5% changed, s | faster |", "|---|---:|---:|---:|---:|"]
    for result in results:
        if (times := result.project) is not None:
            cold = _seconds(times.cold_s)
            again = "" if times.cold_s is None else _seconds(times.changed_s)
            rows.append(f"| {result.title} | {times.units} | {cold} | {again} | {_gain(times)} |")
    return "\n".join(rows)


def _gain(times: ProjectTime) -> str:
    return f"{times.cold_s / times.changed_s:.1f}x" if times.cold_s and times.changed_s else ""


def _api(result: Measured) -> str:
    rows = ["| clients | request ms | engine ms | the API adds |", "|---:|---:|---:|---:|"]
    rows += [
        f"| {each.clients} | {each.request_s * 1000:.1f} | {each.engine_s * 1000:.1f} | {each.overhead:.1%} |"
        for each in result.api
    ]
    return f"Within {result.title}, means by its own metrics:\n\n" + "\n".join(rows)


def _seconds(value: float | None) -> str:
    return f"{value:.1f}" if value is not None else f"over {LONGEST_PROJECT_SECONDS:.0f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _pair(first: float | None, second: float | None) -> str:
    return "" if first is None or second is None else f"{first * 1000:.0f} / {second * 1000:.0f}"


def plot(by_model: dict[str, Sequence[Measured]], file: Path) -> None:
    """Analyses a second over the number of clients, a panel for each model."""
    matplotlib.rcParams["svg.hashsalt"] = "bench"  # the same figures give the same file
    figure, panels = plt.subplots(1, len(by_model), figsize=(6.5 * len(by_model), 4.5), squeeze=False)
    for panel, (model, results) in zip(panels[0], by_model.items(), strict=True):
        for result in results:
            if result.loads:
                ours = result.name.startswith("ours")
                clients = [load.clients for load in result.loads]
                speeds = [load.analyses_per_s for load in result.loads]
                panel.plot(clients, speeds, marker="o", linewidth=2.5 if ours else 1.2, label=result.title)
        panel.set(title=model, xlabel="clients", ylabel="analyses/s", xscale="log")
        ticks = sorted({load.clients for result in results for load in result.loads})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
