"""uvicorn with a stop that loses nothing: refuse new work at once, finish what was accepted, exit 0."""

import asyncio
import logging
import signal
import threading
from types import FrameType

import uvicorn

from serve.api.limits import Admission
from serve.app import Application
from serve.connections import BoundedConnection
from serve.settings import Settings

HEADER_BYTES = 16 * 1024
# For answers that are written and on their way.
LINGER_SECONDS = 3
# Long enough for a probe and for clients to be told why.
FAILED_LINGER_SECONDS = 5.0

LAST_ANSWER = (b"connection", b"close")

_log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """Keeps listening while it drains, so that probes and clients are told (503) rather than refused.

    SIGUSR1 announces that it will be stopped: it answers as before, but no connection is kept, so that clients which
    keep theirs go to another server before this one turns them away.

    `engine_failed`: it stopped because its engine broke down.
    """

    def __init__(self, config: uvicorn.Config, app: Application, admission: Admission, drain_seconds: float) -> None:
        """
        Args:
            config: uvicorn's own.
            app: whose engine is looked after.
            admission: closed on the first SIGTERM or SIGINT.
            drain_seconds: how long accepted work may go on; a second signal ends it at once.
        """
        super().__init__(config)
        self.engine_failed = False
        self._engine = app.engine
        self._admission = admission
        self._drain_seconds = drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list | None = None) -> None:
        """Remember the loop: signal handlers run outside it."""
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            self._loop.add_signal_handler(signal.SIGUSR1, self._keep_no_connections)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Stop when the engine broke down: a process without one answers nothing, and another should be started."""
        if self._engine.failure is not None and not self.engine_failed:
            _log.error("the engine broke down, so this server stops: %s", self._engine.failure)
            self.engine_failed = True
            asyncio.get_running_loop().call_later(FAILED_LINGER_SECONDS, self._stop)
        return await super().on_tick(counter)

    def _stop(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, stop on the second. Not remembered for uvicorn to raise it again: a
        drained server exits 0."""
        if self._loop is None or self._admission.draining:
            self.should_exit = self.force_exit = True
            return
        self._admission.draining = True
        self._loop.call_soon_threadsafe(self._start_draining)

    def _keep_no_connections(self) -> None:
        # The first list is what uvicorn makes the second of, once a second.
        for headers in (self.config.encoded_headers, self.server_state.default_headers):
            if LAST_ANSWER not in headers:
                headers.append(LAST_ANSWER)

    def _start_draining(self) -> None:
        self._keep_no_connections()
        # One that is kept and waits for no answer is closed now, rather than under its client's next request.
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedConnection) and connection.cycle is not None:
                connection.shutdown()
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._admission.idle()
        except TimeoutError:
            _log.warning("%d requests were not finished in time", self._admission.in_flight)
        self._stop()


def make_server(app: Application, admission: Admission, settings: Settings) -> DrainingServer:
    """A server ready to `run()`."""

    class Connection(BoundedConnection):
        header_seconds = settings.header_seconds
        read_seconds = settings.read_seconds

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        # h11 bounds a request's headers; httptools buffers them without a limit.
        http=Connection,
        h11_max_incomplete_event_size=HEADER_BYTES,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LINGER_SECONDS,
    )
    return DrainingServer(config, app, admission, settings.drain_seconds)
