"""Many unruly clients against one real server: every accepted request must be answered or cancelled, none lost.

    python -m bench.chaos runs/nano/bundle --seconds 120

Clients send files and batches of mixed sizes at random; some read slowly, some leave in the middle, some send what can
not be analysed. Afterwards nothing may be in progress, no slot taken, and memory where it was.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

FUNCTION = "def f{n}(a, b=[]):\n    if a == None:\n        return b[{n}]\n    return a\n\n\n"
ANSWER_SECONDS = 300.0
START_SECONDS = 300.0


@dataclass
class Outcome:
    """What became of the requests: `answered` by status, those whose client `left`, and what went wrong."""

    sent: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    left: int = 0
    lost: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The counts, for people."""
        rows = [("sent", self.sent)]
        rows += [(f"answered {status}", count) for status, count in sorted(self.answered.items())]
        rows += [("left by their client", self.left), ("lost", len(self.lost))]
        return "\n".join(f"{name:<22}{count:>8}" for name, count in rows)


class UnrulyClient:
    """One of many; what it does next is decided by its own dice."""

    def __init__(self, http: httpx.AsyncClient, seed: int, outcome: Outcome) -> None:
        self._http, self._dice, self._outcome = http, random.Random(seed), outcome

    async def misbehave(self, until: float) -> None:
        """Send one request after the other, in one way or another."""
        ways = (self._ask, self._ask, self._leave, self._stream, self._stream_slowly, self._batch, self._nonsense)
        while time.monotonic() < until:
            way = self._dice.choice(ways)
            self._outcome.sent += 1
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await way()
            except (httpx.HTTPError, TimeoutError, AssertionError, ValueError) as error:
                self._outcome.lost.append(f"{way.__name__}: {type(error).__name__}: {error}")

    def _body(self) -> dict[str, object]:
        """A file of one to forty functions, some of them seen before."""
        start = self._dice.randrange(200)
        count = self._dice.choice((1, 1, 2, 5, 40))
        return {"code": "".join(FUNCTION.format(n=n) for n in range(start, start + count)), "min_confidence": 0}

    async def _ask(self) -> None:
        response = await self._http.post("/v1/analyze", json=self._body())
        assert response.status_code in (200, 503), response.text
        self._outcome.answered[response.status_code] += 1

    async def _nonsense(self) -> None:
        response = await self._http.post("/v1/analyze", content=self._dice.randbytes(50))
        assert 400 <= response.status_code < 500, response.text
        self._outcome.answered[response.status_code] += 1

    async def _leave(self) -> None:
        patience_s = self._dice.uniform(0.001, 0.3)
        try:
            response = await self._http.post("/v1/analyze", json=self._body(), timeout=patience_s)
        except httpx.TimeoutException:
            self._outcome.left += 1
        else:
            self._outcome.answered[response.status_code] += 1

    async def _stream(self, pause_s: float = 0.0) -> None:
        headers = {"Accept": "text/event-stream"}
        async with self._http.stream("POST", "/v1/analyze", json=self._body(), headers=headers) as response:
            last = b""
            async for part in response.aiter_bytes():
                last = (last + part)[-1_000_000:]
                if pause_s and self._dice.random() < 0.2:
                    self._outcome.left += 1
                    return
                await asyncio.sleep(pause_s)
        assert response.status_code == 503 or b"event: report" in last, "a stream that ends without its report"
        self._outcome.answered[response.status_code] += 1

    async def _stream_slowly(self) -> None:
        await self._stream(self._dice.uniform(0.01, 0.2))

    async def _batch(self) -> None:
        items = [{"id": str(n), **self._body()} for n in range(self._dice.randrange(1, 5))]
        response = await self._http.post("/v1/analyze/batch", json=items)
        if response.status_code == 200:
            ids = {json.loads(line)["id"] for line in response.text.splitlines()}
            assert ids == {item["id"] for item in items}, "a batch that lacks a file"
        else:
            assert response.status_code == 503, response.text
        self._outcome.answered[response.status_code] += 1


async def misbehave(url: str, clients: int, seconds: float, seed: int = 0) -> Outcome:
    """Let `clients` at the server for `seconds`, and wait until each has its last answer."""
    outcome = Outcome()
    until = time.monotonic() + seconds
    async with _connections(url, clients) as http:
        await asyncio.gather(*(UnrulyClient(http, seed + n, outcome).misbehave(until) for n in range(clients)))
    return outcome


@asynccontextmanager
async def _connections(url: str, clients: int) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, limits=limits) as http:
        yield http


def in_progress(url: str) -> float:
    """Requests the server still works on, engine requests included."""
    page = httpx.get(f"{url}/metrics", timeout=60).text
    found = re.findall(r"^deepcode_(?:requests_in_flight|num_requests_\w+)\{.*\} (\S+)$", page, re.MULTILINE)
    return sum(map(float, found))


def resident_bytes(pid: int) -> int:
    """Memory of one process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None, "Linux alone tells this"
    return int(found[1]) * 1024


@contextmanager
def server(bundle: Path, port: int, *flags: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server of this bundle that is ready, and its process, which is killed at the end."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "serve.cli", str(bundle), "--port", str(port), *flags]
        process = subprocess.Popen(command, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _is_ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"the server did not start:\n{log.read().decode()}")
                time.sleep(0.1)
            yield url, process
        finally:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def main() -> int:
    """Run it; 0 when nothing was lost and nothing is left over."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--port", type=int, default=8765)
    options = parser.parse_args()
    with server(options.bundle, options.port) as (url, process):
        # The first tenth fills buffers and caches; what grows after it would go on growing.
        asyncio.run(misbehave(url, options.clients, options.seconds / 10, seed=1_000_000))
        before = resident_bytes(process.pid)
        outcome = asyncio.run(misbehave(url, options.clients, options.seconds))
        after, left_over = resident_bytes(process.pid), in_progress(url)
    print(outcome.table())
    print(f"{'still in progress':<22}{left_over:>8.0f}")
    print(f"{'memory before':<22}{before / 2**20:>6.0f} MiB\n{'memory after':<22}{after / 2**20:>6.0f} MiB")
    for error in outcome.lost[:10]:
        print(f"lost: {error}")
    return 1 if outcome.lost or left_over else 0


if __name__ == "__main__":
    sys.exit(main())
