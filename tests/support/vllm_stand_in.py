"""What a vLLM server says, from the tiny student: the part of its completions that the upstream engine uses.

It holds answers to their schema and to nothing else, as vLLM does, and gives every token a log-probability, those the
schema forces too. It can be told to fail in the ways a fleet does.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar, Request, Response, get, post
from litestar.response import Stream

from serve.engine.base import Engine, GenerationRequest
from tests.support.server_process import free_port

FORCED_LOGPROB = -0.25


class StandIn:
    """A server that runs while `running()` is open. Its attributes may be changed at any time."""

    def __init__(self, engine: Engine, model: str, context: int) -> None:
        """
        Args:
            engine: who answers.
            model: the name of the model it serves.
            context: the longest one it says it has.
        """
        self.engine, self.model, self.context = engine, model, context
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.key: str | None = None
        """The API key it asks for."""
        self.refusals: list[int] = []
        """Statuses that the next completions are answered with, one after another."""
        self.breaks_after: int | None = None
        """The connection breaks after so many tokens."""
        self.stalls_after: int | None = None
        """No more comes after so many tokens."""
        self.asked: list[dict[str, Any]] = []
        """The bodies of the completions that were asked for."""
        self.hung_up = 0
        """How many answers were left before their end."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Listen meanwhile."""
        app = Litestar([self._models(), self._completions()], openapi_config=None, logging_config=None)
        config = uvicorn.Config(app, port=self.port, log_config=None, ws="none", timeout_graceful_shutdown=0)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the stand-in did not start"
            threading.Event().wait(0.01)
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()

    def _refuses(self, request: Request[Any, Any, Any]) -> bool:
        return self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}"

    def _models(self) -> Any:
        @get("/v1/models")
        async def models(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
            if self._refuses(request):
                return Response({"error": "Unauthorized"}, status_code=401)
            return Response({"object": "list", "data": [{"id": self.model, "max_model_len": self.context}]})

        return models

    def _completions(self) -> Any:
        @post("/v1/completions", status_code=200)
        async def completions(request: Request[Any, Any, Any]) -> Response[Any]:
            body = await request.json()
            self.asked.append(body)
            if self._refuses(request):
                return Response({"error": "Unauthorized"}, status_code=401)
            if self.refusals:
                return Response({"error": {"message": "not now"}}, status_code=self.refusals.pop(0))
            return Stream(self._events(body), media_type="text/event-stream")

        return completions

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        request = generation_request(body)
        count = 0
        try:
            async with self.engine.submit(request) as stream:
                async for token in stream:
                    if count == self.stalls_after:
                        await asyncio.sleep(3600)
                    if count == self.breaks_after:
                        raise ConnectionError("told to break")
                    count += 1
                    logprobs = {
                        "tokens": [f"token_id:{token.id}"],
                        "token_logprobs": [FORCED_LOGPROB if token.forced else token.logprob],
                    }
                    yield _event({"choices": [{"index": 0, "text": "", "logprobs": logprobs, "finish_reason": None}]})
                yield _event({"choices": [{"index": 0, "text": "", "finish_reason": stream.finish_reason}]})
                details = {"cached_tokens": 7}
                yield _event({"choices": [], "usage": {"completion_tokens": count, "prompt_tokens_details": details}})
                yield b"data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.hung_up += 1
            raise


def generation_request(body: dict[str, Any]) -> GenerationRequest:
    """What a body asks for, in our words. Lines are without text, so that quotes are not held to them."""
    rules: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    if "structured_outputs" in body:
        finding = body["structured_outputs"]["json"]["properties"]["findings"]["items"]["properties"]
        rules, lines = tuple(finding["rule"]["enum"]), ("",) * finding["line"]["maximum"]
    (until,) = body.get("stop", [None])
    return GenerationRequest(
        prompt_ids=body["prompt"],
        rules=rules,
        lines=lines,
        constrained="structured_outputs" in body,
        max_tokens=body["max_tokens"],
        until=None if until is None else until.encode(),
        temperature=body["temperature"],
        seed=body.get("seed", 0),
    )


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def unquoted(request: GenerationRequest) -> GenerationRequest:
    """The same, its quotes free: what an upstream can hold an answer to."""
    return msgspec.structs.replace(request, lines=("",) * len(request.lines))
