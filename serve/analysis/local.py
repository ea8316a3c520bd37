"""An analysis without a server: the same engine and analyzer, in this process."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from bundle.manifest import open_bundle
from serve.analysis.analyzer import AnalysisRequest, Analyzer
from serve.analysis.loading import load_prompt, start_engine
from serve.analysis.report import Report
from serve.settings import Settings

SLOTS = 8
FILES_AT_ONCE = 8

_Result = TypeVar("_Result")


class LocalAnalyzer:
    """A bundle loaded in this process. Close it, or use it as a context manager; threads may share it."""

    def __init__(self, bundle_path: Path) -> None:
        """
        Args:
            bundle_path: the bundle's folder; every file in it is verified.

        Raises:
            BundleError: the folder is not a bundle that may be loaded.
            RuntimeError: called from a script's top level, where worker processes can not start.
        """
        bundle = open_bundle(bundle_path)
        prompt = load_prompt(bundle)
        engine = start_engine(bundle, prompt, Settings(bundle=bundle_path, slots=SLOTS), FILES_AT_ONCE)
        self._analyzer = Analyzer(bundle, prompt, engine, SLOTS)
        self._files = asyncio.Semaphore(FILES_AT_ONCE)
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="analysis", daemon=True)
        self._thread.start()
        self._call(self._analyzer.start())

    def analyze(
        self,
        code: str,
        path: str = "<input>",
        rules: Sequence[str] | None = None,
        min_confidence: float | None = None,
    ) -> Report:
        """One file's report.

        Raises:
            UnparsableCode: the code does not parse; it names line and column.
            RefusedInput: an unknown rule, a language this bundle does not know, or text that is not code.
        """
        request = AnalysisRequest(
            code=code,
            path=path,
            rules=None if rules is None else tuple(rules),
            min_confidence=min_confidence,
        )
        return self._call(self._analyze(request))

    def close(self) -> None:
        """Stop the engine; a closed analyzer can not be used again."""
        self._analyzer.engine.close()
        self._loop.result().call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop.result()).result()

    async def _analyze(self, request: AnalysisRequest) -> Report:
        async with self._files:
            return await self._analyzer.analyze(await self._analyzer.prepare(request))

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop.set_result(asyncio.get_running_loop())
        await self._stop.wait()
