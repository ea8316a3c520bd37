"""Servers in turns: every round each of them answers the same functions, so that what the machine does comes to all.

    python -m bench.turns --model models/nano --peers ours-completions,openvino --write-docs

A rented machine is a fifth faster or slower within minutes. `bench.serve` measures everybody once, one after another;
this measures few of them many times, and by the time that the same work takes. Peers are installed as for
`bench.serve`, and their forms of the weights kept in the same --work. Measure on a machine that does nothing else.
"""

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from bench.docs import DOCS, write_figures
from bench.serve import add_peer_options, interpreter_of
from bench.serving.asking import ask_all, complete, connections
from bench.serving.measure import encoded
from bench.serving.models import Model, load_model
from bench.serving.peer import Peer, running
from bench.serving.workload import Workload
from bench.verdicts import markdown

COMMAND = "python -m bench.turns --model models/nano --peers ours-completions,openvino --write-docs"
WARM_UP = 150


def seconds_of(
    peer: Peer, model: Model, python: Path, questions: Sequence[Sequence[bytes]], clients: Sequence[int]
) -> list[float]:
    """Start a peer, and have so many clients ask all of their questions; seconds for each number of clients."""
    with running(peer, model, peer.prepare(model, python), python) as server:
        return asyncio.run(_ask_all(peer, server.url, questions, clients))


async def _ask_all(peer: Peer, url: str, questions: Sequence[Sequence[bytes]], clients: Sequence[int]) -> list[float]:
    taken = []
    async with connections(max(clients), peer.keeps_connections) as session:
        ask = partial(complete, session, url + peer.path)
        for bodies, count in zip(questions, clients, strict=True):
            await ask_all(ask, bodies[:WARM_UP], count)
            begun = time.perf_counter()
            await ask_all(ask, bodies[WARM_UP:], count)
            taken.append(time.perf_counter() - begun)
    return taken


def as_markdown(taken: dict[tuple[str, int], list[float]], functions: int) -> str:
    """Functions a second: the median of all rounds, the slowest and the fastest."""
    rows = [["server", "clients", "answers/s", "slowest and fastest round"]]
    for (title, clients), seconds in taken.items():
        speeds = sorted(functions / each for each in seconds)
        rows.append([title, str(clients), f"{median(speeds):.1f}", f"{speeds[0]:.1f} to {speeds[-1]:.1f}"])
    return markdown(rows)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.turns", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a bundle")
    add_peer_options(parser, clients=[32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--functions", type=int, default=800, help="for each number of clients")
    options = parser.parse_args()
    model = load_model(options.model, options.work)
    functions = Workload(model.bundle).functions()
    each = WARM_UP + options.functions
    shares = [functions[place * each : (place + 1) * each] for place in range(len(options.concurrency))]
    asked = {
        peer: [[encoded(peer, model, question) for question in share] for share in shares] for peer in options.peers
    }
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(options.rounds):
        for peer, questions in asked.items():
            seconds = seconds_of(peer, model, interpreter_of(peer, options), questions, options.concurrency)
            for count, spent in zip(options.concurrency, seconds, strict=True):
                taken[peer.title, count].append(spent)
                print(f"round {number + 1}: {peer.title}, {count} clients: {spent:.1f} s", file=sys.stderr, flush=True)
    table = f"{options.rounds} rounds of {options.functions} functions:\n\n{as_markdown(taken, options.functions)}\n"
    print(table)
    if options.write_docs:
        write_figures(DOCS / "bench-serve.md", COMMAND, table)


if __name__ == "__main__":
    main()
