"""A progress bar for a person who waits, and nothing for a log file."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_S = 2.0


@asynccontextmanager
async def file_progress(total: int, doing: str = "Analysing") -> AsyncIterator[Callable[[], None]]:
    """Yields a call to make after each of `total` files. A terminal shows the bar after two seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(doing, total=total)
    start = asyncio.get_running_loop().call_later(PATIENCE_S, bar.start)
    try:
        yield lambda: bar.advance(task)
    finally:
        start.cancel()
        bar.stop()
