"""One analysis for one caller: what every route that analyses does around the analyzer."""

import time
from collections.abc import Callable

from bundle.manifest import Bundle
from serve.analysis.analyzer import AnalysisRequest, Analyzer, PreparedAnalysis
from serve.analysis.asking import Call
from serve.analysis.report import Report
from serve.analysis.results import UnitResult
from serve.api.limits import Caller
from serve.api.noted import note, note_more
from serve.engine.base import Priority
from serve.settings import Settings


class Analyses:
    """Runs analyses within the server's time limit, on the caller's account."""

    def __init__(self, analyzer: Analyzer, bundle: Bundle, settings: Settings) -> None:
        """
        Args:
            analyzer: who analyses.
            bundle: what it analyses with.
            settings: for the time limit, and for what may be logged.
        """
        self.analyzer, self.bundle = analyzer, bundle
        self._seconds, self._log_code = settings.analysis_seconds, settings.log_code

    async def prepare(
        self, request: AnalysisRequest, caller: Caller, priority: Priority = "interactive"
    ) -> PreparedAnalysis:
        """See `Analyzer.prepare`; the time limit begins here, and the tokens are the caller's."""
        if self._log_code:
            note(code=request.code)
        deadline = time.monotonic() + self._seconds
        call = Call(tenant=caller.tenant, priority=priority, deadline=deadline, pay=caller.spend_tokens)
        return await self.analyzer.prepare(request, call)

    async def run(self, prepared: PreparedAnalysis, on_unit: Callable[[UnitResult], None] | None = None) -> Report:
        """See `Analyzer.analyze`; the log is told of it."""
        report = await self.analyzer.analyze(prepared, on_unit)
        usage = report.usage
        note_more(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            findings=len(report.findings),
            skipped=len(report.skipped),
        )
        return report
