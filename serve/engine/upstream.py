"""Answers from vLLM servers: our API in front of a fleet, asked through OpenAI's completions.

Prompts go out as tokens and answers come back as tokens, each with its log-probability. The servers hold an answer to
its schema (vLLM's structured outputs). The schema can not say that a finding quotes the line it names; one that does
not is judged where the answer is read (`bundle.answer.placed_line`).
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from httpx_sse import EventSource, SSEError

from bundle.answer import answer_schema
from bundle.manifest import Bundle, BundleError
from serve.engine.base import EngineAway, EngineError, FinishReason, GenerationRequest
from serve.engine.sampler import Piece

_log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
SILENT_SECONDS = 60.0
"""How long a server may say nothing: it queues requests too. The request's own deadline may come before."""
PROBE_SECONDS = 2.0
PROBE_TIMEOUT_SECONDS = 10.0
ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.2
"""Doubled with every attempt, and anything between half and the whole of it, so that clients do not come at once."""
REFUSED = (400, 413, 422)
"""Statuses that are about the request, and will not change."""
EXPORTS = ("vllm", "nf4")
"""What a fleet serves: the first of these that the bundle has. Only vLLM up to 0.27.1 loads the second."""


class _Logprobs(msgspec.Struct):
    tokens: list[str]
    """`token_id:123`, because that is asked for."""
    token_logprobs: list[float]


class _Choice(msgspec.Struct):
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Busy(Exception):
    """The upstream takes no more work now."""


class UpstreamSampler:
    """A `serve.engine.sampler.Sampler` over one URL; behind it may be many servers."""

    name = "vllm-upstream"
    begins_answers = False
    failure = None
    kv_tokens = 0

    def __init__(self, bundle: Bundle, url: str, model: str | None, key_file: Path | None) -> None:
        """
        Args:
            bundle: an export of it is what the upstream serves.
            url: up to and with `/v1`.
            model: the upstream's name for it; None: the bundle's name.
            key_file: holds the API key the upstream wants; read again at every probe, so that it can be rotated.

        Raises:
            BundleError: it has no export that vLLM serves.
        """
        exports = bundle.manifest.exports
        export = next((exports[kind] for kind in EXPORTS if kind in exports), None)
        if export is None:
            raise BundleError(
                f"{bundle.root}: the bundle has no export that a vLLM server could load; set `export.vllm: {{}}` in "
                "the recipe and run deepcode-compress again"
            )
        self.quantization = export.quantization
        self._url, self._key_file = url.rstrip("/"), key_file
        self._model = model or bundle.manifest.name
        self._context = bundle.manifest.context_length
        self.away: str | None = f"{self._url} was not asked yet"
        self._probe_now = asyncio.Event()
        self._headers: dict[str, str] = {}
        self._client: httpx.AsyncClient
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See `Sampler.start`. The upstream may come up later."""
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for every unit and every probe
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,  # a proxy for the way out is not for the servers beside us
        )
        await self._probe()
        self._tell()
        self._probing = asyncio.create_task(self._keep_probing())

    async def close(self) -> None:
        """See `Sampler.close`."""
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing
            await self._client.aclose()

    async def sample(
        self, request: GenerationRequest, prompt: Sequence[int], max_tokens: int
    ) -> AsyncGenerator[Piece, None]:
        """See `Sampler.sample`. Leaving hangs up, and vLLM gives the request up."""
        async with self._asked(self._body(request, prompt, max_tokens)) as events:
            async for piece in _pieces(events):
                yield piece

    def _body(self, request: GenerationRequest, prompt: Sequence[int], max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": 0,  # of the chosen tokens alone
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
        }
        if request.temperature > 0:
            body["seed"] = request.seed
        if request.constrained:
            schema = answer_schema(request.rules, len(request.lines))
            body["structured_outputs"] = {"json": schema}
        if request.until:
            body |= {"stop": [request.until.decode()], "include_stop_str_in_output": True}
        if request.salt:
            body["cache_salt"] = request.salt
        return body

    @asynccontextmanager
    async def _asked(self, body: dict[str, Any]) -> AsyncIterator[EventSource]:
        """An answer that has begun; asked for again while nobody takes the request.

        Raises:
            EngineAway: nobody did, or the connection broke.
            EngineError: the upstream refuses it.
        """
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    response = await self._send(body)
                    break
                except (_Busy, httpx.TransportError):
                    if attempt == ATTEMPTS:
                        raise
                    pause = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)
                    await asyncio.sleep(pause * random.uniform(0.5, 1))
            try:
                yield EventSource(response)
            finally:
                await response.aclose()
        except (_Busy, httpx.TransportError) as error:
            self._probe_now.set()
            raise EngineAway(f"{self._url} does not answer ({_words(error)})") from error
        except (msgspec.MsgspecError, SSEError, ValueError) as error:
            raise EngineError(f"the upstream answers what is no completion of vLLM's: {error}") from error

    async def _send(self, body: dict[str, Any]) -> httpx.Response:
        request = self._client.build_request("POST", f"{self._url}/completions", json=body, headers=self._headers)
        response = await self._client.send(request, stream=True)
        if response.status_code == 200:
            return response
        try:
            text = (await response.aread())[:500].decode(errors="replace")
        finally:
            await response.aclose()
        said = f"status {response.status_code}: {text}"
        if response.status_code in REFUSED:
            raise EngineError(f"vLLM refuses the request with {said}")
        if response.status_code == 429 or response.status_code >= 500:
            raise _Busy(said)
        self._probe_now.set()
        raise EngineAway(f"{self._url} does not let this server in: {said}")

    async def _keep_probing(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):  # `wait_for` may swallow a cancellation (cpython 86296)
                    await self._probe_now.wait()
            self._probe_now.clear()
            before = self.away
            await self._probe()
            if self.away != before:
                self._tell()

    def _tell(self) -> None:
        if self.away is None:
            _log.info("the upstream answers")
        else:
            _log.warning("the upstream is away: %s", self.away)

    async def _probe(self) -> None:
        """Find out whether the upstream answers, and serves what it should."""
        try:
            self._headers = await asyncio.to_thread(self._authorization)
            response = await self._client.get(
                f"{self._url}/models", headers=self._headers, timeout=PROBE_TIMEOUT_SECONDS
            )
            if response.status_code == 200:
                self.away = self._mismatch(msgspec.json.decode(response.content, type=_Models).data)
            elif response.status_code in (401, 403):
                self.away = f"{self._url} wants another API key (status {response.status_code}): set --upstream-key"
            else:
                self.away = f"{self._url}/models answers with status {response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, msgspec.MsgspecError, ValueError) as error:
            self.away = f"{self._url} does not answer as a vLLM server does ({_words(error)})"

    def _authorization(self) -> dict[str, str]:
        if self._key_file is None:
            return {}
        return {"authorization": f"Bearer {self._key_file.read_text(encoding='utf-8').strip()}"}

    def _mismatch(self, models: Sequence[_Model]) -> str | None:
        served = {model.id: model for model in models}
        model = served.get(self._model)
        if model is None:
            names = ", ".join(map(repr, served)) or "nothing"
            return f"{self._url} serves {names}, not {self._model!r}: set --upstream-model or --served-model-name there"
        if model.max_model_len is not None and model.max_model_len < self._context:
            return (
                f"{self._url} serves contexts of {model.max_model_len} tokens and the bundle needs {self._context}: "
                f"start it with --max-model-len {self._context}"
            )
        return None


async def _pieces(events: EventSource) -> AsyncIterator[Piece]:
    """What a stream of completions says.

    Raises:
        EngineError: the upstream could not go on.
    """
    cached_tokens = 0  # where a server does not tell, nothing was
    async for event in events.aiter_sse():
        if event.data == "[DONE]":
            continue  # to the end of the body: its connection is used again
        chunk = msgspec.json.decode(event.data, type=_Chunk)
        if not chunk.choices and chunk.usage is None:
            raise EngineError(f"the upstream could not go on: {event.data[:500]}")
        tokens: list[tuple[int, float]] = []
        finish_reason: FinishReason | None = None
        for choice in chunk.choices:
            if choice.logprobs is not None:
                ids = [int(token.removeprefix("token_id:")) for token in choice.logprobs.tokens]
                tokens += zip(ids, choice.logprobs.token_logprobs, strict=True)
            if choice.finish_reason is not None:
                finish_reason = "length" if choice.finish_reason == "length" else "stop"
        if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
            cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens or 0
        yield Piece(tokens, finish_reason=finish_reason)
    yield Piece(cached_tokens=cached_tokens)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
