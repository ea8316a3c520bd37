"""POST /v1/analyze/batch: many files in, one line of NDJSON out for each, as soon as it is done."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Response
from msgspec import Meta

from serve.analysis.analyzer import AnalysisRequest
from serve.analysis.report import Report
from serve.api.bodies import refuse_repeated_keys
from serve.api.errors import MALFORMED_JSON, Problem, ProblemDetails, as_problem, documented
from serve.api.leaving import StreamedResponse, one_line
from serve.api.limits import Admission, Caller
from serve.api.running import Analyses

NDJSON = "application/x-ndjson"
MOST_FILES = 10_000
FILES_AT_ONCE = 4
"""Files of one batch that are analysed side by side."""


class BatchItem(AnalysisRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a batch, and what its line is to be called."""

    id: Annotated[str, Meta(min_length=1, max_length=256)]


class BatchLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the answer: a report, or the error that stands for it."""

    id: str
    report: Report | None = None
    error: ProblemDetails | None = None


@post(
    "/v1/analyze/batch",
    status_code=200,
    tags=["analysis"],
    summary="Analyse many files",
    responses={
        200: ResponseSpec(BatchLine, description="One line for each file", media_type=NDJSON, generate_examples=False),
        **documented(400, 401, 408, 413, 422, 429, 503),
    },
    exception_handlers=MALFORMED_JSON,
)
async def analyze_batch(
    request: Request[Any, Caller, State],
    data: JSONBody[list[BatchItem]],
    analyses: NamedDependency[Analyses],
    admission: NamedDependency[Admission],
) -> Response[Any]:
    """Every file gets its line, in the order in which they are done; a file that can not be analysed does not
    stop the others. Batches wait where interactive requests want the engine."""
    refuse_repeated_keys(await request.body())
    if not 1 <= len(data) <= MOST_FILES:
        raise Problem(
            "invalid-request",
            422,
            "The request does not fit the schema",
            f"A batch has 1 to {MOST_FILES} files, not {len(data)}.",
        )
    ids = [item.id for item in data]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise Problem("repeated-id", 422, "An id is repeated", f"The batch has more than one file called {twice!r}.")
    return StreamedResponse(_lines(request.scope["path"], data, analyses, admission, request.auth), NDJSON)


async def _lines(
    path: str, items: Sequence[BatchItem], analyses: Analyses, admission: Admission, caller: Caller
) -> AsyncIterator[bytes]:
    with admission.admit(caller):
        yield b""
        remaining = iter(items)
        done: asyncio.Queue[bytes] = asyncio.Queue(FILES_AT_ONCE)  # who does not read is not worked for

        async def work() -> None:
            for item in remaining:
                await done.put(await _line(path, item, analyses, caller))

        working = [asyncio.create_task(work()) for _ in range(min(FILES_AT_ONCE, len(items)))]
        try:
            for _ in items:
                yield await done.get()
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)


async def _line(path: str, item: BatchItem, analyses: Analyses, caller: Caller) -> bytes:
    try:
        report = await analyses.run(await analyses.prepare(item, caller, "batch"))
        line: dict[str, Any] = {"id": item.id, "report": report}
    except Exception as error:
        line = {"id": item.id, "error": as_problem(error).body(path)}
    return one_line(line) + b"\n"
