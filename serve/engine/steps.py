"""What one step computes: some chunks of prompts, and one token of every answer.

The chunks of a step share a budget, so that running answers never wait long for a prompt. First chunks of prompts
without a shared prefix are computed together, padded; a shared prefix is computed once and copied.

Where the student is small, the chunks of one step are computed beside the answers (`prompt_calls`), while more steps
move these on. Meanwhile their rows do not move, and the KV array does not change: what needs that waits for `_land`.

What a request computes does not depend on its company: which of its tokens are computed as a chunk and which are
decoded follows from the request alone (the end of its prompt, and forced ones if they are few), and neither padding
nor other rows change a bit of its own.
"""

from collections.abc import Mapping, Sequence

from serve.engine.base import DeadlineExceeded, EngineError, FinishReason
from serve.engine.counters import Counters
from serve.engine.delivery import Answering, Outbox
from serve.engine.onnx import OnnxStudent
from serve.engine.prompt_calls import PromptCalls
from serve.engine.rows import Row, Rows
from serve.engine.sampling import scores_of
from serve.engine.scheduling import PREFILL_CHUNK, calls_of_a_step, most_padding, next_chunk, to_copy
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
        self._prompts = PromptCalls(student, self.rows)
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
            self._fit({row: 1})
        except Exception as error:
            self._free(row)
            self._fail(answering, error)

    def drop(self, now: float) -> None:
        """Free the rows whose readers have left, and those whose deadline has come; not while they are computed."""
        self._land(wait=False)
        rows = [*self.rows.decoding, *self.rows.empty]
        if not self._prompts.begun:
            rows += self.rows.prefilling
        for row in rows:
            if row.answering.is_over(now):
                self._free(row)
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

    def step(self) -> None:
        """Compute chunks of prompts up to the step's budget, and feed one token to every row whose prompt is complete.

        Rows with nothing left to feed choose their next token. Prompts that are computed beside them may take several
        steps.
        """
        if not self._prompts.begun:
            self._prompts.begin(self._plan(), beside=bool(self.rows.decoding))
        self._land(wait=not self.rows.decoding)
        self._decode(self.rows.decoding)
        for row in self.rows.decoding:
            if len(row.pending) >= FORCED_CHUNK:
                self._feed(row, row.pending[:-1])

    def close(self) -> None:
        """Take no more steps."""
        self._prompts.close()

    def _compute_prefix(self) -> None:
        length = len(self._prefix)
        if length:
            self._student.fit([], length, length)
            for start in range(0, length, PREFILL_CHUNK):
                self._student.prefill(0, start, self._prefix[start : start + PREFILL_CHUNK])
            self._student.kv.keep_prefix(0, length)

    def _plan(self) -> list[list[Row]]:
        """Choose what is computed, and prepare its rows: begun, with their prefixes, and long enough for the step."""
        while True:
            unread = [*self.rows.prefilling, *self.rows.empty]
            calls = calls_of_a_step(unread, PREFILL_TOKENS_PER_STEP, most_padding(self._student.parameters))
            growing = {row: to_copy(row) + len(next_chunk(row)) for rows in calls for row in rows}
            growing |= dict.fromkeys(self.rows.decoding, 1)
            if not growing:
                return []
            try:
                self._fit(growing)
                break
            except Exception as error:
                self._blame(max(growing, key=lambda row: row.length + growing[row]), error)
        empty = self.rows.empty
        for rows in calls:
            if rows[0] in empty:
                self.rows.start(rows)
            for row in rows:
                self._copy_prefix(row)
        return calls

    def _copy_prefix(self, row: Row) -> None:
        copied = to_copy(row)
        if copied:
            self._student.kv.put_prefix(self.rows.index(row))
            row.answering.cached_tokens = copied
            self._counters.cached_tokens += copied
            _advance(row, copied)

    def _land(self, wait: bool) -> None:
        """What follows from prompts that are computed; rows of a call that failed are computed each alone.

        Args:
            wait: until they are.
        """
        outcomes = self._prompts.take(wait)
        if self._prompts.begun:
            return
        computed = [row for rows, error in outcomes if error is None for row in rows]
        for row in computed:  # all of them before any row moves: it moves with what it holds
            _advance(row, len(next_chunk(row)))
        self.rows.sweep()
        self._have_computed(computed)
        for rows, error in outcomes:
            if error is not None and len(rows) == 1:
                self._blame(rows[0], error)
            elif error is not None:
                for row in rows:
                    if self._feed(row, next_chunk(row)):
                        self._have_computed([row])

    def _have_computed(self, rows: Sequence[Row]) -> None:
        """A chunk of the prompts of these rows is in their KV rows."""
        for row in rows:
            self._take_turn(row)
        self.rows.complete([row for row in rows if not next_chunk(row)])

    def _feed(self, row: Row, tokens: list[int]) -> bool:
        """Append known tokens to one row; False when that failed, and the row is free."""
        try:
            self._fit({row: len(tokens)})
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
            self._fit(dict.fromkeys(rows, 1))
            over = self._next_tokens(rows)
        except Exception as error:
            self._land(wait=True)  # who is to blame is found out while nothing else computes
            if len(rows) == 1:
                self._blame(rows[0], error)
            else:
                for row in rows:
                    self._decode([row])
        else:
            self._release(over)

    def _next_tokens(self, rows: list[Row]) -> list[tuple[Row, FinishReason | Exception]]:
        """Decode rows that lie side by side; returns which of them are over, and why. No row moves."""
        ids, lengths = [row.pending[0] for row in rows], [row.length for row in rows]
        logits = self._student.decode(self.rows.index(rows[0]), ids, lengths)
        over: list[tuple[Row, FinishReason | Exception]] = []
        wanted = [row.answering.request.logprobs for row in rows]
        for row, scores in zip(rows, scores_of(logits, wanted), strict=True):
            _advance(row, 1)
            if row.pending:
                continue
            try:
                reason = self._writer.choose(row, scores)
            except Exception as error:
                over.append((row, error))
            else:
                if reason is not None:
                    over.append((row, reason))
        return over

    def _release(self, over: list[tuple[Row, FinishReason | Exception]]) -> None:
        for row, why in over:
            self._free(row)
            if isinstance(why, Exception):
                self._fail(row.answering, why)
            else:
                self.end(row.answering, why)

    def _free(self, row: Row) -> None:
        """Free a row; its place too, or, where prompts behind it are being computed, once they are."""
        self.rows.release(row)
        if not self._prompts.begun:
            self.rows.sweep()

    def _fit(self, growing: Mapping[Row, int]) -> None:
        """Make the KV rows as long as calls need that append so many tokens to each of these rows."""
        if self._prompts.begun:
            if max(row.length + tokens for row, tokens in growing.items()) <= self._student.kv.capacity:
                return
            self._land(wait=True)
        lengths = [row.length for row in self.rows.all]
        needed = max(1, *lengths, *(row.length + tokens for row, tokens in growing.items()))
        self._student.fit(lengths, needed, max(needed, *(row.reserved for row in self.rows.all)))

    def _blame(self, row: Row, error: Exception) -> None:
        """A call for one row failed: the request's fault, if the student still computes anything else.

        Raises:
            StudentBroken: it does not.
        """
        self._try_student(self.rows.index(row))
        self._free(row)
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
