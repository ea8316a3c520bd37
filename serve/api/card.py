"""The evaluation a bundle was released with, as its makers wrote it."""

import asyncio
from typing import Any

from litestar import MediaType, Response, get
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec

from bundle.manifest import Bundle
from serve.api.errors import Problem, documented

REPORT_FILE = "report.json"
RESPONSES = {
    200: ResponseSpec(dict[str, Any], description="The evaluation", generate_examples=False),
    **documented(401, 404, 429),
}


@get("/v1/bundle/report", tags=["bundle"], summary="How good the student is", responses=RESPONSES)
async def bundle_report(bundle: NamedDependency[Bundle]) -> Response[Any]:
    """The bundle's report.json: scores with intervals, what was kept of the teacher, sizes and speeds."""
    if REPORT_FILE not in bundle.manifest.files:
        raise Problem(
            "no-report",
            404,
            "The bundle has no evaluation",
            f"This bundle has no {REPORT_FILE}; deepcode-compress writes one into every bundle it makes.",
        )
    content = await asyncio.to_thread((bundle.root / REPORT_FILE).read_bytes)
    return Response(content, media_type=MediaType.JSON)
