"""When to ask a busy or restarting server again, and when to give up. Nothing here sends or sleeps."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from serve.client.errors import NoAnswer, ServerBusy, ServerUnreachable, read_problem

BACKOFF_S = (0.25, 0.5, 1.0, 2.0)
BUSY = frozenset({429, 502, 503})
LONGEST_WAIT_S = 120.0
TIMEOUT = httpx.Timeout(60.0, connect=5.0, read=300.0, pool=None)


class Patience:
    """The waits of one request. Analyses change nothing on a server, so that asking twice does no harm."""

    def __init__(self, shown: str) -> None:
        """`shown`: the server's address as messages may have it."""
        self._shown = shown
        self._attempt, self._waited = 0, 0.0

    def after_busy(self, response: httpx.Response) -> float:
        """Seconds to wait after a response, whose body was read, with one of the BUSY statuses.

        Raises:
            ServerBusy: that would be more than LONGEST_WAIT_S in all.
        """
        asked = retry_after(response)
        delay = self._backoff() if asked is None else asked
        if self._waited + delay > LONGEST_WAIT_S:
            said = read_problem(response).detail or response.reason_phrase
            raise ServerBusy(
                f"{self._shown} is too busy (status {response.status_code}: {said}) "
                f"and would have this client wait more than {LONGEST_WAIT_S:.0f} s; try again later"
            )
        return self._wait(delay)

    def after_failure(self, error: httpx.RequestError) -> float:
        """Seconds to wait after a request that got no response.

        Raises:
            ServerUnreachable: no connection was made, after every attempt.
            NoAnswer: the connection broke, after every attempt; or the server thought for too long.
        """
        if isinstance(error, httpx.ReadTimeout):
            raise NoAnswer(f"{self._shown} did not answer within {TIMEOUT.read:.0f} s") from error
        if self._attempt == len(BACKOFF_S):
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise ServerUnreachable(
                    f"{self._shown} cannot be reached ({error}); start deepcode-serve or correct the address"
                ) from error
            raise NoAnswer(f"{self._shown} broke off while answering: {error}") from error
        return self._wait(self._backoff())

    def _backoff(self) -> float:
        # Jitter keeps clients that a restart turned away together from coming back together.
        return BACKOFF_S[min(self._attempt, len(BACKOFF_S) - 1)] * random.uniform(0.75, 1.25)

    def _wait(self, delay: float) -> float:
        self._attempt, self._waited = self._attempt + 1, self._waited + delay
        return delay


def retry_after(response: httpx.Response) -> float | None:
    """The seconds a server asks to wait, from either form of Retry-After; None when it does not say."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())
