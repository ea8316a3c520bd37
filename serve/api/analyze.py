"""POST /v1/analyze: one file in, one report out; whole, finding by finding, or as SARIF."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from litestar import Request, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import JSONBody
from litestar.response import Response

from bundle.manifest import Bundle
from serve.analysis.analyzer import AnalysisRequest
from serve.analysis.report import Finding, Report, SkippedUnit
from serve.analysis.results import UnitResult
from serve.api.bodies import refuse_repeated_keys
from serve.api.described import also_answered_as
from serve.api.errors import MALFORMED_JSON, Problem, as_problem, documented
from serve.api.leaving import StreamedResponse, event, unless_client_leaves
from serve.api.limits import Admission, Caller
from serve.api.running import Analyses

JSON, EVENTS, SARIF = "application/json", "text/event-stream", "application/sarif+json"
# Proxies hang up on connections that are silent for a minute or less.
HEARTBEAT_SECONDS = 15.0


@post(
    "/v1/analyze",
    status_code=200,
    tags=["analysis"],
    summary="Analyse one file",
    operation_class=also_answered_as(EVENTS, SARIF),
    responses=documented(400, 401, 406, 408, 413, 422, 429, 503),
    exception_handlers=MALFORMED_JSON,
)
async def analyze(
    request: Request[Any, Caller, State],
    data: JSONBody[AnalysisRequest],
    analyses: NamedDependency[Analyses],
    admission: NamedDependency[Admission],
) -> Response[Report]:
    """Cut the file into units, ask the student about each, and return checked findings with true lines.

    With `Accept: text/event-stream` findings are sent as they are confirmed, and the whole report last; with
    `Accept: application/sarif+json` the report is a SARIF 2.1.0 log.
    """
    refuse_repeated_keys(await request.body())
    wanted = _wanted(request)
    if wanted == EVENTS:
        return StreamedResponse(_events(request.scope["path"], data, analyses, admission, request.auth), EVENTS)
    with admission.admit(request.auth):
        report = await unless_client_leaves(request.receive, _report(data, analyses, request.auth))
    if wanted == SARIF:
        return Response(_sarif(data, report, analyses.bundle), media_type=SARIF)  # type: ignore[arg-type]
    return Response(report)


def _wanted(request: Request[Any, Caller, State]) -> str:
    offered = [JSON, EVENTS, SARIF]
    wanted = request.accept.best_match(offered) if "accept" in request.headers else JSON
    if wanted is None:
        raise Problem(
            "not-acceptable",
            406,
            "No such form of a report",
            f"A report is sent as {', '.join(offered)}.",
            offered=offered,
        )
    return wanted


async def _report(data: AnalysisRequest, analyses: Analyses, caller: Caller) -> Report:
    return await analyses.run(await analyses.prepare(data, caller))


async def _events(
    path: str, data: AnalysisRequest, analyses: Analyses, admission: Admission, caller: Caller
) -> AsyncIterator[bytes]:
    """`unit`, `finding` and `skipped` as they come, then `report`, or `error` instead of it."""
    with admission.admit(caller):
        prepared = await analyses.prepare(data, caller)
        yield b": analysing\n\n"
        arrived: asyncio.Queue[UnitResult | None] = asyncio.Queue()
        working = asyncio.create_task(analyses.run(prepared, arrived.put_nowait))
        working.add_done_callback(lambda _: arrived.put_nowait(None))
        told = False
        try:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        result = await arrived.get()
                except TimeoutError:
                    yield b": still analysing\n\n"
                    continue
                if result is None:
                    break
                yield _unit_events(result)
                told = True
            try:
                report = working.result()
            except Exception as error:
                yield event("error", as_problem(error).body(path))
                return
            if not told:  # the report was kept: its units are not known any more
                yield _events_of(report.findings, report.skipped)
            yield event("report", report)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


def _unit_events(result: UnitResult) -> bytes:
    skipped = () if result.skipped is None else (result.skipped,)
    return _events_of(result.findings, skipped) + event("unit", result.unit)


def _events_of(findings: Iterable[Finding], skipped: Iterable[SkippedUnit]) -> bytes:
    found = (event("finding", finding) for finding in findings)
    return b"".join([*found, *(event("skipped", unit) for unit in skipped)])


def _sarif(data: AnalysisRequest, report: Report, bundle: Bundle) -> bytes:
    # Here, because few ask for it, and a server should start at once.
    from serve.client.check import CheckedFile, Outcome, RuleText
    from serve.client.sarif import encode_sarif

    outcome = Outcome(checked=(CheckedFile(data.path, data.code, report),), skipped=(), failed=())
    rules = [RuleText(rule.id, rule.severity, rule.title, rule.message, rule.hint) for rule in bundle.catalogue.rules]
    return encode_sarif(outcome, rules)
