"""Values that change in the course of training: alpha and the temperature."""

import math
from collections.abc import Sequence

from compress.recipe import Ramp


def scheduled(constant: float, schedule: Ramp | Sequence[float] | None, step: int, total_steps: int) -> float:
    """A value at an optimiser step.

    Without a schedule it is `constant`. A list has one value for each equal span of steps. A ramp goes from
    its start, at step 0, to its end, at the last step: evenly, or along half a cosine.

    Args:
        step: optimiser steps done before this one, so that it is the same for all micro-batches of a window
            and goes on where it was when a run is resumed.
        total_steps: of the whole training. A step beyond it has the last value.
    """
    if schedule is None:
        return constant
    if not isinstance(schedule, Ramp):
        return schedule[min(step * len(schedule) // max(total_steps, 1), len(schedule) - 1)]
    done = min(step / max(total_steps - 1, 1), 1.0)
    if schedule.type == "cosine":
        done = (1.0 - math.cos(math.pi * done)) / 2.0
    return schedule.start + (schedule.end - schedule.start) * done
