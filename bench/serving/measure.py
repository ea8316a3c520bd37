"""Everything that is measured of one peer: its start, its memory, each number of clients, a project and its repeat."""

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import aiohttp
import httpx
import msgspec

from bench.serving.asking import Load, analyze, analyze_batch, ask_all, complete, connections, under_load
from bench.serving.models import Model
from bench.serving.peer import Peer, PeerFailed, Running, running
from bench.serving.peers.ours import Ours
from bench.serving.workload import Project, Question

PROJECT_CLIENTS = 32
LONGEST_PROJECT_SECONDS = 90.0


class ApiTime(msgspec.Struct, frozen=True):
    """Of POST /v1/analyze: mean seconds of a request within the server, and of what it asked the engine."""

    clients: int
    request_s: float
    engine_s: float

    @property
    def overhead(self) -> float:
        """What the API adds, as a share of the engine's time."""
        return self.request_s / self.engine_s - 1


class ProjectTime(msgspec.Struct, frozen=True):
    """How long all units of a project took, in seconds, and those of its changed version after it; None: too long."""

    units: int
    cold_s: float | None
    changed_s: float | None


class Measured(msgspec.Struct, frozen=True):
    """The figures of one peer; or why there are none, in `absent`."""

    name: str
    title: str
    absent: str | None = None
    start_s: float | None = None
    peak_bytes: int | None = None
    loads: list[Load] = []
    project: ProjectTime | None = None
    api: list[ApiTime] = []


def measure(
    peer: Peer,
    model: Model,
    python: Path,
    functions: Sequence[Question],
    projects: tuple[Project, Project] | None,
    clients: Sequence[int],
    seconds: float,
) -> Measured:
    """Start a peer twice: once for the functions and once, where there are `projects`, for these.

    Raises:
        PeerFailed: it could not be made ready, or did not start.
    """
    weights = peer.prepare(model, python)
    bodies = [_encoded(peer, model, question) for question in functions]
    with running(peer, model, weights, python) as server:
        loads, api = asyncio.run(_loads(peer, server, bodies, clients, seconds))
    times = None
    if projects is not None:
        try:
            with running(peer, model, weights, python) as fresh:
                times = asyncio.run(_project(peer, model, fresh, *projects))
        except PeerFailed as failed:  # what was measured before still counts
            print(f"{peer.title}: no project: {failed}", file=sys.stderr)
    return Measured(
        name=peer.name,
        title=peer.title,
        start_s=server.start_seconds,
        peak_bytes=server.peak_bytes,
        loads=loads,
        project=times,
        api=api,
    )


async def _loads(
    peer: Peer, server: Running, bodies: Sequence[bytes], clients: Sequence[int], seconds: float
) -> tuple[list[Load], list[ApiTime]]:
    loads, api = [], []
    async with connections(max(clients), peer.keeps_connections) as session:
        ask = partial(analyze if peer.path == Ours.path else complete, session, server.url + peer.path)
        await ask(bodies[0])
        server.answered()
        for number, count in enumerate(clients):
            # No function is asked about twice, and every peer is asked about the same ones first.
            share = bodies[1 + number :: len(clients)]
            before = _seconds_spent(server.url) if peer.path == Ours.path else None
            loads.append(await under_load(ask, share, count, seconds))
            if before is not None and loads[-1].answers:
                api.append(_api_time(count, before, _seconds_spent(server.url)))
    return loads, api


def _encoded(peer: Peer, model: Model, question: Question) -> bytes:
    """What a peer is sent about a question."""
    return msgspec.json.encode(peer.body(model, question))


class _Spent(msgspec.Struct, frozen=True):
    """Sums and counts from /metrics."""

    request_s: float
    requests: float
    engine_s: float
    engine_requests: float


def _seconds_spent(url: str) -> _Spent:
    page = httpx.get(f"{url}/metrics", timeout=60).text

    def value(histogram: str, what: str, labels: str) -> float:
        found = re.findall(rf"^deepcode_{histogram}_{what}\{{.*{labels}.*\}} (\S+)$", page, re.MULTILINE)
        return sum(map(float, found))

    request = partial(value, "http_request_duration_seconds", labels='route="/v1/analyze"')
    engine = partial(value, "e2e_request_latency_seconds", labels="")
    return _Spent(request("sum"), request("count"), engine("sum"), engine("count"))


def _api_time(clients: int, before: _Spent, after: _Spent) -> ApiTime:
    return ApiTime(
        clients,
        (after.request_s - before.request_s) / (after.requests - before.requests),
        (after.engine_s - before.engine_s) / (after.engine_requests - before.engine_requests),
    )


async def _project(peer: Peer, model: Model, server: Running, first: Project, changed: Project) -> ProjectTime:
    ask = _as_batch if isinstance(peer, Ours) else partial(_as_completions, peer, model)
    async with connections(PROJECT_CLIENTS, peer.keeps_connections) as session:
        cold = await _timed(ask, session, server.url, first)
        again = None if cold is None else await _timed(ask, session, server.url, changed)
    return ProjectTime(len(first.questions), cold, again)


async def _timed(
    ask: Callable[[aiohttp.ClientSession, str, Project], Awaitable[None]],
    session: aiohttp.ClientSession,
    url: str,
    project: Project,
) -> float | None:
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(LONGEST_PROJECT_SECONDS):
            await ask(session, url, project)
    except TimeoutError:
        return None
    return time.perf_counter() - begun


async def _as_batch(session: aiohttp.ClientSession, url: str, project: Project) -> None:
    await analyze_batch(session, url, project.files)


async def _as_completions(peer: Peer, model: Model, session: aiohttp.ClientSession, url: str, project: Project) -> None:
    bodies = [_encoded(peer, model, question) for question in project.questions]
    await ask_all(partial(complete, session, url + peer.path), bodies, PROJECT_CLIENTS)
