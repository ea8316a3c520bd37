"""POST /v1/analyze: one file in, one report out."""

import asyncio
import json
from typing import Any

from litestar import Request, post
from litestar.datastructures import State
from litestar.response import Response

from bundle.units import UnparsableCode
from serve.analysis.analyzer import AnalysisRequest, Analyzer, BinaryInput, UnknownRules, UnsupportedLanguage
from serve.analysis.report import Report
from serve.api.errors import Problem, documented, problem_response
from serve.api.limits import RETRY_AFTER_DRAIN_SECONDS, Admission
from serve.engine.base import EngineClosed


def malformed_json(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """The decoder's own exceptions for hostile bodies, which the framework does not catch."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else "not valid UTF-8"
    problem = Problem("malformed-json", 400, "The body is not JSON", f"The request's body is {reason}.")
    return problem_response(request, problem)


@post(
    "/v1/analyze",
    status_code=200,
    tags=["analysis"],
    summary="Analyse one file",
    responses=documented(400, 408, 413, 422, 503),
    exception_handlers={RecursionError: malformed_json, UnicodeDecodeError: malformed_json},
)
async def analyze(
    request: Request[Any, Any, State], data: AnalysisRequest, analyzer: Analyzer, admission: Admission
) -> Report:
    """Cut the file into units, ask the student about each, and return checked findings with true lines."""
    _refuse_repeated_keys(await request.body())
    with admission.admit():
        return await _unless_client_leaves(request, _analyze(analyzer, data))


async def _analyze(analyzer: Analyzer, data: AnalysisRequest) -> Report:
    try:
        return await analyzer.analyze(data)
    except UnparsableCode as error:
        raise Problem(
            "unparsable-code",
            422,
            "The code does not parse",
            str(error),
            line=error.line,
            column=error.column,
        ) from error
    except UnknownRules as error:
        raise Problem(
            "unknown-rules", 422, "Unknown rules", str(error), unknown=error.unknown, known=error.known
        ) from error
    except UnsupportedLanguage as error:
        raise Problem(
            "unsupported-language", 422, "Unsupported language", str(error), supported=[error.supported]
        ) from error
    except BinaryInput as error:
        raise Problem("binary-input", 422, "The code is not text", str(error)) from error
    except EngineClosed as error:
        raise Problem(
            "draining",
            503,
            "The server is stopping",
            f"The analysis was not completed: {error}. Ask again.",
            {"Retry-After": str(RETRY_AFTER_DRAIN_SECONDS)},
        ) from error


async def _unless_client_leaves(request: Request[Any, Any, State], work: Any) -> Report:
    """The work's result; the work is cancelled as soon as the client closes its connection."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_client_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Problem("client-left", 499, "The client left", "The connection was closed; work was cancelled.")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _client_left(request: Request[Any, Any, State]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refuse_repeated_keys(body: bytes) -> None:
    """Two readers of `{"code": …, "code": …}` may see different code, so nobody should read it.

    The body was already decoded once: it is known to be one flat object.
    """

    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise Problem(
                "repeated-key", 400, "A key is repeated", f"The body has more than one {', '.join(repeated)}."
            )

    json.loads(body, object_pairs_hook=check)
