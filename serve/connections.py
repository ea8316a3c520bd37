"""A connection's patience with its client: headers that never end and answers that nobody reads are hung up on."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class BoundedConnection(H11Protocol):
    """uvicorn's HTTP/1.1 with two time limits, set by a subclass.

    Without them a client that sends a header a minute, or stops reading, keeps its connection for ever, and what
    it was accepted for its place.
    """

    header_seconds: float
    """From the first byte of a request (or the connection) to the end of its headers."""
    read_seconds: float
    """How long bytes may wait to be sent because the client does not read."""

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect headers."""
        super().connection_made(transport)
        self._headers_due = self.loop.call_later(self.header_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Expect the rest of the headers, until they are complete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._headers_came()
        elif self._headers_due is None:
            self._headers_due = self.loop.call_later(self.header_seconds, self.transport.abort)

    def on_response_complete(self) -> None:
        """The next request's headers may be here already: then they are read now."""
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE:
            self._headers_came()

    def pause_writing(self) -> None:
        """More waits to be sent than should: the client must read now."""
        super().pause_writing()
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        self._was_read()

    def connection_lost(self, exc: Exception | None) -> None:
        """No more limits."""
        self._headers_came()
        self._was_read()
        super().connection_lost(exc)

    def _headers_came(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _was_read(self) -> None:
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None
