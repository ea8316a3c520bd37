"""Pods under a load that changes, simulated event by event, with the autoscaler of k8s/ as its manifest says.

A pod works on all its requests at once and answers as many a second as was measured with that many clients, so that
everybody gets the same share of it. Arrivals are Poisson's; how much work a request is, is exponential about the mean;
every request goes to a ready pod by chance, as kube-proxy sends connections. Pods that are to end finish what they
have.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml

SCRAPE_SECONDS = 15.0
"""Of the PodMonitor; the autoscaler looks as often (--horizontal-pod-autoscaler-sync-period's default)."""
WINDOW_SAMPLES = 4
"""The adapter and KEDA ask for means over a minute."""
TOLERANCE = 0.1
"""--horizontal-pod-autoscaler-tolerance's default."""


class Pod(msgspec.Struct, frozen=True):
    """What one pod can do.

    `rates` are pairs of requests at once and answers a second, both rising; between two of them lies a straight line,
    and beyond the last nothing is gained.
    """

    rates: tuple[tuple[int, float], ...]
    slots: int
    max_queue: int
    start_s: float

    def rate(self, requests: int) -> float:
        """Answers a second with so many requests in the pod."""
        before = (0, 0.0)
        for point in self.rates:
            if requests <= point[0]:
                share = (requests - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]


class Scaler(msgspec.Struct, frozen=True):
    """The rule of a HorizontalPodAutoscaler; with equal numbers at both ends it does nothing."""

    min_pods: int
    max_pods: int
    waiting_per_pod: float = 8.0
    in_flight_per_pod: float = 16.0
    up_share: float = 1.0
    up_seconds: float = 30.0
    down_pods: int = 1
    down_seconds: float = 60.0
    down_stabilization: float = 300.0


def read_scaler(manifest: Path) -> Scaler:
    """The rule that a manifest of a HorizontalPodAutoscaler sets."""
    spec = yaml.safe_load(manifest.read_text(encoding="utf-8"))["spec"]
    metrics = [metric["pods"] for metric in spec["metrics"]]
    targets = {each["metric"]["name"]: float(each["target"]["averageValue"]) for each in metrics}
    [up] = spec["behavior"]["scaleUp"]["policies"]
    [down] = spec["behavior"]["scaleDown"]["policies"]
    return Scaler(
        min_pods=spec["minReplicas"],
        max_pods=spec["maxReplicas"],
        waiting_per_pod=targets["deepcode_num_requests_waiting"],
        in_flight_per_pod=targets["deepcode_requests_in_flight"],
        up_share=up["value"] / 100,
        up_seconds=up["periodSeconds"],
        down_pods=down["value"],
        down_seconds=down["periodSeconds"],
        down_stabilization=spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"],
    )


class Phase(msgspec.Struct, frozen=True):
    """A while of so many requests a second."""

    seconds: float
    per_second: float


class Outcome(msgspec.Struct, frozen=True):
    """What came of it: (arrived, took) of every answer, when requests were refused, and (moment, ready pods)."""

    answers: list[tuple[float, float]]
    refused: list[float]
    pods: list[tuple[float, int]]

    def between(self, begin: float, end: float) -> list[float]:
        """How long the answers took to requests of that time."""
        return [took for arrived, took in self.answers if begin <= arrived < end]


class _Running:
    """One pod's requests, each with the work that will be done when it ends."""

    def __init__(self, pod: Pod, ready_at: float) -> None:
        self.pod, self.ready_at = pod, ready_at
        self.ends: list[tuple[float, float]] = []
        self.samples: deque[tuple[int, int]] = deque(maxlen=WINDOW_SAMPLES)
        self._work, self._now = 0.0, 0.0

    def advance(self, now: float) -> None:
        if self.ends:
            self._work += (now - self._now) * self.pod.rate(len(self.ends)) / len(self.ends)
        self._now = now

    def add(self, now: float, work: float) -> None:
        self.advance(now)
        heapq.heappush(self.ends, (self._work + work, now))

    def next_end(self) -> float:
        if not self.ends:
            return math.inf
        return self._now + (self.ends[0][0] - self._work) * len(self.ends) / self.pod.rate(len(self.ends))

    def finish(self, now: float) -> float:
        """End the next request; returns when it came."""
        self.advance(now)
        return heapq.heappop(self.ends)[1]

    def sample(self) -> None:
        self.samples.append((len(self.ends), max(0, len(self.ends) - self.pod.slots)))


class _Control:
    """The autoscaler's memory: what it wished for, and what it changed."""

    def __init__(self, scaler: Scaler) -> None:
        self.scaler = scaler
        self.wishes: deque[tuple[float, int]] = deque()
        self.changes: deque[tuple[float, int]] = deque()

    def decide(self, now: float, pods: Sequence[_Running]) -> int:
        """How many pods there should be."""
        rule, current = self.scaler, len(pods)
        seen = [pod for pod in pods if pod.samples]  # a pod that was never scraped counts with nothing
        in_flight = sum(sum(sample[0] for sample in pod.samples) / len(pod.samples) for pod in seen)
        waiting = sum(sum(sample[1] for sample in pod.samples) / len(pod.samples) for pod in seen)
        wish = max(_wish(in_flight, rule.in_flight_per_pod, current), _wish(waiting, rule.waiting_per_pod, current))
        wish = min(max(wish, rule.min_pods), rule.max_pods)
        self.wishes.append((now, wish))
        while self.wishes[0][0] < now - rule.down_stabilization:
            self.wishes.popleft()
        if wish > current:
            before = current - self._changed(now, rule.up_seconds, 1)
            wish = min(wish, max(current, math.ceil(before * (1 + rule.up_share))))
        else:
            before = current - self._changed(now, rule.down_seconds, -1)
            steady = max(made for _, made in self.wishes)
            wish = min(current, max(steady, before - rule.down_pods))
        if wish != current:
            self.changes.append((now, wish - current))
        return wish

    def _changed(self, now: float, seconds: float, sign: int) -> int:
        return sum(count for when, count in self.changes if when > now - seconds and count * sign > 0)


def _wish(total: float, target: float, current: int) -> int:
    if abs(total / (target * current) - 1) <= TOLERANCE:
        return current
    return math.ceil(total / target)


def simulate(pod: Pod, scaler: Scaler, phases: Sequence[Phase], seed: int = 0) -> Outcome:
    """Send the phases' load to the pods, and let the scaler have its way.

    Starts with `min_pods` ready pods, and ends when the last request of the last phase is answered.
    """
    rng = random.Random(seed)
    control = _Control(scaler)
    pods = [_Running(pod, 0.0) for _ in range(scaler.min_pods)]
    ending: list[_Running] = []
    outcome = Outcome([], [], [(0.0, len(pods))])
    arrivals = _arrivals(phases, rng)
    arrival = next(arrivals, math.inf)
    look = SCRAPE_SECONDS
    while True:
        working = min((*pods, *ending), key=_Running.next_end)
        now = min(arrival, working.next_end())
        if now == math.inf:
            return outcome
        if look <= now:
            ready = [each for each in pods if each.ready_at <= look]
            for each in ready:
                each.sample()
            outcome.pods.append((look, len(ready)))
            wanted = control.decide(look, pods)
            pods += [_Running(pod, look + pod.start_s) for _ in range(wanted - len(pods))]
            for _ in range(len(pods) - wanted):
                # The youngest first; one that is not ready yet has nothing to finish.
                ending.append(pods.pop())
            look += SCRAPE_SECONDS
        elif now == arrival:
            chosen = rng.choice([each for each in pods if each.ready_at <= now])
            if len(chosen.ends) >= pod.max_queue:
                outcome.refused.append(now)
            else:
                chosen.add(now, rng.expovariate(1.0))
            arrival = next(arrivals, math.inf)
        else:
            came = working.finish(now)
            outcome.answers.append((came, now - came))
            ending = [each for each in ending if each.ends]


def _arrivals(phases: Sequence[Phase], rng: random.Random) -> itertools.chain[float]:
    def of(begin: float, phase: Phase) -> list[float]:
        moments, now = [], begin + rng.expovariate(phase.per_second)
        while now < begin + phase.seconds:
            moments.append(now)
            now += rng.expovariate(phase.per_second)
        return moments

    begins = itertools.accumulate((phase.seconds for phase in phases), initial=0.0)
    return itertools.chain.from_iterable(of(begin, phase) for begin, phase in zip(begins, phases, strict=False))
