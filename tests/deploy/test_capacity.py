"""The capacity model: queues that behave as theory says, an autoscaler that follows its manifest, real measurements."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.capacity import SCALER, measure, pod_of
from bench.scaling import Outcome, Phase, Pod, Scaler, read_scaler, simulate
from tests.deploy.kustomized import Rendered

RULE = read_scaler(SCALER)
POD = Pod(rates=((1, 5.0), (8, 12.0), (64, 13.0)), slots=8, max_queue=64, start_s=20.0)
SURGE = [Phase(120, 10), Phase(600, 60), Phase(900, 10)]


def changes(outcome: Outcome) -> list[int]:
    """How many pods became ready or left from one look to the next."""
    counts = [count for _, count in outcome.pods]
    return [after - before for before, after in pairwise(counts)]


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_pod_that_gains_nothing_from_many_requests_is_the_queue_of_the_books(load: float) -> None:
    # M/M/1 with processor sharing: a mean of 1 / (rate - load), Kleinrock, Queueing Systems II, 4.4.
    pod = Pod(rates=((1, 1.0),), slots=1, max_queue=10**9, start_s=0.0)

    took = [seconds for _, seconds in simulate(pod, Scaler(1, 1), [Phase(20_000, load)]).answers]

    assert sum(took) / len(took) == pytest.approx(1 / (1 - load), rel=0.15)


@settings(deadline=None, max_examples=25)
@given(
    rates=st.lists(st.floats(0.5, 5.0), min_size=1, max_size=5),
    per_second=st.floats(0.1, 30.0),
    pods=st.integers(1, 4),
    max_queue=st.integers(1, 20),
)
def test_every_request_is_answered_or_refused(rates: list[float], per_second: float, pods: int, max_queue: int) -> None:
    rising = tuple((2**index, sum(rates[: index + 1])) for index in range(len(rates)))
    pod = Pod(rising, slots=2, max_queue=max_queue, start_s=1.0)

    outcome = simulate(pod, Scaler(pods, 2 * pods), [Phase(20, per_second), Phase(20, per_second / 2)])

    moments = sorted([arrived for arrived, _ in outcome.answers] + outcome.refused)
    assert moments == sorted(set(moments)), "nobody is answered twice"
    sent = 20 * per_second + 20 * per_second / 2
    assert abs(len(moments) - sent) <= 6 * sent**0.5 + 6, "Poisson's: nobody is forgotten"
    assert all(took > 0 for _, took in outcome.answers)
    busiest = max((len([1 for a, took in outcome.answers if a <= now < a + took]) for now in moments[::50]), default=0)
    assert busiest <= 2 * pods * max_queue


def test_a_surge_brings_pods_as_fast_as_the_manifest_allows_and_takes_them_away_slowly() -> None:
    outcome = simulate(POD, RULE, SURGE)
    counts = [count for _, count in outcome.pods]

    assert counts[0] == counts[-1] == RULE.min_pods
    assert 60 / POD.rates[-1][1] <= max(counts) <= RULE.max_pods
    # Within two looks (30 s) they double at most; one leaves in a minute, but not within five of the last need for it.
    assert all(after <= 2 * before for before, after in zip(counts, counts[2:], strict=False))
    leaving = [moment for (moment, _), change in zip(outcome.pods[1:], changes(outcome), strict=True) if change < 0]
    assert min(changes(outcome)) == -RULE.down_pods
    assert all(later - earlier >= RULE.down_seconds for earlier, later in pairwise(leaving))
    assert leaving[0] >= 120 + RULE.down_stabilization


def test_the_scaler_keeps_answers_fast_where_fewer_pods_do_not() -> None:
    scaled = simulate(POD, RULE, SURGE)
    fixed = simulate(POD, Scaler(RULE.min_pods, RULE.min_pods), SURGE)

    def slowest(outcome: Outcome) -> float:
        """Of 95 in 100 that come when the new pods are there."""
        took = sorted(outcome.between(240, 720))
        return took[int(0.95 * len(took))]

    assert slowest(scaled) < slowest(fixed) / 2
    assert len(scaled.refused) < len(fixed.refused) / 4


def test_both_autoscalers_follow_one_rule(rendered: dict[str, Rendered]) -> None:
    [scaled] = rendered["overlays/variant"].of("ScaledObject")
    spec = yaml.safe_load(SCALER.read_text())["spec"]
    targets = {each["pods"]["metric"]["name"]: each["pods"]["target"]["averageValue"] for each in spec["metrics"]}

    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (RULE.min_pods, RULE.max_pods)
    assert scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == spec["behavior"]
    for trigger, (metric, target) in zip(scaled["spec"]["triggers"], targets.items(), strict=True):
        assert trigger["metadata"]["query"].startswith(f"sum(avg_over_time({metric}{{")
        assert trigger["metadata"]["threshold"] == target


def test_a_real_server_is_measured_and_reported(tiny_bundle: Path) -> None:
    codes = [f"def f(a, b=[]):\n    return b[{n}] == None\n" for n in range(400)]

    start_s, loads = measure(tiny_bundle, codes, [1, 4], seconds=1.0)

    assert start_s > 0
    assert [load.clients for load in loads] == [1, 4]
    assert all(load.answers > 0 and load.failures == 0 for load in loads)
    pod = pod_of(loads, start_s)
    assert pod.rate(1) == loads[0].analyses_per_s
    assert pod.rate(1) <= pod.rate(2) <= pod.rate(4) == pod.rate(64)
