"""Measures over resampled units are what counting the resampled units again would give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.evaluation.measures import DRAWS, Tallies, bootstrap_intervals, measures

ORIGINS = ["injected", "injected", "hygiene"]


def tallies_of(rng: np.random.Generator, units: int) -> Tallies:
    """Counts of any kind; they need not come from one another."""
    tallies = Tallies.empty(ORIGINS, units)
    for counts in (tallies.found, tallies.missed, tallies.false, tallies.named, tallies.exact):
        counts[:] = rng.integers(0, 3, size=counts.shape)
    for flags in (tallies.joint, tallies.clean, tallies.valid):
        flags[:] = rng.integers(0, 2, size=flags.shape)
    tallies.planted[:] = rng.choice(["", "injected", "hygiene"], size=units)
    return tallies


def repeated(tallies: Tallies, times: np.ndarray) -> Tallies:
    """The same units, each as often as it was drawn."""
    return Tallies(tallies.origin, *(np.repeat(counts, times, axis=0) for counts in tallies[1:]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_a_weight_is_how_often_a_unit_is_there(seed: int, units: int) -> None:
    rng = np.random.default_rng(seed)
    tallies = tallies_of(rng, units)
    weights = rng.integers(0, 4, size=(3, units))
    together = measures(tallies, weights.astype(float))
    for draw, times in enumerate(weights):
        again = repeated(tallies, times)
        alone = measures(again, np.ones((1, times.sum())))
        assert {name: values[draw] for name, values in together.items()} == pytest.approx(
            {name: values[0] for name, values in alone.items()}
        )


def test_intervals_are_percentiles_of_a_share_as_theory_has_them() -> None:
    units = 400
    tallies = Tallies.empty(ORIGINS, units)
    tallies.planted[:] = "injected"
    tallies.joint[: units // 4] = True
    low, high = bootstrap_intervals(tallies, seed=3)["joint"]
    spread = 1.96 * (0.25 * 0.75 / units) ** 0.5
    assert (low, high) == pytest.approx((0.25 - spread, 0.25 + spread), abs=0.01)


def test_each_kind_of_unit_is_resampled_by_itself() -> None:
    """With one planted unit among many natural ones, every draw holds it exactly once."""
    tallies = Tallies.empty(ORIGINS, 50)
    tallies.planted[0], tallies.joint[0] = "injected", True
    assert bootstrap_intervals(tallies, seed=1)["joint"] == (1.0, 1.0)


def test_a_seed_fixes_the_intervals() -> None:
    tallies = tallies_of(np.random.default_rng(5), 40)
    assert bootstrap_intervals(tallies, seed=1) == bootstrap_intervals(tallies, seed=1)
    assert bootstrap_intervals(tallies, seed=1) != bootstrap_intervals(tallies, seed=2)
    assert DRAWS == 1000
