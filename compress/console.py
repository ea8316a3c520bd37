"""What a run shows a person: one line a stage, bars where it takes long, tables at the end."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

_TABLE_WIDTH = 132


def make_console() -> Console:
    """A console for a run; wide enough for the score tables where the output is not a terminal.

    Of several processes that make a run together only the first speaks.
    """
    if os.environ.get("RANK", "0") != "0":
        return Console(quiet=True)
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_TABLE_WIDTH)


def quiet_libraries() -> None:
    """Libraries report errors only; their own bars and hints would tear ours apart."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def quietly() -> Iterator[None]:
    """Nothing below an error is reported meanwhile: exporters and quantisers tell of every node."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
