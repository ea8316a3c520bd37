"""Asking a bundle that is loaded in this process, for checks without a server.

Importing this needs the packages of the `serve` extra.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bundle.manifest import RULES_FILE, BundleError
from bundle.rules import load_catalogue
from bundle.units import UnparsableCode
from serve.analysis.analyzer import RefusedInput, UnknownRules
from serve.analysis.local import LocalAnalyzer
from serve.analysis.report import Report
from serve.client.check import AnalyzerUnavailable, FileRefused, OptionsRefused, RuleText


class BundleAnalyzer:
    """The engine of one bundle, which is loaded for the first file. Use it as an async context manager."""

    def __init__(self, bundle: Path, rules: Sequence[str] | None, min_confidence: float | None) -> None:
        self._bundle, self._rules, self._min_confidence = bundle, rules, min_confidence
        self._loaded: LocalAnalyzer | None = None
        self._loading = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loaded is not None:
            await asyncio.to_thread(self._loaded.close)

    async def analyze(self, code: str, path: str) -> Report:
        """The engine's report of one file.

        Raises:
            FileRefused: the code does not parse, or is none this bundle was trained on.
            AnalyzerUnavailable: the bundle is not one that may be loaded.
            OptionsRefused: the bundle has no such rule.
        """
        try:
            async with self._loading:
                if self._loaded is None:
                    self._loaded = await asyncio.to_thread(LocalAnalyzer, self._bundle)
            return await asyncio.to_thread(self._loaded.analyze, code, path, self._rules, self._min_confidence)
        except BundleError as error:
            raise AnalyzerUnavailable(str(error)) from error
        except UnknownRules as error:
            raise OptionsRefused(str(error)) from error
        except UnparsableCode as error:
            raise FileRefused(str(error), error.line, error.column) from error
        except RefusedInput as error:
            raise FileRefused(str(error)) from error

    async def rules(self) -> tuple[RuleText, ...]:
        """The rules of the bundle."""
        catalogue = load_catalogue(self._bundle / RULES_FILE)
        return tuple(RuleText(rule.id, rule.severity, rule.title, rule.message, rule.hint) for rule in catalogue.rules)
