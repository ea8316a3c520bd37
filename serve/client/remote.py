"""Asking a deepcode-serve over HTTP, patiently: a busy or restarting server is asked again."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import httpx
import msgspec

from serve.analysis.report import Report
from serve.client.check import AnalyzerUnavailable, FileRefused, OptionsRefused, RuleText

BACKOFF_S = (0.25, 0.5, 1.0, 2.0)
BUSY = frozenset({429, 502, 503})
# About this one file; every other status says that this URL will not analyse any.
ABOUT_THE_FILE = frozenset({400, 408, 413, 422, 500, 504})
UNKNOWN_RULES = "urn:deepcode-analyst:problem:unknown-rules"
LONGEST_WAIT_S = 120.0
TIMEOUT = httpx.Timeout(60.0, connect=5.0, read=300.0, pool=None)


class AnalyzeRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of POST /v1/analyze; the server takes the language from the path's extension."""

    code: str
    path: str
    rules: tuple[str, ...] | None = None
    min_confidence: float | None = None


class Problem(msgspec.Struct, frozen=True):
    """What this client reads of an application/problem+json body."""

    type: str = ""
    title: str = ""
    detail: str = ""
    line: int | None = None
    column: int | None = None


class ServedBundle(msgspec.Struct, frozen=True):
    """What this client reads of GET /v1/bundle."""

    rules: tuple[RuleText, ...]


class RemoteAnalyzer:
    """A server at `url`. Use it as an async context manager."""

    def __init__(self, url: httpx.URL, rules: Sequence[str] | None, min_confidence: float | None) -> None:
        self._endpoint = url.copy_with(path=f"{url.path.rstrip('/')}/v1/analyze")
        self._bundle = url.copy_with(path=f"{url.path.rstrip('/')}/v1/bundle")
        # Without the user name and password an URL may hold: this goes into messages.
        self._shown = f"{url.scheme}://{url.netloc.decode()}{url.path.rstrip('/')}"
        self._rules = tuple(rules) if rules is not None else None
        self._min_confidence = min_confidence
        self._client = httpx.AsyncClient(timeout=TIMEOUT, headers={"Content-Type": "application/json"})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def analyze(self, code: str, path: str) -> Report:
        """The server's report of one file.

        Raises:
            FileRefused: the server said no to this file, or did not answer about it.
            AnalyzerUnavailable: there is no server, it stays busy, or it is no deepcode-serve.
            OptionsRefused: the server's bundle has no such rule.
        """
        request = AnalyzeRequest(code, path, self._rules, self._min_confidence)
        response = await self._send(msgspec.json.encode(request))
        if response.status_code == 200:
            return self._report(response)
        problem = read_problem(response)
        said = problem.detail or problem.title or "no reason given"
        if problem.type == UNKNOWN_RULES:
            raise OptionsRefused(said)
        if response.status_code in ABOUT_THE_FILE:
            raise FileRefused(f"refused by the server ({response.status_code}): {said}", problem.line, problem.column)
        if response.is_redirect:
            said = f"it moved to {response.headers.get('Location')}; give that to --url"
        raise AnalyzerUnavailable(
            f"{self._shown} does not analyse files (status {response.status_code}): {said}; "
            "check that --url is the address of a deepcode-serve"
        )

    async def rules(self) -> tuple[RuleText, ...]:
        """The rules of the server's bundle; none when it does not tell, which is no reason to lose a check."""
        try:
            response = await self._client.get(self._bundle)
            response.raise_for_status()
            return msgspec.json.decode(response.content, type=ServedBundle).rules
        except (httpx.HTTPError, msgspec.MsgspecError):
            return ()

    async def _send(self, body: bytes) -> httpx.Response:
        attempt, waited = 0, 0.0
        while True:
            # Jitter keeps clients that a restart turned away together from coming back together.
            delay = BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)] * random.uniform(0.75, 1.25)
            try:
                response = await self._client.post(self._endpoint, content=body)
            except httpx.ReadTimeout as error:
                raise FileRefused(f"{self._shown} did not answer within {TIMEOUT.read:.0f} s") from error
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if attempt == len(BACKOFF_S):
                    raise AnalyzerUnavailable(
                        f"{self._shown} cannot be reached ({error}); start deepcode-serve or correct --url"
                    ) from error
            except httpx.RequestError as error:
                if attempt == len(BACKOFF_S):
                    raise FileRefused(f"{self._shown} broke off while answering: {error}") from error
            else:
                if response.status_code not in BUSY:
                    return response
                asked = retry_after(response)
                delay = delay if asked is None else asked
                if waited + delay > LONGEST_WAIT_S:
                    said = read_problem(response).detail or response.reason_phrase
                    raise AnalyzerUnavailable(
                        f"{self._shown} is too busy (status {response.status_code}: {said}) "
                        f"and would have this check wait more than {LONGEST_WAIT_S:.0f} s; try again later"
                    )
            await asyncio.sleep(delay)
            attempt, waited = attempt + 1, waited + delay

    def _report(self, response: httpx.Response) -> Report:
        try:
            return msgspec.json.decode(response.content, type=Report)
        except msgspec.MsgspecError as error:
            raise AnalyzerUnavailable(
                f"{self._shown} did not answer with a report this version can read ({error}); "
                "check that --url is the address of a deepcode-serve of the same version"
            ) from error


def retry_after(response: httpx.Response) -> float | None:
    """The seconds a server asks to wait, from either form of Retry-After; None when it does not say."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def read_problem(response: httpx.Response) -> Problem:
    """The problem a server describes; of any other body its first line stands in for the detail."""
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except (msgspec.MsgspecError, UnicodeError):
        return Problem(detail=next(iter(response.text.strip().splitlines()), "")[:200])
