"""Several rounds of one peer as one set of figures: a machine that is a fifth slower for a minute decides nothing."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from bench.serving.asking import Load
from bench.serving.measure import ApiTime, Measured, ProjectTime

Figure = TypeVar("Figure")
Counted = TypeVar("Counted", Load, ApiTime)


def median_of(rounds: Sequence[Measured]) -> Measured:
    """The median round of every figure, of two in the middle the lesser; and the highest peak of memory.

    What was measured at once stays together: the latencies beside an answers/s are those of its round. Rounds in which
    the peer was absent count for nothing, unless it was in all.
    """
    present = [each for each in rounds if each.absent is None]
    if not present:
        return rounds[-1]
    projects = [each.project for each in present if each.project is not None]
    return Measured(
        name=present[0].name,
        title=present[0].title,
        start_s=_middle([each.start_s for each in present if each.start_s is not None], float),
        peak_bytes=max(each.peak_bytes or 0 for each in present),
        loads=[_median_load(loads) for loads in _by_clients(each.loads for each in present)],
        project=_middle(projects, _gain) if projects else None,
        api=[_middle(times, lambda time: time.overhead) for times in _by_clients(each.api for each in present)],
    )


def _median_load(loads: Sequence[Load]) -> Load:
    speeds = sorted(load.analyses_per_s for load in loads)
    return msgspec.structs.replace(_middle(loads, lambda load: load.analyses_per_s), rounds=speeds)


def _gain(times: ProjectTime) -> float:
    """Less than any where it took too long."""
    return times.cold_s / times.changed_s if times.cold_s and times.changed_s else 0.0


def _by_clients(rounds: Iterable[Sequence[Counted]]) -> list[list[Counted]]:
    """The figures of all rounds for each number of clients; a round may lack the last of them."""
    by_clients: dict[int, list[Counted]] = {}
    for figures in rounds:
        for figure in figures:
            by_clients.setdefault(figure.clients, []).append(figure)
    return list(by_clients.values())


def _middle(figures: Sequence[Figure], key: Callable[[Figure], float]) -> Figure:
    return sorted(figures, key=key)[(len(figures) - 1) // 2]
