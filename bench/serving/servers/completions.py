"""The smallest server of OpenAI's streamed completions, for engines that come without one. Standard library alone."""

import asyncio
import itertools
import json
import os
import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class Asked(NamedTuple):
    """One request: prompt tokens, and how many tokens the answer may have."""

    number: int
    prompt_ids: list[int]
    max_tokens: int


class Written(NamedTuple):
    """What one step added to one answer: text, tokens, and whether it is complete."""

    number: int
    text: str
    tokens: int
    finished: bool


class SteppedEngine(Protocol):
    """Works on many requests at once, a step at a time; it is made and called on one thread."""

    def add(self, asked: Asked) -> None:
        """Take a request."""
        ...

    def drop(self, number: int) -> None:
        """Forget a request whose client has left."""
        ...

    def step(self) -> Iterator[Written]:
        """Work once on everything that was taken; yields nothing for ever once there is nothing left to do."""
        ...


class _Worker:
    """The thread that steps the engine, and the way to it and back."""

    def __init__(self, make_engine: Callable[[], SteppedEngine]) -> None:
        self._make_engine = make_engine
        self._inbox: queue.SimpleQueue[Asked | int] = queue.SimpleQueue()
        self.answers: dict[int, asyncio.Queue[Written]] = {}
        self._loop = asyncio.get_running_loop()
        self.loaded = asyncio.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, asked: Asked) -> asyncio.Queue[Written]:
        answer = self.answers[asked.number] = asyncio.Queue()
        self._inbox.put(asked)
        return answer

    def leave(self, number: int) -> None:
        del self.answers[number]
        self._inbox.put(number)

    def _run(self) -> None:
        try:
            engine = self._make_engine()
            self._loop.call_soon_threadsafe(self.loaded.set)
            self._work(engine)
        except Exception:
            traceback.print_exc()
            os._exit(1)  # a server without its engine would keep its clients waiting

    def _work(self, engine: SteppedEngine) -> None:
        open_requests: set[int] = set()
        while True:
            while not self._inbox.empty() or not open_requests:
                message = self._inbox.get()
                if isinstance(message, Asked):
                    open_requests.add(message.number)
                    engine.add(message)
                elif message in open_requests:
                    open_requests.discard(message)
                    engine.drop(message)
            written = list(engine.step())
            open_requests.difference_update(piece.number for piece in written if piece.finished)
            self._loop.call_soon_threadsafe(self._deliver, written)

    def _deliver(self, written: list[Written]) -> None:
        for piece in written:
            if piece.number in self.answers:
                self.answers[piece.number].put_nowait(piece)


async def serve(make_engine: Callable[[], SteppedEngine], port: int) -> None:
    """Answer POST /v1/completions (`prompt` as token ids, streamed) and GET /health, for ever, once it is made."""
    worker = _Worker(make_engine)
    await worker.loaded.wait()
    numbers = itertools.count()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if head.startswith("GET "):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                await writer.drain()
                return
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = json.loads(await reader.readexactly(int(fields["content-length"])))
            asked = Asked(next(numbers), body["prompt"], body["max_tokens"])
            await _stream(worker, asked, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port, backlog=256) as listener:
        await listener.serve_forever()


async def _stream(worker: _Worker, asked: Asked, writer: asyncio.StreamWriter) -> None:
    pieces = worker.ask(asked)
    writer.write(_STREAM_HEAD)
    tokens = 0
    try:
        while True:
            piece = await pieces.get()
            tokens += piece.tokens
            writer.write(_event({"choices": [{"index": 0, "text": piece.text}]}))
            await writer.drain()
            if piece.finished:
                break
    finally:
        worker.leave(asked.number)
    usage = {"prompt_tokens": len(asked.prompt_ids), "completion_tokens": tokens}
    writer.write(_event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    await writer.drain()


def _event(content: dict) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
