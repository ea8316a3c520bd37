"""The application: settings and a bundle wired to engine, analyzer and routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from bundle.manifest import Bundle
from serve.analysis.loading import load_analyzer
from serve.api.analyze import analyze
from serve.api.bundle import bundle_info
from serve.api.errors import problem_response
from serve.api.health import live, ready
from serve.api.limits import Admission, BodyDeadline
from serve.settings import Settings


def create_app(settings: Settings, bundle: Bundle, admission: Admission) -> Litestar:
    """The ASGI application; its engine runs from now until the application shuts down.

    Args:
        settings: the operator's.
        bundle: verified.
        admission: shared with the launcher, which closes it when the process is asked to stop.

    Raises:
        BundleError: the bundle has no export for the chosen engine.
    """
    analyzer = load_analyzer(bundle, settings.slots, settings.max_queue, settings.threads)

    @asynccontextmanager
    async def running_engine(_: Litestar) -> AsyncIterator[None]:
        await analyzer.start()
        try:
            yield
        finally:
            analyzer.engine.close()

    return Litestar(
        route_handlers=[analyze, bundle_info, live, ready],
        dependencies={
            "analyzer": _always(analyzer),
            "admission": _always(admission),
            "bundle": _always(bundle),
        },
        exception_handlers={Exception: problem_response},
        lifespan=[running_engine],
        middleware=[BodyDeadline(settings.body_seconds)],
        request_max_body_size=settings.max_body_bytes,
        # JSON alone: the UI pages load their scripts from a CDN, and this must work without a network.
        openapi_config=OpenAPIConfig(
            title="DeepCode-Analyst",
            version="1",
            path="/schema",
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        ),
    )


def _always(value: object) -> Provide:
    def give() -> Any:
        return value

    return Provide(give, sync_to_thread=False)
