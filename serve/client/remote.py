"""deepcode-check asking a deepcode-serve: the client's answers and failures in the check's own terms."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx

from serve.analysis.report import Report
from serve.client.api import AsyncClient
from serve.client.check import AnalyzerUnavailable, FileRefused, OptionsRefused, RuleText
from serve.client.errors import ClientError, NoAnswer, Refused, UnknownRules

# About this one file; every other status says that this URL will not analyse any.
ABOUT_THE_FILE = frozenset({400, 408, 413, 422, 500, 504})


class RemoteAnalyzer:
    """A server at `url`, asked with `key`. Use it as an async context manager."""

    def __init__(
        self, url: httpx.URL, rules: Sequence[str] | None, min_confidence: float | None, key: str | None
    ) -> None:
        self._client = AsyncClient(url, key)
        self._rules, self._min_confidence = rules, min_confidence

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
        try:
            return await self._client.analyze(code, path, rules=self._rules, min_confidence=self._min_confidence)
        except UnknownRules as error:
            raise OptionsRefused(error.said) from error
        except Refused as error:
            if error.status in ABOUT_THE_FILE:
                raise FileRefused(str(error), error.problem.line, error.problem.column) from error
            raise AnalyzerUnavailable(
                f"the server does not analyse files (status {error.status}): {error.said}; "
                "check that --url is the address of a deepcode-serve, and its key, where it wants one, in "
                "DEEPCODE_KEY"
            ) from error
        except NoAnswer as error:
            raise FileRefused(str(error)) from error
        except ClientError as error:
            raise AnalyzerUnavailable(str(error)) from error

    async def rules(self) -> tuple[RuleText, ...]:
        """The rules of the server's bundle; none when it does not tell, which is no reason to lose a check."""
        try:
            return (await self._client.bundle()).rules
        except ClientError:
            return ()
