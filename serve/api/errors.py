"""Every error a client sees: one shape (RFC 9457, application/problem+json), one place where it is made."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import ClientException, HTTPException, ValidationException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.openapi import ResponseSpec

from bundle.chat import ChatTemplateError
from bundle.units import UnparsableCode
from serve.analysis.analyzer import BinaryInput, UnknownRules, UnsupportedLanguage
from serve.analysis.writing import PromptRefused
from serve.engine.base import DeadlineExceeded, EngineAway, EngineBusy, EngineClosed, EngineCrashed, EngineError
from serve.search.base import IndexAway, RepeatedPath, UnknownProject

TYPE_PREFIX = "urn:deepcode-analyst:problem:"
MEDIA_TYPE = "application/problem+json"

SPEAKS_OPENAI = "speaks_openai"
"""The option of a handler whose errors OpenAI's clients must be able to read."""

RETRY_AFTER_SECONDS = 1
RETRY_AFTER_DRAIN_SECONDS = 5

_log = logging.getLogger(__name__)


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every error. Some kinds have further members: `line` and `column` of unparsable code,
    `known` rules, `supported` languages."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


class Problem(Exception):
    """An error with a stable type that a client can act on."""

    def __init__(
        self,
        kind: str,
        status: int,
        title: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        """
        Args:
            kind: the stable last part of the problem's type.
            status: HTTP status.
            title: the same for every problem of this kind.
            detail: what happened here, and what to do.
            headers: for example Retry-After.
            **members: further members of the JSON object.
        """
        super().__init__(detail)
        self.kind, self.status, self.title, self.detail = kind, status, title, detail
        self.headers, self.members = dict(headers or {}), members

    def body(self, instance: str) -> dict[str, Any]:
        """The JSON object; `instance` is the path it happened at."""
        return {
            "type": TYPE_PREFIX + self.kind,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            **self.members,
        }

    def openai_body(self, instance: str) -> dict[str, Any]:
        """The same, and what OpenAI's clients read."""
        error = {"message": self.detail, "type": self.kind, "code": self.kind, "param": None}
        return self.body(instance) | {"error": error}


def draining(detail: str) -> Problem:
    """What a server that is stopping answers; `detail` goes on from "This server"."""
    headers = {"Retry-After": str(RETRY_AFTER_DRAIN_SECONDS)}
    return Problem("draining", 503, "The server is stopping", f"This server {detail}", headers)


def engine_failed(detail: str) -> Problem:
    """What a server answers whose engine broke down."""
    headers = {"Retry-After": str(RETRY_AFTER_DRAIN_SECONDS)}
    return Problem("engine-failed", 503, "The engine broke down", detail, headers)


def engine_away() -> Problem:
    """What a server answers that can not reach what runs its student; where that is, is nothing for its clients."""
    headers = {"Retry-After": str(RETRY_AFTER_DRAIN_SECONDS)}
    detail = "What runs this server's student can not be reached now; its log says why. Ask again later."
    return Problem("engine-away", 503, "The engine can not be reached", detail, headers)


def documented(*statuses: int) -> dict[int, ResponseSpec]:
    """The OpenAPI entries of the errors a route answers with."""
    return {
        status: ResponseSpec(
            ProblemDetails, description=HTTPStatus(status).phrase, media_type=MEDIA_TYPE, generate_examples=False
        )
        for status in statuses
    }


def problem_response(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """The response for any exception a request can raise."""
    if isinstance(error, RequestEntityTooLarge):
        limit = request.route_handler.resolve_request_max_body_size()
        problem = Problem(
            "body-too-large", 413, "The body is too large", f"This server reads bodies of at most {limit} bytes."
        )
    else:
        problem = as_problem(error)
    handler = request.scope.get("route_handler")
    as_openai = handler is not None and handler.opt.get(SPEAKS_OPENAI, False)
    path = request.scope["path"]
    return Response(
        problem.openai_body(path) if as_openai else problem.body(path),
        status_code=problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


def _malformed_json(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """The decoder's own exceptions for hostile bodies, which the framework does not catch."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else "not valid UTF-8"
    problem = Problem("malformed-json", 400, "The body is not JSON", f"The request's body is {reason}.")
    return problem_response(request, problem)


MALFORMED_JSON: dict[int | type[Exception], Any] = dict.fromkeys((RecursionError, UnicodeDecodeError), _malformed_json)
"""Of a route with a JSON body: what its decoding raises, answered."""


def as_problem(error: BaseException) -> Problem:
    """What a client is told about an exception. A fault of ours is an `internal-error`; the log has the rest."""
    match error:
        case Problem():
            return error
        case UnparsableCode():
            return Problem(
                "unparsable-code", 422, "The code does not parse", str(error), line=error.line, column=error.column
            )
        case UnknownRules():
            return Problem("unknown-rules", 422, "Unknown rules", str(error), unknown=error.unknown, known=error.known)
        case UnsupportedLanguage():
            supported = [error.supported]
            return Problem("unsupported-language", 422, "Unsupported language", str(error), supported=supported)
        case BinaryInput():
            return Problem("binary-input", 422, "The code is not text", str(error))
        case PromptRefused() | ChatTemplateError():
            return Problem("prompt-refused", 422, "The student can not be asked this", str(error))
        case UnknownProject():
            return Problem("unknown-project", 404, "No such project", f"{error}; GET /v1/index lists those there are.")
        case IndexAway():
            _log.error("%s", error)
            headers = {"Retry-After": str(RETRY_AFTER_DRAIN_SECONDS)}
            detail = "What keeps this server's index can not be reached now; its log says why. Ask again later."
            return Problem("index-away", 503, "The index can not be reached", detail, headers)
        case RepeatedPath():
            return Problem("repeated-path", 422, "A path is repeated", f"{error}.".capitalize())
        case HTTPException():
            return _as_http_problem(error)
        case EngineError():
            return _as_engine_problem(error)
    _log.error("a request failed", exc_info=error)
    return Problem("internal-error", 500, "Internal error", "This is a fault of the server; its log has the details.")


def _as_engine_problem(error: EngineError) -> Problem:
    match error:
        case EngineCrashed():
            return engine_failed(f"It was not completed: {error}. Ask again.")
        case EngineAway():
            return engine_away()
        case EngineClosed():
            return draining(f"did not complete it: {error}. Ask again.")
        case DeadlineExceeded():
            return Problem(
                "time-limit", 503, "Not answered in time", str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)}
            )
        case EngineBusy():
            return Problem(
                "overloaded", 503, "The server is full", str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)}
            )
    return Problem("unanswerable", 422, "The engine can not answer this", str(error))


def _as_http_problem(error: HTTPException) -> Problem:
    if isinstance(error, ValidationException):
        faults = error.extra if isinstance(error.extra, list) else []
        detail = "; ".join(_fault(fault) for fault in faults) or error.detail
        return Problem("invalid-request", 422, "The request does not fit the schema", detail)
    if type(error) is ClientException:  # what the framework raises for a body that it can not decode
        return Problem(
            "malformed-json",
            400,
            "The body is not JSON",
            f"The request's body can not be read ({error.detail}); send JSON in UTF-8.",
        )
    status = HTTPStatus(error.status_code)
    kind = status.phrase.lower().replace(" ", "-")
    return Problem(kind, status, status.phrase, error.detail, error.headers)


def _fault(fault: Mapping[str, Any]) -> str:
    """One validation error in words; the framework calls the body `data`, and a missing one too."""
    if fault["message"] == "'data'":
        return "the body is empty; send JSON"
    return fault["message"] if fault.get("key", "data") == "data" else f"{fault['key']}: {fault['message']}"
