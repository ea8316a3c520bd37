"""The measures of an evaluation as functions of how often each unit counts, and their bootstrap intervals."""

from typing import NamedTuple, Self

import numpy as np

REALISTIC_RATE = 0.01  # defects in a unit of real code, as the realistic measures take it
DRAWS = 1000
INTERVAL = (2.5, 97.5)  # percentiles


class Tallies(NamedTuple):
    """What was found, missed and false in each of U units, for each of R rules."""

    origin: np.ndarray  # [R] "injected" or "hygiene"
    found: np.ndarray  # int [U, R]
    missed: np.ndarray  # int [U, R]
    false: np.ndarray  # int [U, R]
    planted: np.ndarray  # [U] origin of what was planted, "" for natural units
    joint: np.ndarray  # bool [U] what was planted was found by rule and line
    clean: np.ndarray  # bool [U] nothing to find
    valid: np.ndarray  # bool [U]
    unaided: np.ndarray  # bool [U] valid, and no grammar was needed for it
    contradicted: np.ndarray  # int [U] findings that are not among found and false: the syntax contradicts them
    named: np.ndarray  # int [U] injected defects whose rule was named
    exact: np.ndarray  # int [U] injected defects found with at and fix right

    @classmethod
    def empty(cls, origins: list[str], units: int) -> Self:
        """Nothing counted yet, for these rules and so many units."""
        by_rule = (units, len(origins))
        return cls(
            origin=np.array(origins),
            found=np.zeros(by_rule, dtype=np.int64),
            missed=np.zeros(by_rule, dtype=np.int64),
            false=np.zeros(by_rule, dtype=np.int64),
            planted=np.full(units, "", dtype="U8"),
            joint=np.zeros(units, dtype=bool),
            clean=np.zeros(units, dtype=bool),
            valid=np.zeros(units, dtype=bool),
            unaided=np.zeros(units, dtype=bool),
            contradicted=np.zeros(units, dtype=np.int64),
            named=np.zeros(units, dtype=np.int64),
            exact=np.zeros(units, dtype=np.int64),
        )


def measures(tallies: Tallies, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every measure, once for each row of weights.

    Args:
        weights: float [D, U]: how often each unit counts.

    Returns:
        float [D] for each measure; 0 where there is nothing to divide by.
    """
    found, missed, false = (weights @ counts for counts in (tallies.found, tallies.missed, tallies.false))
    natural = (tallies.planted == "").astype(float)
    injected = tallies.origin == "injected"
    result: dict[str, np.ndarray] = {}
    for name, rules in (("", injected), ("hygiene_", ~injected)):
        totals = [counts[:, rules].sum(axis=1) for counts in (found, missed, false)]
        result[f"{name}precision"] = _share(totals[0], totals[0] + totals[2])
        result[f"{name}recall"] = _share(totals[0], totals[0] + totals[1])
        result[f"{name}f1"] = _f1(*totals)
        by_rule = _f1(found[:, rules], missed[:, rules], false[:, rules])
        # A rule that occurs nowhere in a draw says nothing about the model.
        occurs = found[:, rules] + missed[:, rules] > 0
        result[f"macro_{name}f1"] = _share((by_rule * occurs).sum(axis=1), occurs.sum(axis=1))
    for name, origin in (("joint", "injected"), ("joint_hygiene", "hygiene")):
        of_origin = (tallies.planted == origin).astype(float)
        result[name] = _share(weights @ (tallies.joint * of_origin), weights @ of_origin)
    hygiene = [
        weights @ (counts[:, ~injected].sum(axis=1) * natural)
        for counts in (tallies.found, tallies.missed, tallies.false)
    ]
    result["hygiene_natural_f1"] = _f1(*hygiene)
    result["rule_recall"] = _share(weights @ tallies.named, (found + missed)[:, injected].sum(axis=1))
    result["fix_exact"] = _share(weights @ tallies.exact, found[:, injected].sum(axis=1))
    result["false_per_100_clean"] = 100 * _share(
        weights @ (tallies.false.sum(axis=1) * tallies.clean), weights @ tallies.clean
    )
    false_a_unit = _share(weights @ (tallies.false[:, injected].sum(axis=1) * natural), weights @ natural)
    result["injected_per_100_natural"] = 100 * false_a_unit
    right = REALISTIC_RATE * result["joint"]
    result["realistic_precision"] = _share(right, right + false_a_unit)
    result["validity"] = _share(weights @ tallies.valid, weights.sum(axis=1))
    result["unaided"] = _share(weights @ tallies.unaided, weights.sum(axis=1))
    contradicted = weights @ tallies.contradicted
    result["contradicted"] = _share(contradicted, (found + false).sum(axis=1) + contradicted)
    return result


def bootstrap_intervals(tallies: Tallies, seed: int) -> dict[str, tuple[float, float]]:
    """The 95% percentile interval of every measure over `DRAWS` resamplings of the units.

    Natural units and those with injected and with hygiene defects are resampled apart, because how many there
    are of each was chosen. Units of one project count as independent.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((DRAWS, len(tallies.valid)))
    for kind in np.unique(tallies.planted):
        (places,) = np.nonzero(tallies.planted == kind)
        weights[:, places] = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), size=DRAWS)
    edges = {name: np.percentile(values, INTERVAL) for name, values in measures(tallies, weights).items()}
    return {name: (float(low), float(high)) for name, (low, high) in edges.items()}


def _f1(found: np.ndarray, missed: np.ndarray, false: np.ndarray) -> np.ndarray:
    return _share(2 * found, 2 * found + missed + false)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    whole = np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
