"""The Python client of a deepcode-serve, blocking and asynchronous.

    with Client("http://127.0.0.1:8000") as client:
        report = client.analyze("def f(a, b=[]):\n    return a\n", "f.py")
        for event in client.stream(code, "f.py"):  # findings as they are made, the whole report last
            ...

A busy or restarting server is asked again, when it says so with Retry-After. Every failure is a
`serve.client.errors.ClientError`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from types import TracebackType
from typing import Self

import httpx
from httpx_sse import EventSource

from serve.analysis.report import Report
from serve.client.errors import NoAnswer
from serve.client.messages import (
    EVENT_STREAM,
    JSON,
    AnalyzeRequest,
    BatchResult,
    Event,
    Lines,
    ServedBundle,
    Server,
    as_request,
    events_of,
)
from serve.client.patience import BUSY, Patience


class Client:
    """Asks one server and waits for the answers. Use it as a context manager, or `close()` it."""

    def __init__(self, url: str | httpx.URL, key: str | None = None) -> None:
        """
        Args:
            url: the server's address, with the path it is mounted at, if any.
            key: the API key, where the server wants one.

        Raises:
            ValueError: `url` is no http or https address.
        """
        self._server = Server(url, key)
        self._http = httpx.Client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def analyze(
        self,
        code: str,
        path: str = "<input>",
        *,
        language: str | None = None,
        rules: Sequence[str] | None = None,
        min_confidence: float | None = None,
    ) -> Report:
        """The report of one file.

        Args:
            code: the file's text.
            path: what the report calls it; its extension names the language.
            language: overrides the extension.
            rules: only these; None is all.
            min_confidence: 0..1, for every rule; None takes the bundle's own threshold for each.

        Raises:
            ClientError: the file was not analysed; the subclasses say why.
        """
        request = as_request(code, path, language, rules, min_confidence)
        return self._server.report(self._read(self._server.analysis(request, JSON)))

    def stream(
        self,
        code: str,
        path: str = "<input>",
        *,
        language: str | None = None,
        rules: Sequence[str] | None = None,
        min_confidence: float | None = None,
    ) -> Generator[Event, None, None]:
        """The units of one file as they are done, with their findings, or why they were skipped; last the report.

        Nothing is sent before the first event is asked for. Leaving the loop early, or closing the iterator,
        ends the analysis.

        Args and Raises: as `analyze`.
        """
        request = self._server.analysis(as_request(code, path, language, rules, min_confidence), EVENT_STREAM)
        response = self._send(request, stream=True)
        try:
            if not _is_stream(response):
                response.read()
                self._server.check(response)
                yield from events_of(self._server.report(response))
                return
            ended = False
            for sent in EventSource(response).iter_sse():
                event = self._server.event(sent)
                if event is not None:
                    yield event
                    ended = isinstance(event, Report)
        except httpx.RequestError as error:
            raise NoAnswer(f"{self._server.shown} broke off while answering: {error}") from error
        finally:
            response.close()
        if not ended:
            raise NoAnswer(f"{self._server.shown} ended its answer before the report")

    def batch(self, files: Sequence[AnalyzeRequest]) -> Generator[BatchResult, None, None]:
        """Each of many files with its report, or with the error that stands for it, in the order they are done.

        A server works on a batch where nobody waits for a single file. Leaving the loop early ends it.

        Raises:
            ClientError: the batch was not done, or not to its end.
        """
        if not files:
            return
        response = self._send(self._server.batch(files), stream=True)
        left, lines = len(files), Lines()
        try:
            if not response.is_success:
                response.read()
                self._server.check(response)
            for part in response.iter_bytes():
                for line in lines.feed(part):
                    yield self._server.batch_result(line, files)
                    left -= 1
        except httpx.RequestError as error:
            raise NoAnswer(f"{self._server.shown} broke off while answering: {error}") from error
        finally:
            response.close()
        if left:
            raise NoAnswer(f"{self._server.shown} ended its answer {left} of {len(files)} files too early")

    def bundle(self) -> ServedBundle:
        """What the server serves, and the rules that may be named in a request.

        Raises:
            ClientError: as `analyze`.
        """
        return self._server.served(self._read(self._server.bundle()))

    def _read(self, request: httpx.Request) -> httpx.Response:
        response = self._send(request, stream=False)
        self._server.check(response)
        return response

    def _send(self, request: httpx.Request, stream: bool) -> httpx.Response:
        patience = Patience(self._server.shown)
        while True:
            try:
                response = self._http.send(request, stream=stream)
                if response.status_code not in BUSY:
                    return response
                response.read()
                delay = patience.after_busy(response)
            except httpx.RequestError as error:
                delay = patience.after_failure(error)
            time.sleep(delay)


class AsyncClient:
    """The same for asyncio. Use it as an async context manager, or `aclose()` it."""

    def __init__(self, url: str | httpx.URL, key: str | None = None) -> None:
        """Args and Raises: as `Client`."""
        self._server = Server(url, key)
        self._http = httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def analyze(
        self,
        code: str,
        path: str = "<input>",
        *,
        language: str | None = None,
        rules: Sequence[str] | None = None,
        min_confidence: float | None = None,
    ) -> Report:
        """As `Client.analyze`. Cancelling it ends the analysis."""
        request = as_request(code, path, language, rules, min_confidence)
        return self._server.report(await self._read(self._server.analysis(request, JSON)))

    async def stream(
        self,
        code: str,
        path: str = "<input>",
        *,
        language: str | None = None,
        rules: Sequence[str] | None = None,
        min_confidence: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """As `Client.stream`. To leave the loop early, iterate inside `contextlib.aclosing`."""
        request = self._server.analysis(as_request(code, path, language, rules, min_confidence), EVENT_STREAM)
        response = await self._send(request, stream=True)
        try:
            if not _is_stream(response):
                await response.aread()
                self._server.check(response)
                for event in events_of(self._server.report(response)):
                    yield event
                return
            ended = False
            async for sent in EventSource(response).aiter_sse():
                read = self._server.event(sent)
                if read is not None:
                    yield read
                    ended = isinstance(read, Report)
        except httpx.RequestError as error:
            raise NoAnswer(f"{self._server.shown} broke off while answering: {error}") from error
        finally:
            await response.aclose()
        if not ended:
            raise NoAnswer(f"{self._server.shown} ended its answer before the report")

    async def batch(self, files: Sequence[AnalyzeRequest]) -> AsyncGenerator[BatchResult, None]:
        """As `Client.batch`. To leave the loop early, iterate inside `contextlib.aclosing`."""
        if not files:
            return
        response = await self._send(self._server.batch(files), stream=True)
        left, lines = len(files), Lines()
        try:
            if not response.is_success:
                await response.aread()
                self._server.check(response)
            async for part in response.aiter_bytes():
                for line in lines.feed(part):
                    yield self._server.batch_result(line, files)
                    left -= 1
        except httpx.RequestError as error:
            raise NoAnswer(f"{self._server.shown} broke off while answering: {error}") from error
        finally:
            await response.aclose()
        if left:
            raise NoAnswer(f"{self._server.shown} ended its answer {left} of {len(files)} files too early")

    async def bundle(self) -> ServedBundle:
        """As `Client.bundle`."""
        return self._server.served(await self._read(self._server.bundle()))

    async def _read(self, request: httpx.Request) -> httpx.Response:
        response = await self._send(request, stream=False)
        self._server.check(response)
        return response

    async def _send(self, request: httpx.Request, stream: bool) -> httpx.Response:
        patience = Patience(self._server.shown)
        while True:
            try:
                response = await self._http.send(request, stream=stream)
                if response.status_code not in BUSY:
                    return response
                await response.aread()
                delay = patience.after_busy(response)
            except httpx.RequestError as error:
                delay = patience.after_failure(error)
            await asyncio.sleep(delay)


def _is_stream(response: httpx.Response) -> bool:
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    return response.is_success and media_type == EVENT_STREAM
