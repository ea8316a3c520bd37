"""What each lever of the ONNX engine is worth: the same units, with one lever released at a time.

    python -m bench.engine models/nano --write-docs               # units of this repository's serve/
    python -m bench.engine runs/nano/bundle --source ../project --units 400 --concurrency 1 8 32

Clients ask one unit after another, as many clients as the concurrency says, and read every answer to its end. No HTTP.
Measure on a machine that does nothing else.
"""

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import quantiles
from types import ModuleType
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from bench.docs import DOCS, write_figures
from bench.verdicts import markdown
from bundle.answer import CLOSING_FINDINGS
from bundle.grammar import AnswerMatcher
from bundle.manifest import MODEL_GRAPH, Bundle, open_bundle
from bundle.units import cut_units
from serve.analysis.loading import load_prompt
from serve.engine import onnx, scheduling, steps
from serve.engine.base import GenerationRequest
from serve.engine.batching import BatchingEngine

COMMAND = "python -m bench.engine models/nano --write-docs"
NEVER = 10**9
_land = steps.Steps._land


class Lever(NamedTuple):
    """Something that the engine does for speed, and how it is let go."""

    predicted: str
    """What letting it go was thought to change in units/s, with models/nano and before it was measured."""
    constant: tuple[ModuleType | type, str, object] | None = None
    """Where the constant or method is, and what lets it go."""
    sentences: bool = False
    """Every answer is written to its end, the unit's sentence too; a server reads that of few units."""


AS_IT_IS = "as it is"
# models/nano: prompts of 150 tokens, 3 of them a shared prefix; answers of 20 tokens, the first of them forced.
LEVERS = {
    AS_IT_IS: Lever(""),
    "prompts through the answers' graph": Lever(
        "-25% at 1 client, -30% from 8 on: reading is two thirds of the work, and a half of that is saved",
        (onnx, "PREFILL_GRAPH", MODEL_GRAPH),
    ),
    "prompts and answers in turns, on both cores": Lever(
        "nothing at 1 client, -20% from 8 on: matrices this small gain nothing from a second thread",
        (onnx, "SMALL_PARAMETERS", 0),
    ),
    "answers wait for the prompts beside them": Lever(
        "nothing at 1 client, -20% from 8 on: a step takes as long as the slower of the two",
        (steps.Steps, "_land", lambda engine, wait: _land(engine, wait=True)),
    ),
    "attention in tiles": Lever(
        "-5% at 1 client, -10% from 8 on: attention is half of prompts and of answers, and a fifth of it is saved",
        (onnx, "UNTILED_PARAMETERS", 0),
    ),
    "prompts begun singly": Lever(
        "nothing at 1 client, -5% from 8 on: each prompt pays for a call", (scheduling, "MOST_PADDING", -1.0)
    ),
    "every shared prefix copied": Lever(
        "the same: 3 tokens are saved, and prompts after a copy are begun singly", (steps, "SHORTEST_SHARED_PREFIX", 1)
    ),
    "no shared prefix copied": Lever(
        "nothing: 3 tokens are too few to be copied anyway", (steps, "SHORTEST_SHARED_PREFIX", NEVER)
    ),
    "forced tokens one by one": Lever(
        "nothing: the forced one is computed with the prompt", (steps, "FORCED_CHUNK", NEVER)
    ),
    "forced tokens always at once": Lever("nothing, as before", (steps, "FORCED_CHUNK", 2)),
    "a mask for every token": Lever(
        "-5% at 1 client, -10% from 8 on: a mask takes as long as a token's share of a step; answers have five",
        (AnswerMatcher, "permits", lambda matcher, token: False),
    ),
    "whole prompts before any decoding": Lever(
        "nothing; first tokens come later beside long prompts", (steps, "PREFILL_TOKENS_PER_STEP", NEVER)
    ),
    "every unit's sentence written": Lever(
        "-60% at 1 client, -25% at 32: most of an answer is its sentence", sentences=True
    ),
}


class Speed(msgspec.Struct, frozen=True):
    """One workload at one concurrency; times in seconds."""

    units_per_s: float
    tokens_per_s: float
    first_token: list[float]
    latency: list[float]


def unit_requests(bundle: Bundle, source: Path, count: int) -> list[GenerationRequest]:
    """Requests about the first units below `source` whose prompts leave half of the context; no sentences."""
    prompt = load_prompt(bundle)
    requests = []
    for file in sorted(source.rglob("*.py")):
        for unit in cut_units(file.read_text()):
            ids = tuple(prompt.encode(unit))
            request = GenerationRequest(ids, bundle.catalogue.ids, unit.texts, until=CLOSING_FINDINGS.encode())
            if len(request.prompt_ids) <= bundle.manifest.context_length // 2:
                requests.append(request)
    return requests[:count]


async def measure(engine: BatchingEngine, requests: Sequence[GenerationRequest], concurrency: int) -> Speed:
    """Ask all requests, `concurrency` at a time."""
    remaining = iter(requests)
    first_token, latency = [], []
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        for request in remaining:
            async with engine.submit(request) as stream:
                tokens += len([token async for token in stream])
            times = stream.timeline
            first_token.append(times.first_token - times.submitted)
            latency.append(times.finished - times.submitted)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client())
    seconds = time.perf_counter() - begun
    return Speed(len(requests) / seconds, tokens / seconds, first_token, latency)


@contextmanager
def let_go(lever: Lever) -> Iterator[None]:
    """What lets the lever go, meanwhile."""
    if lever.constant is None:
        yield
        return
    module, name, value = lever.constant
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def compare(
    bundle: Bundle, requests: Sequence[GenerationRequest], clients: Sequence[int], threads: int, rounds: int
) -> dict[str, list[Speed]]:
    """Every lever's median speeds, one for each number of clients.

    A round has all of them once: what a machine does in the meantime comes to each alike.
    """
    prefix = load_prompt(bundle).prefix_ids
    taken: dict[tuple[str, int], list[Speed]] = defaultdict(list)
    for (name, lever), count in product(list(LEVERS.items()) * rounds, clients):
        asked = [msgspec.structs.replace(each, until=None) for each in requests] if lever.sentences else requests
        with let_go(lever):
            engine = BatchingEngine(bundle, prefix, count, count, threads)
            try:
                asyncio.run(measure(engine, asked[:count], count))  # warms up
                taken[name, count].append(asyncio.run(measure(engine, asked, count)))
            finally:
                engine.close()
    return {name: [_median(taken[name, count]) for count in clients] for name in LEVERS}


def _median(speeds: list[Speed]) -> Speed:
    return sorted(speeds, key=lambda speed: speed.units_per_s)[len(speeds) // 2]


def as_markdown(speeds: dict[str, list[Speed]], clients: Sequence[int]) -> str:
    """What was predicted and what was measured: units/s, and the difference to the engine as it is."""
    rows: list[list[str]] = [["let go", "predicted", *(f"{count} clients: units/s" for count in clients)]]
    for name, measured in speeds.items():
        cells = [f"{speed.units_per_s:.1f}" for speed in measured]
        if name != AS_IT_IS:
            pairs = zip(measured, speeds[AS_IT_IS], strict=True)
            changes = [now.units_per_s / then.units_per_s - 1 for now, then in pairs]
            cells = [f"{cell} ({change:+.0%})" for cell, change in zip(cells, changes, strict=True)]
        rows.append([name, LEVERS[name].predicted, *cells])
    return markdown(rows)


def as_table(speeds: dict[str, list[Speed]], clients: Sequence[int]) -> Table:
    """Every figure."""
    table = Table("let go", "clients", "units/s", "tokens/s", "first token p50 / p95 ms", "latency p50 / p99 ms")
    for name, measured in speeds.items():
        for count, speed in zip(clients, measured, strict=True):
            first, whole = (quantiles([1000 * s for s in each], n=100) for each in (speed.first_token, speed.latency))
            figures = (f"{speed.units_per_s:.1f}", f"{speed.tokens_per_s:.0f}")
            times = (f"{first[49]:.1f} / {first[94]:.1f}", f"{whole[49]:.1f} / {whole[98]:.1f}")
            table.add_row(name, str(count), *figures, *times)
    return table


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1] / "serve")
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write-docs", action="store_true", help="write the comparison into docs/bench-serve.md")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    requests = unit_requests(bundle, options.source, options.units)
    speeds = compare(bundle, requests, options.concurrency, options.threads, options.rounds)
    prompt_tokens = sum(len(request.prompt_ids) for request in requests) / len(requests)
    shared = len(load_prompt(bundle).prefix_ids)
    workload = f"{len(requests)} units, {prompt_tokens:.0f} prompt tokens each, {shared} of them a shared prefix"
    console = Console()
    console.print(workload)
    console.print(as_table(speeds, options.concurrency))
    if options.write_docs:
        compared = as_markdown(speeds, options.concurrency)
        write_figures(DOCS / "bench-serve.md", COMMAND, f"{workload}:\n\n{compared}\n")


if __name__ == "__main__":
    main()
