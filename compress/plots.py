"""Plots of a report, as SVG that is drawn again sharply at any width."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from compress.training_log import History

# What a training loop logs, in the order it is shown in, and what it is called.
_LOGGED = {
    "loss": "loss",
    "cross_entropy": "cross-entropy, nats",
    "divergence": "divergence, nats",
    "info_nce": "InfoNCE times its weight",
    "kl": "divergence times its weight and T²",
    "embedding_mse": "squared distance to the teacher's embeddings, times its weight",
    "hidden": "hidden states",
    "attention": "attention",
    "alpha": "alpha",
    "temperature": "temperature",
    "teacher_entropy": "teacher's entropy at T, nats",
    "top_k_mass": "teacher's mass in the kept tokens",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens a second",
}
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def training_curves(histories: Mapping[str, History]) -> list[str]:
    """One SVG for each value that any of the loops logged, all loops in it.

    Args:
        histories: Trainer's `log_history` of each loop, by its name.
    """
    drawings = []
    for key, title in _LOGGED.items():
        lines = {
            name: [(entry["step"], entry[key]) for entry in log if key in entry] for name, log in histories.items()
        }
        # The last entry of a loop has its mean speed alone, and a single point is no curve.
        lines = {name: points for name, points in lines.items() if len(points) > 1}
        if len({value for points in lines.values() for _, value in points}) < 2:
            continue  # what never changes is in the recipe
        with plt.rc_context(_STYLE):
            figure, axes = plt.subplots(figsize=(4, 2.4))
            for name, points in lines.items():
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1.3)
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xlabel("optimiser step")
            axes.margins(x=0.01)
            axes.legend(frameon=False, fontsize=8)
            drawings.append(_svg(figure))
    return drawings


def quality_plot(points: Sequence[tuple[str, float, float]]) -> str:
    """F1 over megabytes: (model, megabytes, F1)."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 3.2))
        for name, size, f1 in points:
            axes.scatter(size, f1)
            axes.annotate(name, (size, f1), textcoords="offset points", xytext=(6, 4), fontsize=8)
        axes.set_xscale("log")
        axes.set_xlabel("megabytes on disk")
        axes.set_ylabel("F1 on injected defects")
        axes.set_ylim(0, 1)
        axes.margins(x=0.3)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", bbox_inches="tight")
    plt.close(figure)
    text = drawing.getvalue()
    return text[text.index("<svg") :]
