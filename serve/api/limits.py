"""How much the server takes on: analyses at once, and how long a body may take to arrive."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from serve.api.errors import Problem

RETRY_AFTER_SECONDS = 1
RETRY_AFTER_DRAIN_SECONDS = 5


class Admission:
    """Counts analyses from the moment they are accepted, and refuses what is too much."""

    def __init__(self, limit: int) -> None:
        """`limit`: analyses accepted at once."""
        self.limit = limit
        self.in_flight = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place while the analysis runs.

        Raises:
            Problem: 503 with Retry-After, when every place is taken or the server is stopping.
        """
        if self.draining:
            raise Problem(
                "draining",
                503,
                "The server is stopping",
                "This server finishes what it has accepted and takes nothing new; ask again, it or another "
                "one will answer.",
                {"Retry-After": str(RETRY_AFTER_DRAIN_SECONDS)},
            )
        if self.in_flight >= self.limit:
            raise Problem(
                "overloaded",
                503,
                "The server is full",
                f"{self.in_flight} analyses are in progress, as many as this server accepts; try again.",
                {"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    async def idle(self) -> None:
        """Return once nothing is in progress."""
        await self._idle.wait()


class BodyDeadline(ASGIMiddleware):
    """Gives a client a limited time to send its body, so that slow ones can not pile up."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, seconds: float) -> None:
        """`seconds`: from the end of the headers to the end of the body."""
        self._seconds = seconds

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on; its body raises a 408 Problem once the time is up."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        complete = False

        async def receive_in_time() -> ReceiveMessage:
            nonlocal complete
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
            return message

        await next_app(scope, receive_in_time, send)
