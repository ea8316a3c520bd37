"""What scripts that try the image or the manifests out have to say: checks as they are made, figures at the end."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


class Skipped(Exception):
    """This machine can not do it; the message says why and what would help."""


@dataclass(frozen=True)
class Figure:
    """Something measured; with an aim, the most that it may be."""

    what: str
    value: float
    unit: str
    aim: float | None = None

    @property
    def missed(self) -> bool:
        return self.aim is not None and self.value > self.aim

    def row(self) -> tuple[str, str, str, str]:
        """What it is, the value, its aim, and whether that was met."""
        if self.aim is None:
            return self.what, self.text(self.value), "", ""
        return self.what, self.text(self.value), f"at most {self.text(self.aim)}", "MISSED" if self.missed else "met"

    def text(self, value: float) -> str:
        """Megabytes, whole numbers where things are counted, else one decimal."""
        if self.unit == "bytes":
            return f"{value / 1e6:.0f} MB"
        return f"{value:.1f} s" if self.unit == "s" else f"{value:.0f} {self.unit}"


class Report:
    """What was found, printed as it is found; what was measured, printed as a table at the end."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.failures: list[str] = []
        self.figures: list[Figure] = []

    def say(self, text: str) -> None:
        print(f"{self.title}: {text}", flush=True)

    def check(self, what: str, right: bool) -> None:
        """One thing that must be so."""
        self.say(f"{'ok  ' if right else 'FAIL'} {what}")
        if not right:
            self.failures.append(what)

    def measured(self, what: str, value: float, unit: str, aim: float | None = None, fails: bool = False) -> None:
        """A figure for the table; with `fails`, something is at fault where it is beyond its aim."""
        figure = Figure(what, value, unit, aim)
        self.figures.append(figure)
        if fails:
            self.check(" · ".join(figure.row()), not figure.missed)

    def end(self) -> int:
        """Print every figure beside its aim, and how many things failed: 0 when none did, else 1."""
        table = Table("measured", "", "aim", "", title=self.title, title_justify="left")
        for figure in self.figures:
            table.add_row(*figure.row())
        Console(width=100).print(table)
        missed = sum(figure.missed for figure in self.figures)
        self.say(f"{len(self.failures)} failures, {missed} aims missed")
        return 1 if self.failures else 0
