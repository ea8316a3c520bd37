"""The application: settings and a bundle wired to engine, analyzer and routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from bundle.manifest import Bundle
from serve.analysis.analyzer import Analyzer
from serve.analysis.cache import SharedStore
from serve.analysis.loading import load_prompt, make_cache, start_engine
from serve.analysis.writing import Writer
from serve.api.analyze import analyze
from serve.api.batch import FILES_AT_ONCE, analyze_batch
from serve.api.bundle import bundle_info
from serve.api.card import bundle_report
from serve.api.errors import problem_response
from serve.api.health import live, ready, startup
from serve.api.keys import Authentication, Door
from serve.api.limits import Admission, BodyLimits
from serve.api.metrics import Metrics, metrics_page
from serve.api.observing import Observed, Telemetry
from serve.api.openai import Completions, chat, complete, models, one_model
from serve.api.running import Analyses
from serve.api.search import (
    delete_project,
    index_files,
    indexed_files,
    indexed_projects,
    search_code,
    search_or_refusal,
)
from serve.api.tracing import Tracing
from serve.engine.base import Engine
from serve.search.loading import open_search
from serve.settings import Settings, SettingsError
from serve.web import page, page_files

CACHE_NAMESPACE = "deepcode"
CACHE_SECONDS = 0.5


class Application(Observed):
    """The ASGI application, and what its launcher must know of it."""

    def __init__(self, app: Litestar, telemetry: Telemetry, engine: Engine) -> None:
        super().__init__(app, telemetry)
        self.engine = engine


def create_app(settings: Settings, bundle: Bundle, admission: Admission, tracing: Tracing | None = None) -> Application:
    """The ASGI application; its engine runs from now until the application shuts down.

    Args:
        settings: the operator's.
        bundle: verified.
        admission: shared with the launcher, which closes it when the process is asked to stop.
        tracing: where spans go; None makes none.

    Raises:
        BundleError: the bundle has no export for the chosen engine, or the search bundle is none.
        IndexUnusable: the index belongs to another search bundle or another server.
        KeyFileError: the file of API keys can not be used.
        SettingsError: a setting needs a package that is not installed.
        EngineUnavailable: the chosen engine can not start on this machine.
    """
    door = Door(settings.api_keys, settings.requests_per_minute, settings.tokens_per_minute)
    shared = None if settings.cache_url is None else _shared_store(settings.cache_url)
    telemetry = Telemetry(Metrics(bundle.manifest.name), tracing)
    search = open_search(settings, telemetry.metrics)
    # A request that is admitted is a batch at most.
    prompt = load_prompt(bundle)
    engine = start_engine(bundle, prompt, settings, settings.max_queue * FILES_AT_ONCE)
    cache = make_cache(bundle, engine, settings.cache_bytes, shared)
    analyzer = Analyzer(bundle, prompt, engine, settings.slots, cache, telemetry)
    writer = Writer(bundle, engine, telemetry)
    telemetry.metrics.watch(engine, admission, cache, search)

    @asynccontextmanager
    async def running_engine(_: Litestar) -> AsyncIterator[None]:
        await analyzer.start()
        if search is not None:
            await search.start()
        try:
            yield
        finally:
            engine.close()
            if search is not None:
                search.close()
            if tracing is not None:
                tracing.close()

    body_bytes_at_once = max(settings.max_batch_bytes, settings.max_queue * settings.max_body_bytes)
    batches = Router("/", route_handlers=[analyze_batch, index_files], request_max_body_size=settings.max_batch_bytes)
    app = Litestar(
        route_handlers=[
            analyze,
            batches,
            bundle_info,
            bundle_report,
            chat,
            complete,
            models,
            one_model,
            startup,
            live,
            ready,
            metrics_page,
            indexed_projects,
            indexed_files,
            delete_project,
            search_code,
            page,
            page_files,
        ],
        dependencies={
            "analyzer": _always(analyzer),
            "analyses": _always(Analyses(analyzer, bundle, settings)),
            "admission": _always(admission),
            "bundle": _always(bundle),
            "completions": _always(Completions(writer, bundle.manifest.name, settings, admission)),
            "metrics": _always(telemetry.metrics),
            "search_model": _always(None if search is None else search.model),
            "search": search_or_refusal(search),
        },
        exception_handlers={Exception: problem_response},
        lifespan=[running_engine],
        middleware=[BodyLimits(settings.body_seconds, body_bytes_at_once), Authentication(door)],
        request_max_body_size=settings.max_body_bytes,
        # JSON alone: the UI pages load their scripts from a CDN, and this must work without a network.
        openapi_config=OpenAPIConfig(
            title="DeepCode-Analyst",
            version="1",
            path="/schema",
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
            components=Components(
                security_schemes={
                    "apiKey": SecurityScheme(
                        type="http", scheme="bearer", description="Where the server was started with --api-keys."
                    )
                }
            ),
            # Either works where no key is asked for.
            security=[{}, {"apiKey": []}],
        ),
        # The process has one log, and whoever starts it says where it goes.
        logging_config=None,
    )
    return Application(app, telemetry, engine)


def _shared_store(url: str) -> SharedStore:
    try:
        from litestar.stores.valkey import ValkeyStore
        from valkey.asyncio import Valkey
    except ImportError as error:
        raise SettingsError(f"--cache-url needs: pip install 'deepcode-analyst[cache]' ({error})") from error
    try:
        client = Valkey.from_url(url, socket_timeout=CACHE_SECONDS, socket_connect_timeout=CACHE_SECONDS)
    except ValueError as error:
        raise SettingsError(f"--cache-url is no address of a Valkey or Redis: {error}") from error
    return ValkeyStore(client, namespace=CACHE_NAMESPACE)


def _always(value: object) -> Provide:
    def give() -> Any:
        return value

    return Provide(give, sync_to_thread=False)
