"""Answers that are kept: found by content, forgotten by age, made once, and nobody else's."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakeredis import TcpFakeServer
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.analysis.cache import ENTRY_OVERHEAD_BYTES, AnswerCache
from serve.api.keys import add_new_key
from tests.serve.conftest import Server, running_server
from tests.support.server_process import free_port

LINES = "def {name}(a):\n    if a == None:\n        return a[1]\n    return a\n\n\n"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 400)), max_size=60))
async def test_what_is_kept_is_the_last_that_was_put_and_never_more_than_the_bound(puts: list[tuple[str, int]]) -> None:
    bound = 3 * (ENTRY_OVERHEAD_BYTES + 200)
    cache = AnswerCache("bundle", bound)
    last: dict[str, str] = {}
    for key, size in puts:
        last[key] = "x" * size
        await cache.put(key, last[key])
        assert cache.bytes <= bound
    kept = {key: await cache.get(key, str) for key in last}
    assert all(value in (None, last[key]) for key, value in kept.items())
    assert cache.bytes == sum(len(value) + 2 + ENTRY_OVERHEAD_BYTES for value in kept.values() if value is not None)


async def test_the_least_recently_used_is_given_up_first() -> None:
    cache = AnswerCache("bundle", 2 * (ENTRY_OVERHEAD_BYTES + 3))
    await cache.put("a", 1)
    await cache.put("b", 2)
    assert await cache.get("a", int) == 1
    await cache.put("c", 3)
    assert [await cache.get(key, int) for key in "abc"] == [1, None, 3]


def test_keys_differ_by_bundle_tenant_and_every_part() -> None:
    cache = AnswerCache("bundle", 1)
    keys = [
        cache.key("", "ab", "c"),
        cache.key("", "a", "bc"),
        cache.key("tenant", "ab", "c"),
        AnswerCache("another bundle", 1).key("", "ab", "c"),
    ]
    assert len(set(keys)) == len(keys)
    assert cache.key("", "ab", "c") == keys[0]


async def test_what_many_want_at_once_is_made_once_and_outlives_who_asked_first() -> None:
    cache = AnswerCache("bundle", 1000)
    made, go = 0, asyncio.Event()

    async def make() -> str:
        nonlocal made
        made += 1
        await go.wait()
        return "value"

    first, second, third = (asyncio.create_task(cache.once("name", make)) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    go.set()
    assert [await second, await third] == [("value", False), ("value", False)]
    assert made == 1
    assert await cache.once("name", make) == ("value", True)


async def test_what_nobody_waits_for_any_more_is_cancelled() -> None:
    cache = AnswerCache("bundle", 1000)
    cancelled = asyncio.Event()

    async def make() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    waiting = [asyncio.create_task(cache.once("name", make)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait_for(cancelled.wait(), 10)

    async def make_again() -> str:
        return "again"

    assert await cache.once("name", make_again) == ("again", True)


class BrokenStore:
    """A shared store that is gone."""

    calls = 0

    async def get(self, key: str) -> bytes | None:
        self.calls += 1
        raise ConnectionError("gone")

    async def set(self, key: str, value: str | bytes, expires_in: int | None = None) -> None:
        self.calls += 1
        raise ConnectionError("gone")


async def test_a_shared_store_that_is_gone_costs_nothing_but_the_first_try() -> None:
    store = BrokenStore()
    cache = AnswerCache("bundle", 1000, store)
    assert await cache.get("key", str) is None
    await cache.put("key", "value")
    assert await cache.get("key", str) == "value"
    assert store.calls == 1


def analyze(server: Server, code: str, key: str | None = None, **fields: Any) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"code": code, "min_confidence": 0, **fields}
    response = httpx.post(f"{server.url}/v1/analyze", json=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def computed(report: dict[str, Any]) -> int:
    """Prompt tokens that had to be computed."""
    return report["usage"]["prompt_tokens"] - report["usage"]["cached_tokens"]


def without_usage(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "usage"}


def test_the_same_file_is_answered_from_memory_and_a_changed_one_costs_what_changed(server: Server) -> None:
    code = "".join(LINES.format(name=f"cached_{n}") for n in range(12))
    cold = analyze(server, code)
    again = analyze(server, code)
    assert computed(again) == 0 < computed(cold)
    assert without_usage(again) == without_usage(cold)
    changed = analyze(server, code.replace("def cached_7(a)", "def cached_7(b, a)"))
    assert 0 < computed(changed) < computed(cold) / 4
    moved = analyze(server, f"# a comment\n\n\n{code}", path="elsewhere.py")
    assert computed(moved) == 0
    assert [finding["start_line"] - 3 for finding in moved["findings"]] == [
        finding["start_line"] for finding in cold["findings"]
    ]


def test_other_rules_are_another_question(server: Server) -> None:
    code = LINES.format(name="of_other_rules")
    assert computed(analyze(server, code)) > 0
    assert computed(analyze(server, code, rules=["off-by-one"])) > 0


def test_what_one_key_has_sent_is_not_known_to_another(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    mine, other = add_new_key(file, "mine"), add_new_key(file, "other")
    with running_server(tiny_bundle, "--api-keys", str(file)) as server:
        code = LINES.format(name="secret")
        assert computed(analyze(server, code, mine)) > 0
        assert computed(analyze(server, code, other)) > 0
        assert computed(analyze(server, code, mine)) == 0


@pytest.fixture
def valkey_url() -> Iterator[str]:
    port = free_port()
    store = TcpFakeServer(("127.0.0.1", port), server_type="valkey")
    threading.Thread(target=store.serve_forever, daemon=True).start()
    yield f"valkey://127.0.0.1:{port}"
    store.shutdown()
    store.server_close()


def test_servers_share_what_they_know_through_valkey(tiny_bundle: Path, valkey_url: str) -> None:
    code = LINES.format(name="shared")
    with running_server(tiny_bundle, "--cache-url", valkey_url) as server:
        cold = analyze(server, code)
    with running_server(tiny_bundle, "--cache-url", valkey_url) as another:
        known = analyze(another, code)
    assert computed(known) == 0 < computed(cold)
    assert without_usage(known) == without_usage(cold)
