"""One request and its figures, and many of them side by side."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from statistics import quantiles

import aiohttp
import msgspec

REQUEST_SECONDS = 600.0
WARM_UP_SHARE = 0.2
LONGEST_CELL = 3
"""In windows: a cell goes on past its window until every client has had an answer, but not for longer than this."""


class Answered(msgspec.Struct, frozen=True):
    """When an answer's first text and its end came, on the clock of `time.perf_counter()`, and its tokens."""

    asked: float
    first_text: float | None
    ended: float
    tokens: int

    @property
    def latency(self) -> float:
        return self.ended - self.asked


class Load(msgspec.Struct, frozen=True):
    """What one server did under one number of clients; times in seconds, percentiles over answers."""

    clients: int
    answers: int
    failures: int
    analyses_per_s: float
    tokens_per_s: float
    first_text_p50: float | None
    first_text_p95: float | None
    latency_p50: float | None
    latency_p99: float | None
    rounds: list[float] = []
    """Where this is the median of several: the analyses/s of each, from the slowest."""


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Choice(msgspec.Struct):
    text: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


class _Report(msgspec.Struct):
    usage: _Usage


_chunk = msgspec.json.Decoder(_Chunk)
_report = msgspec.json.Decoder(_Report)


def connections(clients: int, kept: bool = True) -> aiohttp.ClientSession:
    """A session with a connection for each client, or with one for each request where they are not `kept`."""
    connector = aiohttp.TCPConnector(limit=clients, force_close=not kept)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS))


async def complete(session: aiohttp.ClientSession, url: str, body: bytes) -> Answered:
    """Read a streamed completion to its end.

    Raises:
        aiohttp.ClientError: it was refused, or broken off.
    """
    asked = time.perf_counter()
    first_text = None
    tokens = 0
    async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = _chunk.decode(line[6:])
            if first_text is None and any(choice.text for choice in chunk.choices):
                first_text = time.perf_counter()
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
    if not tokens:
        raise aiohttp.ClientPayloadError(f"{url} sent an answer without its usage")
    return Answered(asked, first_text, time.perf_counter(), tokens)


async def analyze(session: aiohttp.ClientSession, url: str, body: bytes) -> Answered:
    """Read one report.

    Raises:
        aiohttp.ClientError: it was refused, or broken off.
    """
    asked = time.perf_counter()
    async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
        response.raise_for_status()
        report = _report.decode(await response.read())
    return Answered(asked, None, time.perf_counter(), report.usage.completion_tokens)


async def analyze_batch(session: aiohttp.ClientSession, url: str, files: Mapping[str, str]) -> None:
    """Have all files, by their path, analysed in one request.

    Args:
        session: any.
        url: of the server.
        files: path -> code.

    Raises:
        aiohttp.ClientError: it was refused, or broken off, or a file has no report.
    """
    items = [{"id": path, "code": code, "path": path} for path, code in files.items()]
    async with session.post(f"{url}/v1/analyze/batch", json=items) as response:
        response.raise_for_status()
        lines = (await response.read()).splitlines()
    reports = sum("report" in msgspec.json.decode(line) for line in lines)
    if reports != len(items):
        raise aiohttp.ClientPayloadError(f"a batch of {len(items)} files was answered with {reports} reports")


async def ask_all(ask: Callable[[bytes], Awaitable[Answered]], bodies: Iterable[bytes], clients: int) -> None:
    """Let `clients` ask one thing after another, until all have been answered.

    Raises:
        ExceptionGroup: one was not.
    """
    remaining = iter(bodies)

    async def client() -> None:
        for body in remaining:
            await ask(body)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())


async def under_load(
    ask: Callable[[bytes], Awaitable[Answered]], bodies: Iterable[bytes], clients: int, seconds: float
) -> Load:
    """Let `clients` ask one thing after another, and count what is answered within a window of `seconds`.

    The window opens when the clients have asked for a while, and closes early where `bodies` end; where they end before
    it opens, everything counts. The time that counts is from the last answer before the window, or the beginning, to
    the last within: clients that begin together are answered in waves, of which a window holds no whole number. What is
    unanswered when it closes is waited for, as long as a window, so that nobody works on it while something else is
    measured.
    """
    answers: list[Answered] = []
    failures: list[float] = []
    remaining = iter(bodies)

    closed = asyncio.Event()

    async def client() -> None:
        for body in remaining:
            if closed.is_set():
                return
            try:
                answers.append(await ask(body))
            except (aiohttp.ClientError, TimeoutError):
                failures.append(time.perf_counter())
                await asyncio.sleep(0.05)  # who is refused at once would do nothing else

    started = time.perf_counter()
    working = [asyncio.create_task(client()) for _ in range(clients)]

    async def wait(most: float) -> bool:
        """Whether every client has come to the end of `bodies`, or one failed, before `most` seconds have passed."""
        await asyncio.wait(working, timeout=most, return_when=asyncio.FIRST_EXCEPTION)
        return all(task.done() for task in working) or any(task.done() and task.exception() for task in working)

    over = await wait(seconds * WARM_UP_SHARE)
    begun = started if over else time.perf_counter()
    while not over:
        now = time.perf_counter()
        counted = sum(answer.ended >= begun for answer in answers)
        if now >= begun + seconds and (counted >= clients or now >= begun + seconds * LONGEST_CELL):
            break
        over = await wait(max(begun + seconds - now, 0.1))
    ended = time.perf_counter()
    closed.set()
    await wait(seconds)
    for task in working:
        task.cancel()
    for outcome in await asyncio.gather(*working, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome  # what no client expected
    failed = sum(begun <= moment <= ended for moment in failures)
    before = max((answer.ended for answer in answers if answer.ended < begun), default=started)
    within = [answer for answer in answers if before < answer.ended <= ended]
    last = max((answer.ended for answer in within), default=ended)
    return _load(clients, within, failed, last - before)


def _load(clients: int, answers: list[Answered], failures: int, seconds: float) -> Load:
    first = [answer.first_text - answer.asked for answer in answers if answer.first_text is not None]
    latency = [answer.latency for answer in answers]
    return Load(
        clients=clients,
        answers=len(answers),
        failures=failures,
        analyses_per_s=len(answers) / seconds,
        tokens_per_s=sum(answer.tokens for answer in answers) / seconds,
        first_text_p50=percentile(first, 50),
        first_text_p95=percentile(first, 95),
        latency_p50=percentile(latency, 50),
        latency_p99=percentile(latency, 99),
    )


def percentile(values: list[float], which: int) -> float | None:
    """The value that `which` of a hundred parts of the values are not above; None of no values."""
    if len(values) < 2:
        return values[0] if values else None
    return quantiles(values, n=100, method="inclusive")[which - 1]
