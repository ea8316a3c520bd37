"""Our server beside others: the same student, the same functions, the same two cores, in turns.

    scripts/bench_peers.sh runs/bench-peers           # once: an environment for each peer
    python -m bench.serve --model runs/nano/bundle --write-docs

As many clients as the concurrency says ask for one function of the standard library after another. Servers of other
projects are asked for completions of the same prompts; ours for these and for whole analyses. Each round measures every
server once, and the median of the rounds counts, because a rented machine is a fifth faster or slower within minutes.
What has to be made (checkpoints, other engines' forms of the weights) is made once, in --work, before the server that
needs it is measured. Measure on a machine that does nothing else.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.docs import DOCS, write_figures
from bench.serving.measure import Measured, measure
from bench.serving.models import RANDOM, Model, load_model
from bench.serving.peer import Peer, PeerFailed
from bench.serving.peers import PEERS
from bench.serving.results import markdown, plot
from bench.serving.rounds import median_of
from bench.serving.workload import Project, Question, Workload
from bundle.manifest import BundleError

CORES = 2
COMMAND = "python -m bench.serve --write-docs"
RESULTS = "bench-serve.json"


def main() -> None:
    """Measure, and print the tables."""
    options = _options()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # whatever is started inherits it
    out = DOCS if options.write_docs else options.work
    results = _measured_before(out / RESULTS)
    for name in options.model:
        try:
            model = load_model(name, options.work)
        except BundleError as error:
            raise SystemExit(str(error)) from error
        results[model.name] = _measured(model, options)
        print(markdown(model.name, results[model.name]), flush=True)
    (out / RESULTS).write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    plot(results, out / "bench-serve.svg")
    tables = [markdown(name, each) for name, each in results.items()]
    write_figures(out / "bench-serve.md", COMMAND, "\n".join([_PLOT, *tables]))
    print(f"written: {out}/bench-serve.md, .json, .svg")


def _measured_before(file: Path) -> dict[str, list[Measured]]:
    """What is there by model: models may be measured on different days."""
    return msgspec.json.decode(file.read_bytes(), type=dict[str, list[Measured]]) if file.is_file() else {}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", nargs="+", default=["runs/nano/bundle"], help=f"bundles, and {RANDOM}: random weights of that shape"
    )
    names = ", ".join(peer.name for peer in PEERS)
    parser.add_argument("--peers", type=_peers, default=PEERS, help=f"of {names}; a prefix takes all that begin so")
    parser.add_argument("--concurrency", type=_numbers, default=[1, 8, 32, 128], help="clients, as 1,8,32")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number of clients, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=PATH", help="another place for one")
    parser.add_argument("--envs", type=Path, default=Path("runs/bench-peers"), help="where the other peers' are")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-serve"), help="for checkpoints and results")
    parser.add_argument("--write-docs", action="store_true", help="write the results into docs/ instead")
    return parser.parse_args()


def _peers(text: str) -> list[Peer]:
    chosen = [peer for peer in PEERS if any(peer.name.startswith(name) for name in text.split(","))]
    if not chosen:
        raise argparse.ArgumentTypeError(f"no peer is called {text!r}; there are {', '.join(p.name for p in PEERS)}")
    return chosen


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _measured(model: Model, options: argparse.Namespace) -> list[Measured]:
    workload = Workload(model.bundle)
    functions = workload.functions()
    projects = None
    if not model.random:
        project = workload.project()
        projects = project, workload.changed(project)
    # Random weights hardly end an analysis, so that its length would say more than its speed.
    peers = [peer for peer in options.peers if not (model.random and peer.name == "ours")]
    rounds: dict[Peer, list[Measured]] = {peer: [] for peer in peers}
    for number in range(options.rounds):
        for peer in peers:
            print(f"{model.name}, round {number + 1}: {peer.title}", file=sys.stderr, flush=True)
            rounds[peer].append(_round(peer, model, functions, projects, options))
    return [median_of(each) for each in rounds.values()]


def _round(
    peer: Peer,
    model: Model,
    functions: Sequence[Question],
    projects: tuple[Project, Project] | None,
    options: argparse.Namespace,
) -> Measured:
    python = _interpreter_of(peer, options)
    try:
        if not python.with_name(peer.needs).exists():
            raise PeerFailed(f"not installed; {peer.install}")
        return measure(peer, model, python, functions, projects, options.concurrency, options.seconds)
    except PeerFailed as failed:
        print(f"{peer.title}: {failed}", file=sys.stderr)
        return Measured(peer.name, peer.title, absent=str(failed).splitlines()[0])


def _interpreter_of(peer: Peer, options: argparse.Namespace) -> Path:
    """The Python that a peer is installed for."""
    if peer.environment == "ours":
        return Path(sys.executable)
    named = dict(each.split("=", 1) for each in options.env)
    place = Path(named.get(peer.environment, options.envs / peer.environment))
    return (place / "bin" / "python" if place.is_dir() else place).absolute()


_PLOT = "![Analyses a second over the number of clients](bench-serve.svg)\n"

if __name__ == "__main__":
    main()
