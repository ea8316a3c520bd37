"""How much the server takes on: requests at once, requests and tokens a minute, and how long a body may take."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from serve.api.errors import RETRY_AFTER_SECONDS, Problem, draining


class TokenBucket:
    """So much a minute, with a full minute's worth at the start; what was spent beyond it is paid back first."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            per_minute: how much flows in, and how much it holds.
            clock: seconds.
        """
        self.per_minute = per_minute
        self._clock = clock
        self._level = per_minute
        self._filled_at = clock()

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` is there; 0 when it is."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._filled_at) * self.per_minute / 60)
        self._filled_at = now
        # A minute's worth is all there ever is: whoever wants more than that waits for a full bucket.
        missing = min(amount, self.per_minute) - self._level
        return max(0.0, missing * 60 / self.per_minute)

    def spend(self, amount: float) -> None:
        """Take `amount`, be it there or not."""
        self.wait_s(0)
        self._level -= amount


class Caller:
    """Who sent a request: one API key, or everybody where none is asked for."""

    def __init__(self, name: str, tenant: str, requests_per_minute: float, tokens_per_minute: float) -> None:
        """
        Args:
            name: as it is written in the log.
            tenant: what the caller's kept answers are salted with.
            requests_per_minute: 0 for no limit.
            tokens_per_minute: computed prompt and answer tokens; 0 for no limit.
        """
        self.name, self.tenant = name, tenant
        self._requests = TokenBucket(requests_per_minute) if requests_per_minute else None
        self._tokens = TokenBucket(tokens_per_minute) if tokens_per_minute else None

    def take_request(self) -> None:
        """Count one request.

        Raises:
            Problem: 429 with Retry-After, when the caller has used up its requests or its tokens.
        """
        # Tokens are known when they were spent, so what is asked here is only whether any are left.
        for bucket, amount, unit in ((self._tokens, 1, "tokens"), (self._requests, 1, "requests")):
            wait_s = 0.0 if bucket is None else bucket.wait_s(amount)
            if bucket is not None and wait_s > 0:
                raise Problem(
                    "rate-limited",
                    429,
                    "Too many requests",
                    f"This key may use {bucket.per_minute:g} {unit} a minute; ask again in {math.ceil(wait_s)} s.",
                    {"Retry-After": str(math.ceil(wait_s))},
                )
        if self._requests is not None:
            self._requests.spend(1)

    def spend_tokens(self, tokens: int) -> None:
        """Count tokens that were computed for the caller."""
        if self._tokens is not None:
            self._tokens.spend(tokens)


class Admission:
    """Counts requests from the moment they are accepted, and refuses what is too much."""

    def __init__(self, limit: int) -> None:
        """`limit`: requests accepted at once."""
        self.limit = limit
        self.in_flight = 0
        self.draining = False
        self.rejections: Counter[str] = Counter()
        """How many were refused, by the kind of their problem."""
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def admit(self, caller: Caller) -> Iterator[None]:
        """Hold a place while a request is worked on.

        Raises:
            Problem: 503 with Retry-After, when every place is taken or the server is stopping; 429 with
                Retry-After, when the caller is over its rate.
        """
        try:
            self._check(caller)
        except Problem as refusal:
            self.rejections[refusal.kind] += 1
            raise
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    def _check(self, caller: Caller) -> None:
        if self.draining:
            raise draining("takes nothing new; ask again, it or another one will answer.")
        if self.in_flight >= self.limit:
            raise Problem(
                "overloaded",
                503,
                "The server is full",
                f"{self.in_flight} requests are in progress, as many as this server accepts; try again.",
                {"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        caller.take_request()

    async def idle(self) -> None:
        """Return once nothing is in progress."""
        await self._idle.wait()


class BodyLimits(ASGIMiddleware):
    """Bounds what clients send before anything is made of it: how long one may take, and how much all hold at once.

    How long one body may be is the framework's to check.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(self, seconds: float, bytes_at_once: int) -> None:
        """
        Args:
            seconds: from the end of the headers to the end of the body.
            bytes_at_once: of the bodies of all requests that are not answered.
        """
        self._seconds = seconds
        self._bytes_at_once = bytes_at_once
        self._held = 0

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on; its body raises a 408 Problem once the time is up, and a 503 one when memory is."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        complete = False
        held = 0

        async def receive_within_limits() -> ReceiveMessage:
            nonlocal complete, held
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise Problem(
                    "request-timeout",
                    408,
                    "The body did not arrive in time",
                    f"The request's body was not complete after {self._seconds:g} seconds.",
                    {"Connection": "close"},
                ) from error
            complete = not message.get("more_body", False)
            size = len(message["body"]) if message["type"] == "http.request" else 0
            held += size
            self._held += size
            if self._held > self._bytes_at_once:
                raise Problem(
                    "overloaded",
                    503,
                    "The server is full",
                    f"Requests of more than {self._bytes_at_once} bytes are in progress; try again.",
                    {"Retry-After": str(RETRY_AFTER_SECONDS), "Connection": "close"},
                )
            return message

        try:
            await next_app(scope, receive_within_limits, send)
        finally:
            self._held -= held
