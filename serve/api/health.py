"""Has it started, is it alive, should it get traffic: three questions, three endpoints."""

from typing import Literal

import msgspec
from litestar import get
from litestar.di import NamedDependency

from serve.analysis.analyzer import Analyzer
from serve.api.errors import documented, draining, engine_away, engine_failed
from serve.api.limits import Admission


class Health(msgspec.Struct, frozen=True):
    """The answer of every health endpoint."""

    status: Literal["ok"] = "ok"


@get("/health/startup", tags=["health"], summary="The server has started", exclude_from_auth=True)
async def startup() -> Health:
    """The port opens only when the student is loaded, so whoever gets an answer knows."""
    return Health()


@get(
    "/health/live",
    tags=["health"],
    summary="The process can go on",
    responses=documented(503),
    exclude_from_auth=True,
)
async def live(analyzer: NamedDependency[Analyzer]) -> Health:
    """503 only when the process should be replaced: its engine broke down."""
    _check_engine(analyzer)
    return Health()


@get(
    "/health/ready",
    tags=["health"],
    summary="The server takes work",
    responses=documented(503),
    exclude_from_auth=True,
)
async def ready(admission: NamedDependency[Admission], analyzer: NamedDependency[Analyzer]) -> Health:
    """503 while the server is stopping, while what runs its student can not be reached, and once its engine broke
    down."""
    _check_engine(analyzer)
    if analyzer.engine.away is not None:
        raise engine_away()
    if admission.draining:
        raise draining("finishes what it has accepted and takes nothing new.")
    return Health()


def _check_engine(analyzer: Analyzer) -> None:
    if analyzer.engine.failure is not None:
        raise engine_failed(f"{analyzer.engine.failure}; this server exits and must be started again.")
