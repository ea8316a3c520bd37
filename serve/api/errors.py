"""Every error a client sees: one shape (RFC 9457, application/problem+json), one place where it is made."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

TYPE_PREFIX = "urn:deepcode-analyst:problem:"

_log = logging.getLogger(__name__)


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


def problem_response(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """The response for any exception a request can raise."""
    problem = _as_problem(error)
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
        media_type="application/problem+json",
    )


def _as_problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, ValidationException):
        faults = error.extra if isinstance(error.extra, list) else []
        told = "; ".join(
            f"{fault['key']}: {fault['message']}" if "key" in fault else fault["message"] for fault in faults
        )
        return Problem("invalid-request", 422, "The request does not fit the schema", told or error.detail)
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        kind = status.phrase.lower().replace(" ", "-")
        return Problem(kind, status, status.phrase, error.detail, error.headers)
    return Problem("internal-error", 500, "Internal error", "This is a fault of the server; its log has the details.")
