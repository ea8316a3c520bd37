"""What a request may ask for, and what its stream says: limits, deadlines, priorities, chance, times, counts."""

import asyncio
import time
from collections.abc import Callable

import msgspec
import pytest

from bundle.manifest import Bundle
from serve.engine.base import DeadlineExceeded, EngineBusy, EngineError, GenerationRequest, Token
from serve.engine.batching import BatchingEngine
from tests.serve.conftest import complete, random_ids, unit_requests, wait_until

StartEngine = Callable[..., BatchingEngine]


async def test_the_opening_is_forced_and_not_decoded(bundle: Bundle, start_engine: StartEngine) -> None:
    answer = await complete(start_engine(bundle), unit_requests(bundle, 1)[0])
    assert answer[0].data == b'{"findings":['
    assert answer[0].forced
    assert not answer[1].forced
    assert answer[1].logprob < 0


async def test_leaving_a_stream_frees_its_slot_and_stops_its_work(bundle: Bundle, start_engine: StartEngine) -> None:
    requests = unit_requests(bundle, 12)
    alone = start_engine(bundle)
    answers = [await complete(alone, request) for request in requests]
    longest = max(range(len(requests)), key=lambda index: len(answers[index]))
    engine = start_engine(bundle, slots=1)
    async with engine.submit(requests[longest]) as running, engine.submit(requests[1]):
        await anext(aiter(running))
    assert await complete(engine, requests[2]) == answers[2]
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.prompt_tokens == len(requests[longest].prompt_ids) + len(requests[2].prompt_ids)
    assert stats.generated_tokens < len(answers[longest]) + len(answers[2])


async def test_a_full_queue_refuses_and_harms_nobody(bundle: Bundle, start_engine: StartEngine) -> None:
    requests = unit_requests(bundle, 3)
    engine = start_engine(bundle, slots=1, max_waiting=1)
    async with engine.submit(requests[0]) as first:
        first_tokens = aiter(first)
        await anext(first_tokens)
        async with engine.submit(requests[1]) as second:
            with pytest.raises(EngineBusy):
                async with engine.submit(requests[2]):
                    pass
            rest = [token async for token in first_tokens]
            answer = [token async for token in second]
    alone = start_engine(bundle)
    assert rest == (await complete(alone, requests[0]))[1:]
    assert answer == await complete(alone, requests[1])


async def test_an_answer_is_at_most_as_long_as_asked(bundle: Bundle, start_engine: StartEngine) -> None:
    engine = start_engine(bundle)
    request = unit_requests(bundle, 1)[0]
    whole = await complete(engine, request)
    for longest in (1, 2, 7, len(whole) - 1, len(whole), len(whole) + 1):
        async with engine.submit(msgspec.structs.replace(request, max_tokens=longest)) as stream:
            tokens = [token async for token in stream]
        assert tokens == whole[:longest]
        assert stream.finish_reason == ("length" if longest < len(whole) else "stop")


async def test_an_answer_ends_with_the_bytes_it_goes_on_until(bundle: Bundle, start_engine: StartEngine) -> None:
    """However tokens cut them; chosen or forced; and with the longest answer, whichever comes first."""
    engine = start_engine(bundle)
    request = unit_requests(bundle, 1)[0]
    whole = await complete(engine, request)
    text = b"".join(token.data for token in whole)
    for until in (text[:1], text[5:9], text[20:21], text[30:42], text[-3:]):
        shortest = next(n for n in range(len(whole) + 1) if until in b"".join(token.data for token in whole[:n]))
        async with engine.submit(msgspec.structs.replace(request, until=until)) as stream:
            assert [token async for token in stream] == whole[:shortest]
        assert stream.finish_reason == "stop"
    assert await complete(engine, msgspec.structs.replace(request, until=b"\0 never")) == whole
    assert len(await complete(engine, msgspec.structs.replace(request, until=text[-3:], max_tokens=4))) == 4


async def test_an_answer_may_be_read_whole(bundle: Bundle, start_engine: StartEngine) -> None:
    """The same tokens as one by one, also when some of them were read before; and errors where there are no more."""
    engine = start_engine(bundle)
    requests = unit_requests(bundle, 5)
    streamed = [await complete(engine, request) for request in requests]

    async def whole(place: int) -> list[Token]:
        async with engine.submit(requests[place]) as stream:
            tokens = aiter(stream)
            read = [await anext(tokens) for _ in range(place)]
            rest = await stream.whole()
        assert stream.finish_reason is not None
        assert stream.written == len(streamed[place])
        return [*read, *rest]

    assert await asyncio.gather(*map(whole, range(len(requests)))) == streamed
    late = msgspec.structs.replace(requests[0], deadline=time.monotonic())
    async with engine.submit(late) as stream:
        with pytest.raises(DeadlineExceeded):
            await stream.whole()


async def test_who_leaves_an_answer_unread_knows_how_much_was_written(
    bundle: Bundle, start_engine: StartEngine
) -> None:
    engine = start_engine(bundle)
    async with engine.submit(GenerationRequest(random_ids(1, 20), constrained=False)) as stream:
        reading = asyncio.create_task(stream.whole())
        await asyncio.to_thread(wait_until, lambda: stream.written > 0)
        reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert await complete(engine, unit_requests(bundle, 1)[0]), "others are answered as ever"


async def test_free_text_goes_on_until_the_context_is_full(bundle: Bundle, start_engine: StartEngine) -> None:
    """Or until the student ends it, which a random one hardly does within a few tokens."""
    context = bundle.manifest.context_length
    async with start_engine(bundle).submit(GenerationRequest(random_ids(1, context - 9), constrained=False)) as stream:
        tokens = [token async for token in stream]
    assert (len(tokens), stream.finish_reason) == (9, "length")
    assert not any(token.forced for token in tokens)


async def test_chance_comes_from_the_seed_alone(bundle: Bundle, start_engine: StartEngine) -> None:
    engine = start_engine(bundle)
    request = msgspec.structs.replace(unit_requests(bundle, 1)[0], max_tokens=30)
    drawn = [msgspec.structs.replace(request, temperature=1.5, seed=seed) for seed in (-1, 0, 1, 0)]
    minus, zero, one, again = await asyncio.gather(*(complete(engine, each) for each in drawn))
    assert zero == again
    assert len({tuple(token.id for token in answer) for answer in (minus, zero, one)}) == 3
    cold = msgspec.structs.replace(request, temperature=1e-6, seed=5)
    assert await complete(engine, cold) == await complete(engine, request), "no heat is no chance"


async def test_interactive_requests_go_before_batch_ones(bundle: Bundle, start_engine: StartEngine) -> None:
    running, *others = [msgspec.structs.replace(request, max_tokens=20) for request in unit_requests(bundle, 5)]
    batch = [msgspec.structs.replace(request, priority="batch") for request in others[:2]]
    engine = start_engine(bundle, slots=1)
    admitted = {}

    async def ask(name: str, request: GenerationRequest) -> None:
        async with engine.submit(request) as stream:
            async for _ in stream:
                pass
        admitted[name] = stream.timeline.admitted

    async with engine.submit(running) as stream, asyncio.TaskGroup() as tasks:
        await anext(aiter(stream))
        for name, request in {"batch 1": batch[0], "batch 2": batch[1], "now 1": others[2], "now 2": others[3]}.items():
            tasks.create_task(ask(name, request))
    assert sorted(admitted, key=lambda name: admitted[name]) == ["now 1", "now 2", "batch 1", "batch 2"]


async def test_a_deadline_ends_a_request_wherever_it_is(bundle: Bundle, start_engine: StartEngine) -> None:
    endless = GenerationRequest(random_ids(1, 20), constrained=False)
    engine = start_engine(bundle, slots=1)
    whole = await complete(engine, endless)
    async with engine.submit(endless) as running:
        tokens = aiter(running)
        seen = [await anext(tokens)]
        late = msgspec.structs.replace(endless, deadline=time.monotonic())
        async with engine.submit(late) as waiting:
            with pytest.raises(DeadlineExceeded):
                await anext(aiter(waiting))
        assert waiting.timeline.admitted is None
        assert waiting.timeline.queue_s is not None
        seen += [token async for token in tokens]
    assert seen == whole, "another's deadline is not this request's"
    half = running.timeline.decode_s / 2
    with pytest.raises(DeadlineExceeded):
        async with engine.submit(msgspec.structs.replace(endless, deadline=time.monotonic() + half)) as answered:
            async for _ in answered:
                pass
    assert engine.stats().finished["deadline"] == 2
    assert engine.stats().running == 0


async def test_a_timeline_is_in_order_and_adds_up(bundle: Bundle, start_engine: StartEngine) -> None:
    engine = start_engine(bundle, slots=1)

    async def ask(request: GenerationRequest) -> None:
        begun = time.monotonic()
        async with engine.submit(request) as stream:
            async for _ in stream:
                pass
        times = stream.timeline
        assert begun <= times.submitted <= times.admitted <= times.first_token <= times.finished <= time.monotonic()
        assert times.queue_s + times.prefill_s + times.decode_s == pytest.approx(times.finished - times.submitted)

    await asyncio.gather(*(ask(request) for request in unit_requests(bundle, 3)))


async def test_counters_count_what_was_done(bundle: Bundle, start_engine: StartEngine) -> None:
    engine = start_engine(bundle, slots=2)
    requests = unit_requests(bundle, 4)
    answers = await asyncio.gather(*(complete(engine, request) for request in requests))
    await complete(engine, msgspec.structs.replace(requests[0], max_tokens=3))
    with pytest.raises(EngineError):
        await complete(engine, GenerationRequest([-1], constrained=False))
    async with engine.submit(requests[0]) as left:
        await anext(aiter(left))
    await complete(engine, msgspec.structs.replace(requests[1], max_tokens=1))  # a step later
    stats = engine.stats()
    assert stats.finished == {"stop": 4, "length": 2, "cancelled": 1, "deadline": 0, "error": 1}
    tokens = [token for answer in answers for token in answer]
    assert stats.forced_tokens >= sum(token.forced for token in tokens)
    assert stats.generated_tokens >= len(tokens) + 3 + 1
    assert (stats.slots, stats.running, stats.waiting, stats.kv_tokens_used) == (2, 0, 0, 0)
    bounds, counts = zip(*stats.step_times.buckets, strict=True)
    assert list(bounds) == sorted(bounds)
    assert list(counts) == sorted(counts)
    assert bounds[-1] == float("inf")
    assert counts[-1] > max(len(answer) for answer in answers) / 2
    assert stats.step_times.total_s > 0
