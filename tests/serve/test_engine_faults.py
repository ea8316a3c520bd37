"""What goes wrong stays with the request it went wrong for; and when all goes wrong, nobody waits in vain."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from bundle.manifest import Bundle
from serve.engine.base import EngineClosed, EngineCrashed, EngineError, GenerationRequest
from serve.engine.batching import BatchingEngine
from serve.engine.onnx import OnnxStudent
from tests.serve.conftest import complete, random_ids, unit_requests

POISON = 501  # above what random prompts hold
StartEngine = Callable[..., BatchingEngine]


def spoil(monkeypatch: pytest.MonkeyPatch, spoils: Callable[[list[list[int]]], bool]) -> None:
    """Every call of a student fails whose tokens, row by row, `spoils` says yes to."""

    def failing(real: Callable, tokens: Callable[..., list[list[int]]]) -> Callable:
        def call(self: OnnxStudent, *arguments: object) -> object:
            if spoils(tokens(*arguments)):
                raise RuntimeError("out of order")
            return real(self, *arguments)

        return call

    for name, tokens in {
        "prefill": lambda row, start, ids: [list(ids)],
        "prefill_empty": lambda first, prompts: [list(prompt) for prompt in prompts],
        "decode": lambda first, ids, lengths: [[each] for each in ids],
    }.items():
        monkeypatch.setattr(OnnxStudent, name, failing(getattr(OnnxStudent, name), tokens))


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda good: GenerationRequest([5] * 5000, good.rules, good.lines), id="longer than the context"),
        pytest.param(lambda good: GenerationRequest([10**9], good.rules, good.lines), id="no such token"),
        pytest.param(lambda good: GenerationRequest([-7], good.rules, good.lines), id="negative token"),
        pytest.param(lambda good: GenerationRequest((), constrained=False), id="nothing to go on from"),
        pytest.param(lambda good: GenerationRequest(["a"], good.rules, good.lines), id="no numbers"),
    ],
)
async def test_one_bad_request_never_harms_another(
    bundle: Bundle, start_engine: StartEngine, bad: Callable[[GenerationRequest], GenerationRequest]
) -> None:
    requests = unit_requests(bundle, 4)
    engine = start_engine(bundle, slots=2)
    alone = [await complete(engine, request) for request in requests]
    mixed = [requests[0], bad(requests[0]), *requests[1:]]
    answers = await asyncio.gather(*(complete(engine, request) for request in mixed), return_exceptions=True)
    assert isinstance(answers.pop(1), EngineError)
    assert answers == alone


@pytest.mark.parametrize("threads", [1, 2], ids=["in turns", "prompts beside answers"])
@pytest.mark.parametrize("place", [0, 10, -1], ids=["in the first chunk", "in the first chunk's midst", "decoded"])
async def test_a_call_that_fails_fails_for_the_request_at_fault_alone(
    bundle: Bundle, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch, place: int, threads: int
) -> None:
    good = [GenerationRequest(random_ids(n, 30 + n), constrained=False, max_tokens=12) for n in range(5)]
    # Long ones, of which there is a chunk left when the others' answers have begun.
    good += [GenerationRequest(random_ids(n, 700 + n), constrained=False, max_tokens=12) for n in range(2)]
    engine = start_engine(bundle, slots=8, threads=threads)
    alone = [await complete(engine, request) for request in good]
    assert not any(token.id == POISON for answer in alone for token in answer)
    ids = list(random_ids(9, 33))
    ids[place] = POISON
    bad = GenerationRequest(ids, constrained=False, max_tokens=12)
    spoil(monkeypatch, lambda rows: any(POISON in row for row in rows))
    mixed = [*good[:3], bad, *good[3:]]
    answers = await asyncio.gather(*(complete(engine, request) for request in mixed), return_exceptions=True)
    failure = answers.pop(3)
    assert isinstance(failure, EngineError)
    assert "out of order" in str(failure)
    assert answers == alone
    assert engine.failure is None


@pytest.mark.parametrize("threads", [1, 2], ids=["in turns", "prompts beside answers"])
async def test_a_student_that_fails_on_everything_crashes_the_engine(
    bundle: Bundle, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    requests = unit_requests(bundle, 6)
    engine = start_engine(bundle, slots=2, threads=threads)
    spoil(monkeypatch, lambda rows: True)
    answers = await asyncio.gather(*(complete(engine, request) for request in requests), return_exceptions=True)
    assert all(isinstance(answer, EngineCrashed) for answer in answers)
    assert "out of order" in engine.failure


async def test_a_crash_of_the_thread_is_seen_by_everybody(
    bundle: Bundle, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs, whoever waits, and whoever comes later; and closing is harmless still."""
    engine = start_engine(bundle, slots=1)
    requests = unit_requests(bundle, 4)
    async with engine.submit(requests[0]) as running, engine.submit(requests[1]) as waiting:
        await anext(aiter(running))
        assert engine.failure is None
        monkeypatch.setattr(engine._steps, "drop", lambda now: 1 / 0)
        for stream in (running, waiting):
            with pytest.raises(EngineCrashed, match="ZeroDivisionError"):
                async for _ in stream:
                    pass
            assert stream.timeline.finished is not None
    assert engine.failure.startswith("ZeroDivisionError")
    with pytest.raises(EngineCrashed):
        await complete(engine, requests[2])
    engine.close()
    with pytest.raises(EngineCrashed):
        await complete(engine, requests[3])


async def test_a_request_larger_than_the_kv_cache_is_refused(bundle: Bundle, start_engine: StartEngine) -> None:
    engine = start_engine(bundle, kv_tokens=300)
    request = unit_requests(bundle, 1)[0]
    with pytest.raises(EngineError, match=r"1024 tokens.* the KV cache holds 300: raise --kv-tokens"):
        await complete(engine, request)
    assert len(await complete(engine, msgspec.structs.replace(request, max_tokens=10))) == 10


async def test_closing_ends_open_streams_and_refuses_new_ones(bundle: Bundle, start_engine: StartEngine) -> None:
    request = unit_requests(bundle, 1)[0]
    engine = start_engine(bundle, slots=1)
    async with engine.submit(request), engine.submit(request) as waiting:
        engine.close()
        with pytest.raises(EngineClosed):
            async for _ in waiting:
                pass
    with pytest.raises(EngineClosed):
        await complete(engine, request)
    engine.close()  # closing twice is harmless


async def test_closing_is_no_failure(bundle: Bundle, start_engine: StartEngine) -> None:
    engine = start_engine(bundle)
    engine.close()
    assert engine.failure is None
