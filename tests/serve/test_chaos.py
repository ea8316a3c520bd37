"""Many unruly clients at once, for a few seconds; `python -m bench.chaos` does it for minutes."""

import asyncio
from pathlib import Path

import httpx

from bench.chaos import in_progress, misbehave, resident_bytes
from tests.serve.conftest import running_server, wait_until

CLIENTS = 64
SECONDS = 6.0
GROWTH_BYTES = 200_000_000


def test_no_request_is_lost_and_nothing_is_left_over(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--max-queue", "32") as server:
        asyncio.run(misbehave(server.url, CLIENTS, SECONDS / 4, seed=1_000))
        before = resident_bytes(server.process.pid)
        outcome = asyncio.run(misbehave(server.url, CLIENTS, SECONDS))
        assert outcome.lost == []
        assert outcome.sent == outcome.answered.total() + outcome.left >= CLIENTS
        wait_until(lambda: in_progress(server.url) == 0)
        assert resident_bytes(server.process.pid) - before < GROWTH_BYTES
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        assert not [line for line in server.log() if line["level"] == "error"]
