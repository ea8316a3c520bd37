"""Answers that end when nobody waits for them any more: one whole answer, or one that is sent bit by bit."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from litestar import Litestar, Request
from litestar.response import Response
from litestar.types import ASGIApp, Receive, Scope, Send

from serve.api.errors import Problem
from serve.api.noted import note

_Result = TypeVar("_Result")

_LINE_ENDS = {character.encode(): rb"\u%04x" % ord(character) for character in "\x85\u2028\u2029"}


class ClientLeft(Problem):
    """Nobody reads it, but the log counts it."""

    def __init__(self) -> None:
        super().__init__("client-left", 499, "The client left", "The connection was closed; work was cancelled.")


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The work's result; the work is cancelled as soon as the client closes its connection.

    Raises:
        ClientLeft: the client has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamedResponse(Response[Any]):
    """An answer sent as it comes about.

    What the first chunk needs may still fail with a status of its own: headers are sent with the first chunk.
    However the answer ends, the iterator is closed before the request is over.
    """

    def __init__(self, chunks: AsyncIterator[bytes], media_type: str) -> None:
        """
        Args:
            chunks: an asynchronous generator; after its first chunk it tells of errors by itself.
            media_type: of the whole.
        """
        super().__init__(content=None, media_type=media_type)
        self._chunks = chunks
        self._media_type = media_type

    def to_asgi_response(self, app: Litestar | None, request: Request[Any, Any, Any], **_: Any) -> ASGIApp:  # type: ignore[override]
        """The framework's way to a response that is an ASGI application."""
        return self._send

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What lies between here and the client must not hold chunks back.
        headers = {"content-type": self._media_type, "cache-control": "no-store", "x-accel-buffering": "no"}
        async with aclosing(self._chunks) as chunks:  # type: ignore[type-var]
            try:
                await unless_client_leaves(receive, _send_all(send, headers, chunks))
            except ClientLeft:
                note(left=True)


async def _send_all(send: Send, headers: Mapping[str, str], chunks: AsyncIterator[bytes]) -> None:
    started = False
    async for chunk in chunks:
        if not started:
            started = True
            encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": encoded})
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def one_line(content: Any) -> bytes:
    """`content` as JSON without any character that `str.splitlines`, and so many a client, takes for a line end.

    JSON itself lets U+0085, U+2028 and U+2029 stand in a string; the others it escapes.
    """
    encoded = msgspec.json.encode(content)
    for character, escaped in _LINE_ENDS.items():
        encoded = encoded.replace(character, escaped)
    return encoded


def event(name: str, content: Any) -> bytes:
    """One server-sent event with `content` as its JSON."""
    return b"event: " + name.encode() + b"\ndata: " + one_line(content) + b"\n\n"
