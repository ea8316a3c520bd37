"""The calls that compute chunks of prompts: at once, or in a thread of their own beside the answers.

Beside, they take as many steps as they need. If a step waited for both, the longer of the two would leave a core idle.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from serve.engine.onnx import OnnxStudent
from serve.engine.rows import Row, Rows
from serve.engine.scheduling import next_chunk

Outcome = tuple[list[Row], Exception | None]
"""The rows of one call, and what it failed with."""


class PromptCalls:
    """Computes the next chunks of rows, those of one step at a time. Changes no row: who takes the outcomes does."""

    def __init__(self, student: OnnxStudent, rows: Rows) -> None:
        """
        Args:
            student: computes; in a thread of its own, if it `reads_beside`.
            rows: knows which KV row is whose.
        """
        self._student, self._rows = student, rows
        self._thread = ThreadPoolExecutor(1, "prefill") if student.reads_beside else None
        self._outcomes: Future[list[Outcome]] | None = None

    @property
    def begun(self) -> bool:
        """Calls were begun whose outcomes nobody has taken: their rows must stay where they are, and as long."""
        return self._outcomes is not None

    def begin(self, calls: Sequence[list[Row]], beside: bool) -> None:
        """Compute the next chunks of these rows, those of a list in one call.

        Args:
            calls: may be none.
            beside: there are answers to go on with meanwhile.
        """
        if calls and beside and self._thread is not None:
            self._outcomes = self._thread.submit(self._compute, calls)
        elif calls:
            self._outcomes = Future()
            self._outcomes.set_result(self._compute(calls))

    def take(self, wait: bool) -> list[Outcome]:
        """What came of all calls, once they are through or if they are; nothing is begun then."""
        if self._outcomes is None or not (wait or self._outcomes.done()):
            return []
        outcomes = self._outcomes.result()
        self._outcomes = None
        return outcomes

    def close(self) -> None:
        """Wait for what is begun, and begin no more."""
        if self._thread is not None:
            self._thread.shutdown()

    def _compute(self, calls: Sequence[list[Row]]) -> list[Outcome]:
        return [(rows, self._call(rows)) for rows in calls]

    def _call(self, rows: list[Row]) -> Exception | None:
        chunks = [next_chunk(row) for row in rows]
        first = self._rows.index(rows[0])
        try:
            if len(rows) > 1:
                self._student.prefill_empty(first, chunks)
            elif chunks[0]:
                self._student.prefill(first, rows[0].length, chunks[0])
        except Exception as error:
            return error
        return None
