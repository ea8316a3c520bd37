"""What one step computes, step by step and without the thread that usually takes them."""

from collections.abc import Callable, Sequence
from threading import Event, Timer

import numpy as np
import pytest

from bundle.grammar import AnswerGrammar
from bundle.manifest import Bundle
from serve.engine.base import GenerationRequest, Token
from serve.engine.counters import Counters
from serve.engine.delivery import Answering, Outbox
from serve.engine.kv import ROW_STEP
from serve.engine.onnx import OnnxStudent
from serve.engine.scheduling import PREFILL_CHUNK
from serve.engine.steps import FORCED_CHUNK, PREFILL_TOKENS_PER_STEP, Steps
from serve.engine.writing import AnswerWriter
from tests.serve.conftest import random_ids

SLOTS = 6

Call = tuple[str, list[int]]
"""What was called, and how many tokens it appended to each of its rows."""


class RecordingStudent(OnnxStudent):
    """Remembers its calls."""

    calls: list[Call]

    def prefill(self, row: int, start: int, ids: Sequence[int]) -> None:
        self.calls.append(("prefill", [len(ids)]))
        super().prefill(row, start, ids)

    def prefill_empty(self, first: int, prompts: Sequence[Sequence[int]]) -> None:
        self.calls.append(("prefill_empty", [len(prompt) for prompt in prompts]))
        super().prefill_empty(first, prompts)

    def decode(self, first: int, ids: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        self.calls.append(("decode", [1] * len(ids)))
        return super().decode(first, ids, lengths)


class Driven(Steps):
    """Steps that a test takes by hand."""

    student: RecordingStudent

    def ask(self, length: int, seed: int = 0, prefix: tuple[int, ...] = (), max_tokens: int | None = None) -> Answering:
        """Admit a prompt of random tokens after a prefix."""
        ids = prefix + random_ids(seed, length)
        answering = Answering(GenerationRequest(ids, constrained=False, max_tokens=max_tokens))
        self.admit(answering)
        return answering

    def answer(self, answering: Answering) -> list[int]:
        """The tokens so far."""
        return [item.id for item in self._outbox.items.get(answering, ()) if isinstance(item, Token)]

    def take(self) -> list[Call]:
        """Take one step; returns its calls."""
        self.student.calls = []
        self.drop(0.0)
        self.step()
        return self.student.calls


@pytest.fixture
def make_steps(bundle: Bundle) -> Callable[..., Driven]:
    def make(prefix: Sequence[int] = (), threads: int = 1) -> Driven:
        manifest = bundle.manifest
        context = manifest.context_length
        RecordingStudent.calls = []
        student = RecordingStudent(bundle, SLOTS, SLOTS * context, threads, "cpu")
        grammar = AnswerGrammar(bundle.tokenizer_file, manifest.model.vocab_size, manifest.eos_token_ids)
        outbox, counters = Outbox(), Counters()
        writer = AnswerWriter(grammar, manifest.eos_token_ids, context, outbox, counters)
        steps = Driven(student, writer, outbox, counters, prefix)
        steps.student = student
        return steps

    return make


async def test_long_prompts_hold_up_neither_a_short_one_nor_a_running_answer(
    make_steps: Callable[..., Driven],
) -> None:
    steps = make_steps()
    running = steps.ask(5)
    steps.take()
    longs = [steps.ask(900, seed) for seed in range(3)]
    short = steps.ask(40)
    first_tokens = {}
    for number in range(1, 9):
        calls = steps.take()
        assert sum(max(tokens) * len(tokens) for name, tokens in calls if name != "decode") < (
            PREFILL_TOKENS_PER_STEP + PREFILL_CHUNK
        )
        assert calls[-1][0] == "decode", "every step moves the running answers on"
        for answering in (short, *longs):
            if answering.timeline.first_token is not None:
                first_tokens.setdefault(answering, number)
    assert running in [row.answering for row in steps.rows.decoding]
    assert first_tokens[short] <= 2
    assert all(first_tokens[long] >= 5 for long in longs), "3 x 900 tokens, 512 a step"


class Gate:
    """Prompts of a student are computed only while it is open."""

    def __init__(self, student: RecordingStudent, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = Event()
        for name in ("prefill", "prefill_empty"):
            monkeypatch.setattr(student, name, self._guard(getattr(student, name)))

    def _guard(self, call: Callable[..., None]) -> Callable[..., None]:
        def wait_and_call(*arguments: object) -> None:
            assert self._open.wait(timeout=30)
            call(*arguments)

        return wait_and_call

    def open(self) -> None:
        self._open.set()


async def test_a_small_students_answers_go_on_while_prompts_are_computed(
    make_steps: Callable[..., Driven], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them end meanwhile, in rows before those that are being computed."""
    answers = []
    for threads in (1, 2):
        steps = make_steps(threads=threads)
        running = [steps.ask(5 + n, n, max_tokens=4 + 3 * n) for n in range(3)]
        steps.take()
        late = [steps.ask(length, length, max_tokens=6) for length in (30, 40, 700)]
        if threads == 2:
            gate = Gate(steps.student, monkeypatch)
            for number in range(7):
                assert steps.take() == [("decode", [1] * sum(2 + number <= 4 + 3 * n for n in range(3)))]
            assert [len(steps.answer(each)) for each in (*running, *late)] == [4, 7, 8, 0, 0, 0]
            assert [row.answering for row in steps.rows.running] == [running[2], *late]
            gate.open()
        while steps.rows.all:
            steps.take()
        answers.append([steps.answer(each) for each in (*running, *late)])
        steps.close()
    assert [len(answer) for answer in answers[0]] == [4, 7, 10, 6, 6, 6]
    assert answers[0] == answers[1]


async def test_an_answer_that_needs_a_longer_row_waits_for_the_prompts_that_are_computed(
    make_steps: Callable[..., Driven], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for threads in (1, 2):
        steps = make_steps(threads=threads)
        running = [steps.ask(ROW_STEP - 3 + n, n, max_tokens=9) for n in range(2)]
        steps.take()
        late = steps.ask(40, 9, max_tokens=6)
        if threads == 2:
            gate = Gate(steps.student, monkeypatch)
            steps.take()
            opening = Timer(0.2, gate.open)
            opening.start()
        while steps.rows.all:
            steps.take()
        answers.append([steps.answer(each) for each in (*running, late)])
        steps.close()
    assert [len(answer) for answer in answers[0]] == [9, 9, 6]
    assert answers[0] == answers[1]


async def test_who_left_is_gone_before_more_of_a_prompt_is_computed(
    make_steps: Callable[..., Driven], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = make_steps(threads=2)
    running, long = steps.ask(5), steps.ask(900)
    steps.take()
    gate = Gate(steps.student, monkeypatch)
    steps.take()
    long.left = True
    assert steps.take() == [("decode", [1])]
    gate.open()
    calls = []
    while long.timeline.finished is None:
        calls += steps.take()
    calls += steps.take()
    assert [tokens for name, tokens in calls if name == "prefill"] in ([[PREFILL_CHUNK]], []), "the one that waited"
    assert [row.answering for row in steps.rows.all] == [running]
    steps.close()


async def test_prompts_of_like_length_are_begun_in_one_call(make_steps: Callable[..., Driven]) -> None:
    steps = make_steps()
    for seed, length in enumerate((60, 50, 55, 200)):
        steps.ask(length, seed)
    assert steps.take() == [("prefill_empty", [59, 54, 49]), ("prefill", [199]), ("decode", [1] * 4)]


async def test_a_shared_prefix_is_computed_once(make_steps: Callable[..., Driven]) -> None:
    prefix = random_ids(99, 300)
    steps = make_steps(prefix)
    assert [tokens for _, tokens in steps.student.calls] == [[1], [1], [256], [44]], "both tries, and the prefix"
    answers = [steps.ask(20, seed, prefix) for seed in range(3)]
    other = steps.ask(20, 7)
    assert sorted(steps.take()) == sorted([("prefill", [19])] * 4 + [("decode", [1] * 4)])
    assert [answering.cached_tokens for answering in (*answers, other)] == [300, 300, 300, 0]


async def test_many_known_tokens_are_fed_in_one_call_and_few_with_the_batch(make_steps: Callable[..., Driven]) -> None:
    steps = make_steps()
    steps.ask(10)
    steps.take()
    (row,) = steps.rows.decoding
    row.pending = list(random_ids(1, 1 + FORCED_CHUNK))
    assert steps.take() == [("decode", [1]), ("prefill", [FORCED_CHUNK - 1])]
    row.pending = list(random_ids(1, FORCED_CHUNK))
    assert steps.take() == [("decode", [1])]


async def test_who_left_is_gone_in_the_next_step(make_steps: Callable[..., Driven]) -> None:
    steps = make_steps()
    decoding, prefilling = steps.ask(5), steps.ask(900)
    steps.take()
    waiting = steps.ask(20)
    decoding.left = prefilling.left = True
    steps.take()
    assert [row.answering for row in steps.rows.all] == [waiting]
