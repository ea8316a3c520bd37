"""Is the process alive, and should it get traffic: two questions, two endpoints."""

from typing import Literal

import msgspec
from litestar import get

from serve.api.errors import Problem, documented
from serve.api.limits import RETRY_AFTER_DRAIN_SECONDS, Admission


class Health(msgspec.Struct, frozen=True):
    """The answer of both health endpoints."""

    status: Literal["ok"] = "ok"


@get("/health/live", tags=["health"], summary="The process answers")
async def live() -> Health:
    """Fails only when the process should be replaced."""
    return Health()


@get("/health/ready", tags=["health"], summary="The server takes work", responses=documented(503))
async def ready(admission: Admission) -> Health:
    """503 while the server is stopping. A server answers nothing before its student is loaded."""
    if admission.draining:
        raise Problem(
            "draining",
            503,
            "The server is stopping",
            "This server finishes what it has accepted and takes nothing new.",
            {"Retry-After": str(RETRY_AFTER_DRAIN_SECONDS)},
        )
    return Health()
