"""Answers that were given before, found again by what they are answers to.

A key is a hash over the bundle, the caller's key and everything an answer depends on, so nothing is ever out of date
and nobody learns from timing what another caller has sent. Values are kept in this process, the least recently
used given up first, and in a store that several servers share, where there is one. Whatever several requests need at
the same moment is made once.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Protocol, TypeVar

import msgspec

SHARED_STORE_KEEPS_SECONDS = 7 * 24 * 3600
SHARED_STORE_PAUSE_SECONDS = 10.0
# What a dictionary entry, its key and its bytes object take beside the value.
ENTRY_OVERHEAD_BYTES = 300

_log = logging.getLogger(__name__)

_Value = TypeVar("_Value")


class SharedStore(Protocol):
    """The part of `litestar.stores.base.Store` that is used here."""

    async def get(self, key: str) -> bytes | None: ...

    async def set(self, key: str, value: str | bytes, expires_in: int | None = None) -> None: ...


class AnswerCache:
    """Keeps encoded values by content; one for one bundle and one engine."""

    def __init__(self, identity: str, max_bytes: int, shared: SharedStore | None = None) -> None:
        """
        Args:
            identity: of the bundle and the engine; another one has other keys.
            max_bytes: memory for what is kept in this process.
            shared: kept there too, for other servers. Who can write to it can write our answers.
        """
        self._identity = identity
        self._max_bytes = max_bytes
        self._shared = shared
        self._shared_again_at = 0.0
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._flights: dict[Hashable, _Flight] = {}
        self.bytes = 0
        self.queries = 0
        self.hits = 0

    def key(self, tenant: str, *parts: object) -> str:
        """The name of a value that depends on `parts` (what msgspec can encode), for one tenant alone."""
        content = msgspec.json.encode([self._identity, tenant, *parts])
        return hashlib.sha256(content).hexdigest()

    async def get(self, key: str, kind: type[_Value]) -> _Value | None:
        """The value kept under `key`, or None."""
        self.queries += 1
        encoded = self._kept.get(key)
        if encoded is not None:
            self._kept.move_to_end(key)
        else:
            encoded = await self._ask_shared(lambda store: store.get(key))
            if encoded is None:
                return None
            self._keep(key, encoded)
        try:
            value = msgspec.json.decode(encoded, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None  # a shared store may hold anything
        self.hits += 1
        return value

    async def put(self, key: str, value: object) -> None:
        """Keep a value."""
        encoded = msgspec.json.encode(value)
        self._keep(key, encoded)
        await self._ask_shared(lambda store: store.set(key, encoded, SHARED_STORE_KEEPS_SECONDS))

    async def once(self, name: Hashable, make: Callable[[], Awaitable[_Value]]) -> tuple[_Value, bool]:
        """What `make` gives, and whether it was made for this caller; who asks for the same name meanwhile waits for
        the same value. It is cancelled when the last of them has left.

        Raises:
            Exception: what `make` raises, for everyone who waits.
        """
        flight = self._flights.get(name)
        first = flight is None
        if flight is None:
            flight = self._flights[name] = _Flight(asyncio.ensure_future(make()))
            flight.making.add_done_callback(lambda _: self._land(name, flight))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.making), first
        finally:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.making.done():
                flight.making.cancel()
                self._land(name, flight)

    def _land(self, name: Hashable, flight: "_Flight") -> None:
        if self._flights.get(name) is flight:
            del self._flights[name]

    def _keep(self, key: str, encoded: bytes) -> None:
        size = len(encoded) + ENTRY_OVERHEAD_BYTES
        if size > self._max_bytes:
            return
        former = self._kept.pop(key, None)
        if former is not None:
            self.bytes -= len(former) + ENTRY_OVERHEAD_BYTES
        self._kept[key] = encoded
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, given_up = self._kept.popitem(last=False)
            self.bytes -= len(given_up) + ENTRY_OVERHEAD_BYTES

    async def _ask_shared(self, use: Callable[[SharedStore], Awaitable[_Value]]) -> _Value | None:
        """None without a shared store, and for a while after it failed: an answer can always be made again."""
        if self._shared is None or time.monotonic() < self._shared_again_at:
            return None
        try:
            return await use(self._shared)
        except Exception as error:  # each store has errors of its own, and none is worth a request
            self._shared_again_at = time.monotonic() + SHARED_STORE_PAUSE_SECONDS
            _log.warning(
                "the shared cache does not answer (%s: %s); it is left alone for %g seconds",
                type(error).__name__,
                error,
                SHARED_STORE_PAUSE_SECONDS,
            )
            return None


class _Flight:
    """A value in the making, and how many wait for it."""

    def __init__(self, making: "asyncio.Future[Any]") -> None:
        self.making = making
        self.waiting = 0
