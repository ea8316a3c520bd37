"""One thing that was looked at before a run, and numbers as a person reads them."""

from typing import Literal, NamedTuple

Verdict = Literal["ok", "note", "wrong"]


class Check(NamedTuple):
    """One thing looked at. `note` is worth knowing, `wrong` ends a run sooner or later."""

    about: str
    verdict: Verdict
    found: str


def count(number: float) -> str:
    """`7.62B`."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.2f}{unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes: `15.2 GB`."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= limit:
            return f"{number / limit:,.1f} {unit}"
    return f"{number / 1e3:,.0f} kB"
