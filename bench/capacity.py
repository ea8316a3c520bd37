"""How many pods a load takes: what one answers is measured, the rest is simulated.

    python -m bench.capacity --write-docs

Starts a server as k8s/ does (8 slots, 2 threads), has 1 to 64 clients ask it about one function after another, each of
them new, and takes from that what a pod does with so many requests at once. Then it simulates fleets of pods
(`bench.scaling`): the largest load with which 95 of 100 answers keep the goal, and a load that grows all at once, with
the autoscaler of k8s/components/autoscale-hpa and without. Measure on a machine that does nothing else.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import msgspec

from bench.docs import DOCS, write_figures
from bench.scaling import Outcome, Phase, Pod, Scaler, read_scaler, simulate
from bench.serving.asking import Load, analyze, connections, percentile, under_load
from bench.serving.models import Model
from bench.serving.peer import running
from bench.serving.peers.ours import Ours
from bench.serving.workload import Question, Workload
from bundle.manifest import open_bundle

ROOT = Path(__file__).parents[1]
PAGE = DOCS / "capacity.md"
SCALER = ROOT / "k8s" / "components" / "autoscale-hpa" / "autoscaler.yaml"
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
CORES = 2
SLOTS, QUEUE = 8, 64  # of k8s/base/settings.env, as the number of cores is
FLEETS = (2, 4, 6, 8, 10)
STEADY_SECONDS = 300.0
BEFORE, DURING, AFTER = 300.0, 900.0, 900.0


class Surge(msgspec.Struct, frozen=True):
    """A load that grows all at once, and what came of it with the autoscaler and without."""

    before_per_s: float
    during_per_s: float
    scaled: Outcome
    fixed: Outcome


class _PodServer(Ours):
    """The server of one pod, without kept answers: no function is asked about twice anyway."""

    def command(self, model: Model, weights: Path, python: Path, port: int) -> list[str]:
        """With a pod's settings."""
        server = [str(python), "-m", "serve.cli", str(weights), "--port", str(port)]
        return [*server, "--slots", str(SLOTS), "--max-queue", str(QUEUE), "--threads", str(CORES)]


def main() -> None:
    """Measure, simulate, and print the tables."""
    options = _options()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # the server inherits it
    codes = [question.code for question in Workload(options.bundle).functions()]
    start_s, loads = measure(options.bundle, codes, CLIENTS, options.seconds)
    text = report(loads, start_s + options.schedule_seconds, options.goal, options.surge)
    print(text)
    if options.write_docs:
        write_figures(PAGE, "python -m bench.capacity --write-docs", text)
        print(f"written: {PAGE}", file=sys.stderr)


def measure(bundle: Path, codes: Sequence[str], clients: Sequence[int], seconds: float) -> tuple[float, list[Load]]:
    """Seconds from the start of a server to its first answer, and what it does with each number of clients.

    Args:
        codes: functions, each of which is asked about once at most.

    Raises:
        BundleError: there is no such bundle.
        PeerFailed: the server did not start, or broke off.
    """
    peer = _PodServer()
    opened = open_bundle(bundle)
    model = Model(opened.manifest.name, bundle, bundle, bundle, opened.manifest.context_length, 0, False)
    bodies = [msgspec.json.encode(peer.body(model, Question(code, "", []))) for code in codes]

    async def ask_all(url: str) -> list[Load]:
        async with connections(max(clients)) as session:
            ask = partial(analyze, session, url + peer.path)
            await ask(bodies[0])
            server.answered()
            shares = [bodies[1 + number :: len(clients)] for number in range(len(clients))]
            return [await under_load(ask, *each, seconds) for each in zip(shares, clients, strict=True)]

    with running(peer, model, bundle, Path(sys.executable)) as server:
        loads = asyncio.run(ask_all(server.url))
    return server.start_seconds, loads


def pod_of(loads: Sequence[Load], start_s: float) -> Pod:
    """What was measured as a pod. More clients never make it slower: a dip is noise, or a queue that does no work."""
    best, rates = 0.0, []
    for load in loads:
        best = max(best, load.analyses_per_s)
        rates.append((load.clients, best))
    return Pod(tuple(rates), SLOTS, QUEUE, start_s)


def largest_load(pod: Pod, pods: int, goal: float) -> float:
    """The most requests a second that so many pods answer with 95 of 100 within `goal` seconds, none refused."""
    low, high = 0.0, pods * pod.rates[-1][1]
    while high - low > 0.02 * high:
        middle = (low + high) / 2
        outcome = simulate(pod, Scaler(pods, pods), [Phase(STEADY_SECONDS, middle)])
        kept = not outcome.refused and (percentile([took for _, took in outcome.answers], 95) or 0.0) <= goal
        low, high = (middle, high) if kept else (low, middle)
    return low


def surge(pod: Pod, scaler: Scaler, goal: float, factor: float) -> Surge:
    """From what the fewest pods just answer in time to `factor` times that, and back."""
    usual = largest_load(pod, scaler.min_pods, goal)
    phases = [Phase(BEFORE, usual), Phase(DURING, factor * usual), Phase(AFTER, usual)]
    fixed = Scaler(scaler.min_pods, scaler.min_pods)
    return Surge(usual, factor * usual, simulate(pod, scaler, phases), simulate(pod, fixed, phases))


def report(loads: Sequence[Load], start_s: float, goal: float, factor: float) -> str:
    """All tables, as Markdown."""
    pod, scaler = pod_of(loads, start_s), read_scaler(SCALER)
    lines = ["| requests at once | answers/s | median s | slowest of 100, s |", "|---|---|---|---|"]
    for load in loads:
        lines.append(
            f"| {load.clients} | {load.analyses_per_s:.1f} | {load.latency_p50:.2f} | {load.latency_p99:.2f} |"
        )
    lines += ["", f"| pods | requests/s with 95 of 100 within {goal:g} s | a pod |", "|---|---|---|"]
    for pods in FLEETS:
        most = largest_load(pod, pods, goal)
        lines.append(f"| {pods} | {most:.3g} | {most / pods:.1f} |")
    happened = surge(pod, scaler, goal, factor)
    lines += [
        "",
        f"From {happened.before_per_s:.3g} to {happened.during_per_s:.3g} requests a second after {BEFORE / 60:.0f} "
        f"minutes, and back after {(BEFORE + DURING) / 60:.0f}; a pod is ready {start_s:.0f} s after it is wished for:",
        "",
        f"| minutes | requests/s | pods | 95 of 100 within | refused | {scaler.min_pods} pods: within | refused |",
        "|---|---|---|---|---|---|---|",
    ]
    edges = [0.0, 300.0, 360.0, 420.0, 480.0, 600.0, 900.0, 1200.0, 1500.0, 2100.0]
    for begin, end in pairwise(edges):
        now = happened.during_per_s if BEFORE <= begin < BEFORE + DURING else happened.before_per_s
        ready = [count for moment, count in happened.scaled.pods if begin <= moment < end]
        count = f"{min(ready)}" if min(ready) == max(ready) else f"{min(ready)}-{max(ready)}"
        cells = [cell for outcome in (happened.scaled, happened.fixed) for cell in _cells(outcome, begin, end)]
        lines.append(f"| {begin / 60:.0f}-{end / 60:.0f} | {now:.3g} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(outcome: Outcome, begin: float, end: float) -> tuple[str, str]:
    answers = outcome.between(begin, end)
    refused = sum(begin <= moment < end for moment in outcome.refused)
    p95 = percentile(answers, 95)
    return "-" if p95 is None else f"{p95:.1f} s", f"{refused / max(len(answers) + refused, 1):.0%}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "nano")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients (default 10)")
    parser.add_argument("--goal", type=float, default=2.0, help="seconds that 95 of 100 answers keep (default 2)")
    parser.add_argument("--surge", type=float, default=3.0, metavar="FACTOR", help="growth of the load (default 3)")
    parser.add_argument(
        "--schedule-seconds", type=float, default=15.0, help="from the wish to a pod's process (default 15)"
    )
    parser.add_argument("--write-docs", action="store_true", help="write the figures into docs/capacity.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
