"""The gate between an evaluation and its bundle: what must be left of the teacher."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from compress.errors import GateError
from compress.recipe import Section


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate looks at in an evaluation, and its verdict."""

    retention: dict[str, float]
    gate: dict[str, float]
    gate_passed: bool
    failures: list[str]


AnyEvaluation = TypeVar("AnyEvaluation", bound=Judged)


def gate_failures(gate: Section, retention: dict[str, float]) -> list[str]:
    """One sentence for each measure that is below the gate.

    Args:
        gate: the least value of each measure.
        retention: every measure the gate names, and maybe others.
    """
    return [
        f"{name.replace('_', ' ')} is {retention[name]:.3f}, below the gate's {least:.3f}"
        for name, least in msgspec.to_builtins(gate).items()
        if retention[name] < least
    ]


def judged(evaluation: AnyEvaluation, gate: Section) -> AnyEvaluation:
    """The same measures with this gate's verdict."""
    failures = gate_failures(gate, evaluation.retention)
    return msgspec.structs.replace(
        evaluation, gate=msgspec.to_builtins(gate), gate_passed=not failures, failures=failures
    )


def require_passed(name: str, failures: Sequence[str]) -> None:
    """
    Args:
        name: the recipe's.
        failures: see `gate_failures`.

    Raises:
        GateError: there are failures.
    """
    if failures:
        raise GateError(
            f"{name} is below its gate, so no new bundle was written: {'; '.join(failures)}. "
            "Train longer, take a larger student, or lower evaluate.gate."
        )
