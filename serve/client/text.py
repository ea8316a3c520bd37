"""A check for a person: every finding with the code it is about, then what went wrong, then the numbers."""

import unicodedata
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from serve.analysis.report import Finding, Severity
from serve.client.check import CheckedFile, Hidden, Outcome
from serve.client.document import count_by_severity
from serve.client.edits import added_lines, apply_edits
from serve.client.files import FailedPath

STYLES: dict[Severity, str] = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
HIDDEN: dict[Hidden, str] = {
    "unchanged": "on unchanged lines",
    "comment": "ignored in the code",
    "baseline": "in the baseline",
    "fixed": "fixed",
}
MAX_FRAME_LINES = 6
MAX_PATHS_PER_ERROR = 5
TAB_WIDTH = 4


def print_findings(outcome: Outcome, console: Console) -> None:
    """Every finding as a code frame, what was left out, and a last line with the totals."""
    for file in outcome.checked:
        lines = file.source.split("\n")
        for finding in file.report.findings:
            print_line(console, _headline(finding))
            print_line(console, Text(f"  {printable(finding.message)}"))
            for line in _frame(finding, lines):
                print_line(console, line)
            for line in _fix(finding, lines):
                print_line(console, line)
            print_line(console, Text())
    for line in _skipped(outcome):
        print_line(console, line)
    print_totals(outcome, console)


def print_failures(failed: Sequence[FailedPath], console: Console, done: str = "analysed") -> None:
    """What was not `done` and why; files with one and the same reason are named together."""
    by_message: dict[str, list[FailedPath]] = {}
    for failure in failed:
        by_message.setdefault(failure.message, []).append(failure)
    for message, failures in by_message.items():
        names = [_place(failure) for failure in failures[:MAX_PATHS_PER_ERROR]]
        more = f" and {len(failures) - len(names)} more" if len(failures) > len(names) else ""
        print_line(console, Text.assemble((f"not {done}: ", "bold red"), f"{', '.join(names)}{more}"))
        print_line(console, Text(f"  {printable(message)}"))


def print_totals(outcome: Outcome, console: Console) -> None:
    """The last line alone."""
    print_line(console, _totals(outcome))


def print_not_fixed(path: str, reason: str, console: Console) -> None:
    """A file whose fixes were not applied, and why."""
    print_line(console, Text.assemble(("not fixed: ", "bold red"), f"{printable(path)}: {printable(reason)}"))


def print_line(console: Console, line: Text) -> None:
    """A line of any length."""
    # soft_wrap: a log keeps long lines whole, and a terminal wraps them itself.
    console.print(line, soft_wrap=True, highlight=False)


def _headline(finding: Finding) -> Text:
    place = f"{printable(finding.path)}:{finding.start_line}:{finding.start_column}: "
    return Text.assemble(
        (place, "bold"),
        (finding.severity, STYLES[finding.severity]),
        f" {printable(finding.rule)} ",
        (f"({finding.confidence:.0%} sure)", "dim"),
    )


def _frame(finding: Finding, lines: list[str]) -> Iterator[Text]:
    """The finding's lines under their numbers, with carets below the columns it is about."""
    last = min(finding.end_line, finding.start_line + MAX_FRAME_LINES - 1, len(lines))
    width = len(str(last))
    for number in range(finding.start_line, last + 1):
        line = printable(lines[number - 1])
        indent = len(line) - len(line.lstrip())
        start = finding.start_column - 1 if number == finding.start_line else indent
        end = finding.end_column - 1 if number == finding.end_line else len(line)
        before, upto = (cell_len(line[:column].expandtabs(TAB_WIDTH)) for column in (start, end))
        yield Text(f"  {number:>{width}} | {line.expandtabs(TAB_WIDTH)}")
        yield Text.assemble(
            f"  {'':>{width}} | {' ' * before}", ("^" * max(upto - before, 1), STYLES[finding.severity])
        )


def _fix(finding: Finding, lines: list[str]) -> Iterator[Text]:
    """The lines a fix touches, before and after it."""
    if finding.fix is None or not finding.fix.edits:
        return
    edits = finding.fix.edits
    first, last = min(edit.start_line for edit in edits), max(edit.end_line for edit in edits)
    yield Text("  fix:" if finding.fix.verified else "  fix (the result was not parsed):", style="dim")
    for line in lines[first - 1 : last]:
        yield Text(f"  - {printable(line).expandtabs(TAB_WIDTH)}", style="red")
    for line in apply_edits(lines, edits)[first - 1 : last + added_lines(edits)]:
        yield Text(f"  + {printable(line).expandtabs(TAB_WIDTH)}", style="green")


def _skipped(outcome: Outcome) -> Iterator[Text]:
    for path in outcome.skipped:
        yield Text(f"skipped: {printable(path.path)}: {printable(path.reason)}", style="dim")
    for file in outcome.checked:
        yield from _skipped_units(file)


def _skipped_units(file: CheckedFile) -> Iterator[Text]:
    for unit in file.report.skipped:
        place = f"{printable(file.path)}:{unit.start_line}-{unit.end_line}"
        yield Text(f"skipped: {place} {printable(unit.name)}: {printable(unit.reason)}", style="dim")


def _totals(outcome: Outcome) -> Text:
    if not (outcome.checked or outcome.failed):
        if outcome.unchanged_files:
            return Text("No Python file among these paths has changed.")
        return Text("There are no Python files among these paths.")
    parts = []
    if outcome.checked:
        counts = count_by_severity(outcome)
        found = ", ".join(count(number, severity) for severity, number in counts.items() if number)
        model = outcome.checked[0].report.model
        by = f"by {model.name} {model.revision}, {model.quantization} on {model.engine}"
        parts.append(f"{found or 'No findings'} in {count(len(outcome.checked), 'file')} ({by})")
    parts += [f"{number} {HIDDEN[reason]}" for reason, number in outcome.hidden.items() if number]
    if outcome.failed:
        parts.append(f"{count(len(outcome.failed), 'file')} not analysed")
    return Text(f"{printable('; '.join(parts))}.")


def count(number: int, noun: str) -> str:
    """The number with its noun, which gets an s where there is not just one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _place(failure: FailedPath) -> str:
    place = printable(failure.path)
    for number in (failure.line, failure.column):
        if number is not None:
            place += f":{number}"
    return place


def printable(text: str) -> str:
    """One line of a file or a server's words, unable to steer the terminal or to reorder what is read."""
    return "".join(
        character if character == "\t" or unicodedata.category(character)[0] != "C" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
