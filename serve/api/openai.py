"""POST /v1/chat/completions, POST /v1/completions, GET /v1/models: the student for tools that speak OpenAI's API.

This is the student's own text, not an analysis: whoever wants findings that were checked asks /v1/analyze.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import JSONBody, Parameter
from litestar.response import Response
from msgspec import Meta

from serve.analysis.writing import Ending, Writer
from serve.api.bodies import refuse_repeated_keys
from serve.api.described import also_answered_as
from serve.api.errors import MALFORMED_JSON, SPEAKS_OPENAI, Problem, as_problem, documented
from serve.api.leaving import StreamedResponse, one_line, unless_client_leaves
from serve.api.limits import Admission, Caller
from serve.api.noted import note_more
from serve.api.openai_schema import (
    AnswerMessage,
    Asked,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    CompletionUsage,
    Delta,
    Model,
    ModelList,
    PromptDetails,
)
from serve.engine.base import GenerationRequest
from serve.settings import Settings

EVENTS = "text/event-stream"
DONE = b"data: [DONE]\n\n"
ERRORS = documented(400, 401, 404, 408, 413, 422, 429, 503)


class Completions:
    """Answers with the one model that is served, within the server's limits and on the caller's account."""

    def __init__(self, writer: Writer, model: str, settings: Settings, admission: Admission) -> None:
        self.model = model
        self._writer, self._admission = writer, admission
        self._seconds = settings.analysis_seconds

    def check_model(self, name: str) -> None:
        """
        Raises:
            Problem: 404, there is no such model.
        """
        if name != self.model:
            raise Problem("unknown-model", 404, "No such model", f"This server serves {self.model!r}, not {name!r}.")

    async def write(
        self, asked: Asked, make: Callable[[Writer], GenerationRequest], max_tokens: int | None, caller: Caller
    ) -> AsyncIterator[str | Ending]:
        """An empty text once the request is accepted, then the answer's pieces and its ending."""
        self.check_model(asked.model)
        with self._admission.admit(caller):
            request = msgspec.structs.replace(
                await asyncio.to_thread(make, self._writer),
                max_tokens=max_tokens,
                temperature=asked.temperature or 0.0,
                seed=asked.seed or 0,
                salt=caller.tenant,
                deadline=time.monotonic() + self._seconds,
                logprobs=False,
            )
            yield ""
            async with aclosing(self._writer.write(request, asked.stop_sequences, caller.spend_tokens)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    if isinstance(piece, Ending):
                        note_more(
                            prompt_tokens=piece.prompt_tokens,
                            cached_tokens=piece.cached_tokens,
                            completion_tokens=piece.completion_tokens,
                        )
                    yield piece


@post(
    "/v1/completions",
    status_code=200,
    tags=["openai"],
    summary="Go on from a prompt",
    operation_class=also_answered_as(EVENTS),
    responses=ERRORS,
    exception_handlers=MALFORMED_JSON,
    opt={SPEAKS_OPENAI: True},
)
async def complete(
    request: Request[Any, Caller, State], data: JSONBody[CompletionRequest], completions: NamedDependency[Completions]
) -> Response[Completion]:
    """OpenAI's completions: one prompt, one answer, greedy unless a temperature is given."""
    refuse_repeated_keys(await request.body())
    written = completions.write(data, lambda writer: writer.text_request(data.prompt), data.max_tokens, request.auth)
    name, created = f"cmpl-{uuid.uuid4().hex}", int(time.time())

    def piece(text: str, ending: Ending | None, usage: CompletionUsage | None = None) -> Completion:
        choice = CompletionChoice(text=text, finish_reason=None if ending is None else ending.reason)
        return Completion(id=name, created=created, model=completions.model, choices=(choice,), usage=usage)

    def last(usage: CompletionUsage) -> Completion:
        return Completion(id=name, created=created, model=completions.model, choices=(), usage=usage)

    if data.stream:
        return StreamedResponse(_events(request.scope["path"], data, written, piece, last), EVENTS)
    text, ending = await unless_client_leaves(request.receive, _whole(written))
    return Response(piece(text, ending, _usage(ending)))


@post(
    "/v1/chat/completions",
    status_code=200,
    tags=["openai"],
    summary="Answer a conversation",
    operation_class=also_answered_as(EVENTS),
    responses=ERRORS,
    exception_handlers=MALFORMED_JSON,
    opt={SPEAKS_OPENAI: True},
)
async def chat(
    request: Request[Any, Caller, State], data: JSONBody[ChatRequest], completions: NamedDependency[Completions]
) -> Response[ChatCompletion]:
    """OpenAI's chat completions through the bundle's chat template. A student without one answers a single user
    message, the code of one function, with its findings as JSON."""
    refuse_repeated_keys(await request.body())
    messages = [(message.role, message.text) for message in data.messages]
    if any("\0" in text for _, text in messages):
        raise Problem("binary-input", 422, "The message is not text", "A message holds NUL characters.")
    max_tokens = data.max_completion_tokens or data.max_tokens
    written = completions.write(data, lambda writer: writer.chat_request(messages), max_tokens, request.auth)
    name, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def piece(text: str, ending: Ending | None) -> ChatCompletionChunk:
        delta = Delta() if ending is not None else Delta(role="assistant" if text == "" else None, content=text)
        choice = ChunkChoice(delta=delta, finish_reason=None if ending is None else ending.reason)
        return ChatCompletionChunk(id=name, created=created, model=completions.model, choices=(choice,))

    def last(usage: CompletionUsage) -> ChatCompletionChunk:
        return ChatCompletionChunk(id=name, created=created, model=completions.model, choices=(), usage=usage)

    if data.stream:
        return StreamedResponse(_events(request.scope["path"], data, written, piece, last), EVENTS)
    text, ending = await unless_client_leaves(request.receive, _whole(written))
    choice = ChatChoice(message=AnswerMessage(content=text), finish_reason=ending.reason)
    return Response(
        ChatCompletion(id=name, created=created, model=completions.model, choices=(choice,), usage=_usage(ending))
    )


@get(
    "/v1/models",
    tags=["openai"],
    summary="The model that is served",
    responses=documented(401),
    opt={SPEAKS_OPENAI: True},
)
async def models(completions: NamedDependency[Completions]) -> ModelList:
    """There is one: the bundle's student."""
    return ModelList(data=(Model(id=completions.model),))


@get(
    "/v1/models/{model:str}",
    tags=["openai"],
    summary="One model",
    responses=documented(401, 404),
    opt={SPEAKS_OPENAI: True},
)
async def one_model(
    model: Annotated[str, Parameter(), Meta(max_length=512)], completions: NamedDependency[Completions]
) -> Model:
    """404 for any but the one that is served."""
    completions.check_model(model)
    return Model(id=model)


async def _whole(written: AsyncIterator[str | Ending]) -> tuple[str, Ending]:
    text = ""
    async with aclosing(written) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            if isinstance(piece, Ending):
                return text, piece
            text += piece
    raise AssertionError("an answer ends with its ending")


async def _events(
    path: str,
    asked: Asked,
    written: AsyncIterator[str | Ending],
    piece: Callable[[str, Ending | None], msgspec.Struct],
    last: Callable[[CompletionUsage], msgspec.Struct],
) -> AsyncIterator[bytes]:
    """The first piece has no text: it says that the request was accepted. Errors after it are told as OpenAI does."""
    started = False
    async with aclosing(written) as pieces:  # type: ignore[type-var]
        try:
            async for part in pieces:
                started = True
                if isinstance(part, str):
                    yield _data(piece(part, None))
                    continue
                yield _data(piece("", part))
                if asked.stream_options is not None and asked.stream_options.include_usage:
                    yield _data(last(_usage(part)))
        except Exception as error:
            if not started:
                raise
            yield _data(as_problem(error).openai_body(path))
    yield DONE


def _data(content: object) -> bytes:
    return b"data: " + one_line(content) + b"\n\n"


def _usage(ending: Ending) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=ending.prompt_tokens,
        completion_tokens=ending.completion_tokens,
        total_tokens=ending.prompt_tokens + ending.completion_tokens,
        prompt_tokens_details=PromptDetails(ending.cached_tokens),
    )
