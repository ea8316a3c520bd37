"""The engine: a request's answer is its own, whatever else runs, and whatever happens to the others."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from bundle.manifest import Bundle, open_bundle
from serve.engine.base import EngineBusy, EngineClosed, EngineError, GenerationRequest
from serve.engine.batching import BatchingEngine
from serve.engine.grammar import AnswerGrammar
from tests.serve.conftest import complete, unit_requests

REFERENCE_TOKENS = 40

StartEngine = Callable[..., BatchingEngine]


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


async def test_a_warm_prefix_equals_a_cold_one(bundle: Bundle, start_engine: StartEngine) -> None:
    request = unit_requests(bundle, 5)[-1]
    engine = start_engine(bundle)
    cold = await complete(engine, request)
    assert engine.stats().cached_tokens == 0
    warm = await complete(engine, request)
    assert engine.stats().cached_tokens > 0
    assert warm == cold
    without = start_engine(bundle, prefix=False)
    assert [token.id for token in await complete(without, request)] == [token.id for token in cold]


async def test_a_prompt_with_another_prefix_does_not_disturb_the_shared_one(
    bundle: Bundle, start_engine: StartEngine
) -> None:
    request = unit_requests(bundle, 5)[-1]
    other = GenerationRequest(tuple(request.prompt_ids[4:]), request.rules, request.lines)
    expected = await complete(start_engine(bundle), request)
    engine = start_engine(bundle)
    await complete(engine, request)
    assert await complete(engine, other) == await complete(start_engine(bundle), other)
    assert await complete(engine, request) == expected


async def test_tokens_and_log_probabilities_equal_a_plain_loop_over_transformers(
    tiny_checkpoint: Path, tiny_float_bundle: Path, start_engine: StartEngine
) -> None:
    """The reference recomputes the whole sequence for every token: no cache, no rows, no batch."""
    bundle = open_bundle(tiny_float_bundle)
    model = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    manifest = bundle.manifest
    grammar = AnswerGrammar(bundle.tokenizer_file, manifest.model.vocab_size, manifest.eos_token_ids)
    requests = unit_requests(bundle, 3)
    engine = start_engine(bundle)
    answers = await asyncio.gather(*(complete(engine, request) for request in requests))
    torch.set_num_threads(1)
    for request, answer in zip(requests, answers, strict=True):
        matcher = grammar.matcher(request.rules, request.lines)
        expected = [(token, 0.0) for token in matcher.take_forced()]
        mask = np.zeros((1, (manifest.model.vocab_size + 31) // 32), np.int32)
        while not matcher.finished and len(expected) < REFERENCE_TOKENS:
            ids = [*request.prompt_ids, *(token for token, _ in expected)]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            matcher.fill_mask(mask, 0)
            allowed = np.unpackbits(mask[0].view(np.uint8), bitorder="little", count=len(logits)).astype(bool)
            token = int(logits.masked_fill(~torch.from_numpy(allowed), -torch.inf).argmax())
            expected.append((token, float(logits.log_softmax(-1)[token])))
            matcher.consume(token)
            expected += [(forced, 0.0) for forced in matcher.take_forced()]
        compared = answer[: len(expected)]
        assert [token.id for token in compared] == [token for token, _ in expected]
        assert np.allclose([token.logprob for token in compared], [value for _, value in expected], atol=1e-3)


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


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda good: GenerationRequest([5] * 5000, good.rules, good.lines), id="longer than the context"),
        pytest.param(lambda good: GenerationRequest([10**9], good.rules, good.lines), id="no such token"),
        pytest.param(lambda good: GenerationRequest([-7], good.rules, good.lines), id="negative token"),
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
