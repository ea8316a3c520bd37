"""uvicorn with a stop that loses nothing: refuse new work at once, finish what was accepted, exit 0."""

import asyncio
from types import FrameType

import uvicorn

from serve.api.limits import Admission

HEADER_BYTES = 16 * 1024
LINGER_SECONDS = 1


class DrainingServer(uvicorn.Server):
    """Keeps listening while it drains, so that probes and clients are told (503) rather than refused."""

    def __init__(self, config: uvicorn.Config, admission: Admission, drain_seconds: float) -> None:
        """
        Args:
            config: uvicorn's own.
            admission: closed on the first SIGTERM or SIGINT.
            drain_seconds: how long accepted work may go on; a second signal ends it at once.
        """
        super().__init__(config)
        self._admission = admission
        self._drain_seconds = drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list | None = None) -> None:
        """Remember the loop: signal handlers run outside it."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, stop on the second. Not remembered for uvicorn to raise it again: a
        drained server exits 0."""
        if self._loop is None or self._admission.draining:
            self.should_exit = self.force_exit = True
            return
        self._admission.draining = True
        self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._admission.idle()
        except TimeoutError:
            pass
        self.should_exit = True


def make_server(app: object, admission: Admission, host: str, port: int, drain_seconds: float) -> DrainingServer:
    """A server ready to `run()`."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=host,
        port=port,
        # h11 bounds a request's headers; httptools buffers them without a limit.
        http="h11",
        h11_max_incomplete_event_size=HEADER_BYTES,
        ws="none",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LINGER_SECONDS,
    )
    return DrainingServer(config, admission, drain_seconds)
