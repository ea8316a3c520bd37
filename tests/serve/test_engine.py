"""An answer is a request's own: the same bits whatever else runs, however its prompt and the KV rows are cut."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundle.manifest import Bundle, open_bundle
from serve.engine.base import GenerationRequest, Token
from serve.engine.batching import BatchingEngine
from tests.serve.conftest import complete, random_ids, unit_requests

StartEngine = Callable[..., BatchingEngine]


@pytest.fixture(scope="module", params=["tiny_bundle", "tiny_int8_bundle"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Answers through blocks of 4 bits after prompts through another graph; and both through one graph in 8 bits."""
    return open_bundle(request.getfixturevalue(request.param))


async def test_batched_answers_equal_the_answers_alone(bundle: Bundle, start_engine: StartEngine) -> None:
    requests = unit_requests(bundle, 12)
    engine = start_engine(bundle)
    alone = [await complete(engine, request) for request in requests]
    together = await asyncio.gather(*(complete(engine, request) for request in requests))
    assert together == alone
    assert len({len(answer) for answer in alone}) > 3, "rows must finish at different times to prove anything"


async def test_answers_do_not_depend_on_when_others_arrive(bundle: Bundle, start_engine: StartEngine) -> None:
    requests = unit_requests(bundle, 8)
    engine = start_engine(bundle, slots=3)
    alone = [await complete(engine, request) for request in requests]

    async def after_tokens(count: int, request: GenerationRequest) -> list:
        """Arrive while another answer, which nobody waits for to the end, is `count` tokens long."""
        async with engine.submit(requests[0]) as other:
            seen = 0
            async for _ in other:
                seen += 1
                if seen == count:
                    break
            return await complete(engine, request)

    staggered = await asyncio.gather(*(after_tokens(n, request) for n, request in enumerate(requests, start=1)))
    assert staggered == alone


async def test_a_copied_prefix_equals_a_computed_one(bundle: Bundle, start_engine: StartEngine) -> None:
    prefix = random_ids(0, 300)  # longer than a chunk
    _, *others = unit_requests(bundle, 5)
    ids = [prefix + tuple(request.prompt_ids) for request in others] + [prefix, prefix[:-1], (*prefix, 7, 8)]
    requests = [msgspec.structs.replace(others[0], prompt_ids=each, max_tokens=24) for each in ids]
    computing, copying = start_engine(bundle), start_engine(bundle, prefix=prefix)
    computed = [await complete(computing, request) for request in requests]
    assert await asyncio.gather(*(complete(copying, request) for request in requests)) == computed
    assert computing.stats().cached_tokens == 0
    assert copying.stats().cached_tokens == 300 * sum(len(each) > 300 or each == prefix for each in ids)


async def test_a_prompt_with_another_prefix_does_not_disturb_the_shared_one(
    bundle: Bundle, start_engine: StartEngine
) -> None:
    prefix = random_ids(0, 40)
    requests = unit_requests(bundle, 2)
    sharing = msgspec.structs.replace(requests[0], prompt_ids=prefix + tuple(requests[0].prompt_ids))
    engine = start_engine(bundle, prefix=prefix)
    expected = await complete(engine, sharing)
    assert await complete(engine, requests[1]) == await complete(start_engine(bundle), requests[1])
    assert await complete(engine, sharing) == expected


LENGTHS = (1, 2, 30, 31, 100, 255, 256, 257, 258, 513, 700)


def mixed_request(bundle: Bundle, length: int) -> GenerationRequest:
    """One of every kind, by its length: free and constrained, greedy and drawn, of either priority."""
    place = LENGTHS.index(length)
    return GenerationRequest(
        random_ids(length, length),
        bundle.catalogue.ids,
        ("def f(a):", "    return a"),
        constrained=place % 2 == 0,
        priority="batch" if place % 3 == 0 else "interactive",
        max_tokens=4 + place,
        temperature=0.8 * (place % 4 == 0),
        seed=place,
    )


@pytest.fixture(scope="module")
def mixed_answers(bundle: Bundle) -> dict[int, list[Token]]:
    """The answer to each mixed request when it alone runs."""

    async def answers() -> dict[int, list[Token]]:
        return {length: await complete(engine, mixed_request(bundle, length)) for length in LENGTHS}

    engine = BatchingEngine(bundle, (), 1, 1, threads=1, device="cpu")
    try:
        return asyncio.run(answers())
    finally:
        engine.close()


@given(
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=2, max_size=10),
    slots=st.integers(2, 6),
    kv_rows=st.integers(1, 6),
    arrivals=st.lists(st.integers(0, 30), min_size=10, max_size=10),
    threads=st.sampled_from([1, 2]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_composition_of_the_batch_changes_an_answer(
    bundle: Bundle,
    mixed_answers: dict[int, list[Token]],
    lengths: list[int],
    slots: int,
    kv_rows: int,
    arrivals: list[int],
    threads: int,
) -> None:
    """`arrivals`: how many turns of the event loop each request comes after the start. With two threads prompts are
    computed beside answers."""

    async def after(turns: int, length: int) -> list[Token]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await complete(engine, mixed_request(bundle, length))

    async def together() -> list[list[Token]]:
        return await asyncio.gather(*(after(turns, length) for turns, length in zip(arrivals, lengths, strict=False)))

    engine = BatchingEngine(bundle, (), slots, 64, threads, device="cpu", kv_tokens=1024 * kv_rows)
    try:
        assert asyncio.run(together()) == [mixed_answers[length] for length in lengths]
        assert engine.stats().kv_tokens_used == 0
    finally:
        engine.close()


async def test_short_requests_may_follow_a_long_one_that_took_all_kv_memory(
    bundle: Bundle, start_engine: StartEngine
) -> None:
    shorts = [GenerationRequest(random_ids(n, n), constrained=False, max_tokens=4) for n in range(1, 9)]
    engine = start_engine(bundle, kv_tokens=1024)
    await complete(engine, GenerationRequest(random_ids(0, 1000), constrained=False, max_tokens=4))
    answers = await asyncio.gather(*(complete(engine, request) for request in shorts))
    assert answers == [await complete(engine, request) for request in shorts]


async def test_what_kv_memory_allows_bounds_what_runs(bundle: Bundle, start_engine: StartEngine) -> None:
    """Rows of up to 256 tokens: two of them fit into 512."""
    requests = [msgspec.structs.replace(request, max_tokens=40) for request in unit_requests(bundle, 8)]
    wide, tight = start_engine(bundle, slots=8), start_engine(bundle, slots=8, kv_tokens=512)
    running = []

    async def watch(request: GenerationRequest) -> list[Token]:
        tokens = []
        async with tight.submit(request) as stream:
            async for token in stream:
                tokens.append(token)
                running.append(tight.stats().running)
        return tokens

    answers = await asyncio.gather(*(watch(request) for request in requests))
    assert answers == [await complete(wide, request) for request in requests]
    assert max(running) == 2
