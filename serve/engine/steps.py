"""What one step computes: some chunks of prompts, then one token of every answer.

The chunks of a step share a budget, so that running answers never wait long for a prompt. First chunks of prompts
without a shared prefix are computed together, padded; a shared prefix is computed once and copied.

What a request computes does not depend on its company: which of its tokens are computed as a chunk and which are
decoded follows from the request alone (the end of its prompt, and forced ones if they are few), and neither padding
nor other rows change a bit of its own.
"""

from collections.abc import Sequence

from serve.engine.base import DeadlineExceeded, EngineError, FinishReason
from serve.engine.counters import Counters
from serve.engine.delivery import Answering, Outbox
from serve.engine.onnx import OnnxStudent
from serve.engine.rows import Row, Rows
from serve.engine.scheduling import PREFILL_CHUNK, begun_together, next_chunk, next_row
from serve.engine.writing import AnswerWriter

PREFILL_TOKENS_PER_STEP = 512
SHORTEST_SHARED_PREFIX = 16  # a copied prefix forbids beginning prompts together, which a shorter one is not worth
FORCED_CHUNK = 4  # so many known tokens are fed in one call of their own rather than one in each step


class StudentBroken(Exception):
    """The student fails on whatever it is given."""


class Steps:
    """The rows in use, and the calls that move them on. Belongs to the engine's thread."""

    def __init__(
        self, student: OnnxStudent, writer: AnswerWriter, outbox: Outbox, counters: Counters, prefix: Sequence[int]
    ) -> None:
        """
        Args:
            student: computes; it is tried here, so that a broken one is known at once.
            writer: chooses the tokens.
            outbox: where ends and errors go.
            counters: where they are counted.
            prefix: token ids that prompts start with; may be empty.

        Raises:
            StudentBroken: the student does not compute.
        """
        self._student, self._writer = student, writer
        self._outbox, self._counters = outbox, counters
        self.rows = Rows(student.kv)
        self._turn = 0
        self._try_student(0)
        shared = len(prefix) >= SHORTEST_SHARED_PREFIX and student.kv.holds([len(prefix)])
        self._prefix = list(prefix) if shared else []
        self._compute_prefix()

    def has_room_for(self, answering: Answering) -> bool:
        """Whether a row is free and its worst case fits beside those of the others; always so when there are none."""
        taken = [row.reserved for row in self.rows.all]
        return not taken or self._student.kv.holds([*taken, self._writer.reservation(answering.request)])

    def admit(self, answering: Answering) -> None:
        """Give a request a row; one that can not be answered ends here."""
        try:
            row, reason = self._writer.open(answering)
            kv = self._student.kv
            if not kv.holds([row.reserved]):
                raise EngineError(
                    f"prompt and answer may come to {row.reserved} tokens, which is a row of "
                    f"{kv.row_size(row.reserved)}, and the KV cache holds {kv.tokens}: raise --kv-tokens, or ask for a "
                    "shorter answer"
                )
        except Exception as error:
            self._fail(answering, error)
            return
        if reason is not None:
            self.end(answering, reason)
            return
        prefix = len(self._prefix)
        if 0 < prefix < len(row.pending) and row.pending[:prefix] == self._prefix:
            row.shared = prefix
        self._take_turn(row)
        self.rows.add(row)
        try:
            self._fit([row], 1)
        except Exception as error:
            self.rows.release(row)
            self._fail(answering, error)

    def drop(self, now: float) -> None:
        """Free the rows whose readers have left, and those whose deadline has come."""
        for row in [row for row in self.rows.all if row.answering.is_over(now)]:
            self.rows.release(row)
            self.give_up(row.answering)

    def give_up(self, answering: Answering) -> None:
        """End a request that is over, waiting or running, before its answer is complete."""
        if answering.left:
            answering.end()
            self._counters.finished["cancelled"] += 1
        else:
            self.end(answering, DeadlineExceeded("the request's deadline came before its answer was complete"))

    def end(self, answering: Answering, outcome: FinishReason | EngineError) -> None:
        """Tell a request's reader why nothing more comes."""
        answering.end()
        why = outcome if isinstance(outcome, str) else "error"
        self._counters.finished["deadline" if isinstance(outcome, DeadlineExceeded) else why] += 1
        self._outbox.add(answering, outcome)

    def prefill(self) -> None:
        """Compute chunks of prompts up to the step's budget."""
        budget = PREFILL_TOKENS_PER_STEP
        while budget > 0 and (row := next_row([*self.rows.prefilling, *self.rows.empty])):
            if row.length > 0:
                budget -= self._prefill_next(row)
            elif row.shared > 0:
                budget -= self._prefill_after_prefix(row)
            else:
                alike = [row for row in self.rows.empty if not row.shared]
                budget -= self._prefill_together(begun_together(row, alike, budget))

    def decode(self) -> None:
        """Feed one token to every row whose prompt is complete; those with nothing left to feed choose their next."""
        self._decode(self.rows.decoding)
        for row in self.rows.decoding:
            if len(row.pending) >= FORCED_CHUNK:
                self._feed(row, row.pending[:-1])

    def _compute_prefix(self) -> None:
        length = len(self._prefix)
        if length:
            self._student.fit([], length, length)
            for start in range(0, length, PREFILL_CHUNK):
                self._student.prefill(0, start, self._prefix[start : start + PREFILL_CHUNK])
            self._student.kv.keep_prefix(0, length)

    def _prefill_after_prefix(self, row: Row) -> int:
        """Copy the shared prefix and compute the first chunk after it; returns how many tokens were computed."""
        kv_row = self.rows.start([row])
        try:
            self._fit([row], row.shared)
            self._student.kv.put_prefix(kv_row)
        except Exception as error:
            self._blame(row, error)
            return 0
        row.answering.cached_tokens = row.shared
        self._counters.cached_tokens += row.shared
        _advance(row, row.shared)
        return self._prefill_next(row)

    def _prefill_next(self, row: Row) -> int:
        """Compute a row's next chunk; returns how many tokens that were."""
        chunk = next_chunk(row)
        if self._feed(row, chunk):
            self._have_computed(row)
        return len(chunk)

    def _prefill_together(self, rows: list[Row]) -> int:
        """Begin rows in one call, or each alone if that fails; returns how many tokens were computed."""
        chunks = [next_chunk(row) for row in rows]
        width = max(len(chunk) for chunk in chunks)
        first = self.rows.start(rows)
        if len(rows) == 1 or width == 0:
            return sum(self._prefill_next(row) for row in rows)
        try:
            self._fit(rows, width)
            self._student.prefill_empty(first, chunks)
        except Exception:
            return sum(self._prefill_next(row) for row in rows)
        for row, chunk in zip(rows, chunks, strict=True):
            _advance(row, len(chunk))
            self._have_computed(row)
        return width * len(rows)

    def _have_computed(self, row: Row) -> None:
        """A chunk of a row's prompt is in its KV row."""
        self._take_turn(row)
        if not next_chunk(row):
            self.rows.complete(row)

    def _feed(self, row: Row, tokens: list[int]) -> bool:
        """Append known tokens to one row; False when that failed, and the row is free."""
        try:
            if tokens:
                self._fit([row], len(tokens))
                self._student.prefill(self.rows.index(row), row.length, tokens)
        except Exception as error:
            self._blame(row, error)
            return False
        _advance(row, len(tokens))
        return True

    def _decode(self, rows: list[Row]) -> None:
        """Decode rows that lie side by side; if that fails, each alone, so that only those at fault fail."""
        if not rows:
            return
        try:
            self._fit(rows, 1)
            ids, lengths = [row.pending[0] for row in rows], [row.length for row in rows]
            logits = self._student.decode(self.rows.index(rows[0]), ids, lengths)
        except Exception as error:
            if len(rows) == 1:
                self._blame(rows[0], error)
            else:
                for row in rows:
                    self._decode([row])
            return
        for row in rows:  # all of them before any is released: a row that moves, moves with its newest token
            _advance(row, 1)
        for row, row_logits in zip(rows, logits, strict=True):
            if row.pending:
                continue
            try:
                reason = self._writer.choose(row, row_logits)
            except Exception as error:
                self.rows.release(row)
                self._fail(row.answering, error)
            else:
                if reason is not None:
                    self.rows.release(row)
                    self.end(row.answering, reason)

    def _fit(self, rows: list[Row], tokens: int) -> None:
        """Make the KV rows as long as a call needs that appends `tokens` to each of `rows`."""
        lengths = [row.length for row in self.rows.all]
        needed = max(*lengths, *(row.length + tokens for row in rows))
        self._student.fit(lengths, needed, max(needed, *(row.reserved for row in self.rows.all)))

    def _blame(self, row: Row, error: Exception) -> None:
        """A call for one row failed: the request's fault, if the student still computes anything else.

        Raises:
            StudentBroken: it does not.
        """
        self._try_student(self.rows.index(row))
        self.rows.release(row)
        self._fail(row.answering, error)

    def _try_student(self, kv_row: int) -> None:
        """Compute something trivial in a KV row that nobody needs."""
        try:
            self._student.prefill(kv_row, 0, [0])
            self._student.decode(kv_row, [0], [0])
        except Exception as error:
            raise StudentBroken(f"the student does not compute: {error}") from error

    def _fail(self, answering: Answering, error: Exception) -> None:
        self.end(
            answering, error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}")
        )

    def _take_turn(self, row: Row) -> None:
        self._turn += 1
        row.turn = self._turn


def _advance(row: Row, count: int) -> None:
    """`count` of a row's pending tokens are in its KV row now."""
    row.length += count
    del row.pending[:count]
