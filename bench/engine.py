"""What each lever of the ONNX engine is worth: the same units, with one lever released at a time.

    python -m bench.engine runs/nano/bundle                       # units of this repository's serve/
    python -m bench.engine runs/nano/bundle --source ../project --units 400 --concurrency 1 8 32

Clients ask one unit after another, as many clients as the concurrency says, and read every answer to its end. No HTTP.
Measure on a machine that does nothing else.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from types import ModuleType

import msgspec
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from bundle.manifest import Bundle, open_bundle
from bundle.prompt import Prompt
from bundle.units import cut_units
from serve.engine import scheduling, steps
from serve.engine.base import GenerationRequest
from serve.engine.batching import BatchingEngine

NEVER = 10**9

# The name of a lever, and where the constant is that releases it.
RELEASED: dict[str, tuple[ModuleType, str, float] | None] = {
    "as it is": None,
    "prompts begun singly": (scheduling, "MOST_PADDING", -1.0),
    "every shared prefix copied": (steps, "SHORTEST_SHARED_PREFIX", 1),
    "no shared prefix copied": (steps, "SHORTEST_SHARED_PREFIX", NEVER),
    "forced tokens one by one": (steps, "FORCED_CHUNK", NEVER),
    "forced tokens always at once": (steps, "FORCED_CHUNK", 2),
    "whole prompts before any decoding": (steps, "PREFILL_TOKENS_PER_STEP", NEVER),
}


class Speed(msgspec.Struct, frozen=True):
    """One workload at one concurrency; times in seconds."""

    units_per_s: float
    tokens_per_s: float
    first_token: list[float]
    latency: list[float]


def unit_requests(bundle: Bundle, source: Path, count: int) -> list[GenerationRequest]:
    """Requests about the first units below `source` whose prompts leave half of the context."""
    prompt = Prompt(bundle.prompt_template, bundle.catalogue, Tokenizer.from_file(str(bundle.tokenizer_file)))
    requests = []
    for file in sorted(source.rglob("*.py")):
        for unit in cut_units(file.read_text()):
            request = GenerationRequest(tuple(prompt.encode(unit)), bundle.catalogue.ids, unit.texts)
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
def released(lever: tuple[ModuleType, str, float] | None) -> Iterator[None]:
    """One lever's constant replaced meanwhile."""
    if lever is None:
        yield
        return
    module, name, value = lever
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1] / "serve")
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    prompt = Prompt(bundle.prompt_template, bundle.catalogue, Tokenizer.from_file(str(bundle.tokenizer_file)))
    requests = unit_requests(bundle, arguments.source, arguments.units)
    table = Table("lever", "clients", "units/s", "tokens/s", "first token p50 / p95 ms", "latency p50 / p99 ms")
    for name, lever in RELEASED.items():
        for concurrency in arguments.concurrency:
            with released(lever):
                engine = BatchingEngine(bundle, prompt.prefix_ids, concurrency, concurrency, arguments.threads)
                asyncio.run(measure(engine, requests[:concurrency], concurrency))  # warms up
                speed = asyncio.run(measure(engine, requests, concurrency))
                engine.close()
            first, whole = (quantiles([1000 * s for s in each], n=100) for each in (speed.first_token, speed.latency))
            figures = (f"{speed.units_per_s:.1f}", f"{speed.tokens_per_s:.0f}")
            times = (f"{first[49]:.1f} / {first[94]:.1f}", f"{whole[49]:.1f} / {whole[98]:.1f}")
            table.add_row(name, str(concurrency), *figures, *times)
    console = Console()
    console.print(f"{len(requests)} units of {sum(len(request.prompt_ids) for request in requests)} prompt tokens")
    console.print(table)


if __name__ == "__main__":
    main()
