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

TYPE_PREFIX = "urn:deepcode-analyst:problem:"

MEDIA_TYPE = "application/problem+json"

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
    problem = _as_problem(request, error)
    if problem.status >= 500 and not isinstance(error, Problem):
        _log.error("%s %r failed", request.method, request.scope["path"], exc_info=error)
    return Response(
        {
            "type": TYPE_PREFIX + problem.kind,
            "title": problem.title,
            "status": problem.status,
            "detail": problem.detail,
            "instance": request.scope["path"],
            **problem.members,
        },
        status_code=problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


def _as_problem(request: Request[Any, Any, Any], error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, ValidationException):
        faults = error.extra if isinstance(error.extra, list) else []
        detail = "; ".join(_fault(fault) for fault in faults) or error.detail
        return Problem("invalid-request", 422, "The request does not fit the schema", detail)
    if isinstance(error, RequestEntityTooLarge):
        limit = request.route_handler.resolve_request_max_body_size()
        return Problem(
            "body-too-large", 413, "The body is too large", f"This server reads bodies of at most {limit} bytes."
        )
    if type(error) is ClientException:  # what the framework raises for a body that it can not decode
        return Problem(
            "malformed-json",
            400,
            "The body is not JSON",
            f"The request's body can not be read ({error.detail}); send one JSON object in UTF-8.",
        )
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        kind = status.phrase.lower().replace(" ", "-")
        return Problem(kind, status, status.phrase, error.detail, error.headers)
    return Problem("internal-error", 500, "Internal error", "This is a fault of the server; its log has the details.")


def _fault(fault: Mapping[str, Any]) -> str:
    """One validation error in words; the framework calls the body `data`, and a missing one too."""
    if fault["message"] == "'data'":
        return "the body is empty; send a JSON object"
    return fault["message"] if fault.get("key", "data") == "data" else f"{fault['key']}: {fault['message']}"
