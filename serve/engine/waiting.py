"""Requests that wait for a KV row."""

from collections import deque

from serve.engine.base import EngineBusy, Priority
from serve.engine.delivery import Answering

BATCH_HANDICAP_SECONDS = 10.0


class WaitingQueue:
    """First come, first served, where batch requests count as come `BATCH_HANDICAP_SECONDS` later.

    So interactive requests go before batch ones, but no stream of them keeps a batch request waiting for ever.
    Not thread-safe.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: requests that may wait; one more is refused."""
        self._limit = limit
        self._queues: dict[Priority, deque[Answering]] = {"interactive": deque(), "batch": deque()}

    def __len__(self) -> int:
        return sum(self.count(priority) for priority in self._queues)

    def count(self, priority: Priority) -> int:
        """How many of one priority wait; those whose readers have gone do not count."""
        return sum(not answering.left for answering in self._queues[priority])

    def add(self, answering: Answering) -> None:
        """Queue a request.

        Raises:
            EngineBusy: as many wait as may.
        """
        waiting = len(self)
        if waiting >= self._limit:
            raise EngineBusy(f"{waiting} requests wait already; try again later")
        self._queues[answering.request.priority].append(answering)

    def first(self) -> Answering | None:
        """Who is next, left in the queue; None when nobody waits."""
        heads = [queue[0] for queue in self._queues.values() if queue]
        return min(heads, key=_counts_as_come, default=None)

    def take(self) -> Answering | None:
        """Who is next, taken out of the queue; None when nobody waits."""
        answering = self.first()
        if answering is not None:
            self._queues[answering.request.priority].popleft()
        return answering

    def take_gone(self, now: float) -> list[Answering]:
        """Take out those whose reader has left, and those whose deadline has come."""
        gone = []
        for priority, queue in self._queues.items():
            if any(answering.is_over(now) for answering in queue):
                gone += [answering for answering in queue if answering.is_over(now)]
                self._queues[priority] = deque(answering for answering in queue if not answering.is_over(now))
        return gone

    def take_all(self) -> list[Answering]:
        """Empty the queue."""
        waiting = [answering for queue in self._queues.values() for answering in queue]
        for queue in self._queues.values():
            queue.clear()
        return waiting


def _counts_as_come(answering: Answering) -> float:
    handicap = BATCH_HANDICAP_SECONDS if answering.request.priority == "batch" else 0.0
    return answering.timeline.submitted + handicap
