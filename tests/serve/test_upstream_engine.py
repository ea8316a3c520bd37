"""The engine over an upstream: the same answers as the student beside us, and what happens when a fleet misbehaves."""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from bundle.manifest import Bundle, BundleError, Export, describe_files, open_bundle, write_manifest
from serve.engine.base import (
    DeadlineExceeded,
    EngineAway,
    EngineBusy,
    EngineClosed,
    EngineError,
    GenerationRequest,
    Token,
)
from serve.engine.batching import BatchingEngine
from serve.engine.sampled import SampledEngine
from serve.engine.upstream import ATTEMPTS, UpstreamSampler
from tests.serve.conftest import Server, complete, random_ids, running_server, unit_requests, wait_until
from tests.serve.problems import problem
from tests.support.vllm_stand_in import StandIn, unquoted

CODE = (
    "def first_over(prices, limit):\n    for price in prices:\n        if price >= limit:\n            return price\n"
)


@pytest.fixture(scope="module")
def student(bundle: Bundle) -> Iterator[BatchingEngine]:
    """Who answers behind the upstream."""
    engine = BatchingEngine(bundle, (), 4, 64, threads=1, device="cpu")
    yield engine
    engine.close()


@pytest.fixture
def upstream(student: BatchingEngine, bundle: Bundle) -> Iterator[StandIn]:
    stand_in = StandIn(student, bundle.manifest.name, bundle.manifest.context_length)
    with stand_in.running():
        yield stand_in


@pytest.fixture
def nf4_bundle(bundle: Bundle) -> Bundle:
    """A bundle that says it holds what the upstream serves; nobody here reads that."""
    exports = bundle.manifest.exports | {"nf4": Export(path="nf4", quantization="nf4")}
    return msgspec.structs.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, exports=exports))


@pytest.fixture
def start(nf4_bundle: Bundle) -> Iterator[Callable[..., SampledEngine]]:
    """Start engines that are closed after the test."""
    engines: list[SampledEngine] = []

    def start_one(
        url: str, slots: int = 4, waiting: int = 64, model: str | None = None, key: Path | None = None
    ) -> SampledEngine:
        engines.append(SampledEngine(nf4_bundle, UpstreamSampler(nf4_bundle, url, model, key), slots, waiting))
        return engines[-1]

    yield start_one
    for engine in engines:
        engine.close()


Start = Callable[..., SampledEngine]


async def test_answers_are_those_of_the_student_behind_it(
    bundle: Bundle, student: BatchingEngine, upstream: StandIn, start: Start
) -> None:
    """Tokens, log-probabilities, and which were forced: the upstream does not say that, and 0 is what they count."""
    engine = start(upstream.url)
    requests = [unquoted(request) for request in unit_requests(bundle, 4)]
    requests.append(GenerationRequest(random_ids(1, 40), constrained=False, max_tokens=30))
    requests.append(msgspec.structs.replace(requests[0], max_tokens=5))
    requests.append(msgspec.structs.replace(requests[1], until=b'],"summary":"'))
    requests.append(msgspec.structs.replace(requests[4], temperature=1.0, seed=3))
    answers = await asyncio.gather(*(complete(engine, request) for request in requests))
    assert answers == [await complete(student, request) for request in requests]
    await asyncio.to_thread(wait_until, lambda: engine.stats().running == 0)
    stats = engine.stats()
    assert stats.generated_tokens == sum(map(len, answers))
    assert stats.cached_tokens == 7 * len(requests)
    assert stats.prompt_tokens == sum(len(request.prompt_ids) for request in requests)
    assert (stats.waiting, stats.kv_tokens_used) == (0, 0)


async def test_a_stream_says_how_it_ended_and_when(bundle: Bundle, upstream: StandIn, start: Start) -> None:
    request = unquoted(unit_requests(bundle, 1)[0])
    async with start(upstream.url).submit(request) as stream:
        assert [token async for token in stream]
    assert (stream.finish_reason, stream.cached_tokens) == ("stop", 7)
    timeline = stream.timeline
    assert timeline.admitted is not None and timeline.first_token is not None and timeline.finished is not None
    assert timeline.submitted <= timeline.admitted <= timeline.first_token <= timeline.finished


async def test_an_answer_outside_its_schema_is_an_error_and_harms_nobody(
    bundle: Bundle, upstream: StandIn, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a server that does not know structured outputs, and ignores them."""
    engine = start(upstream.url)
    request = unquoted(unit_requests(bundle, 1)[0])
    with monkeypatch.context() as patch:
        patch.setattr(
            "tests.support.vllm_stand_in.generation_request",
            lambda body: GenerationRequest(body["prompt"], constrained=False, max_tokens=50),
        )
        with pytest.raises(EngineError, match="does not hold it to the answer's schema"):
            await complete(engine, request)
    assert await complete(engine, request)


async def test_leaving_a_stream_hangs_up(bundle: Bundle, upstream: StandIn, start: Start) -> None:
    engine = start(upstream.url, slots=1)
    upstream.stalls_after = 3
    request = unquoted(unit_requests(bundle, 1)[0])
    async with engine.submit(request) as stream, engine.submit(request):
        await anext(aiter(stream))
    await asyncio.to_thread(wait_until, lambda: upstream.hung_up == 1)
    await asyncio.to_thread(wait_until, lambda: engine.stats().running == 0)
    assert engine.stats().finished["cancelled"] == 2
    assert len(upstream.asked) == 1, "who has waited has not asked"


async def test_a_deadline_ends_a_request_wherever_it_is(bundle: Bundle, upstream: StandIn, start: Start) -> None:
    engine = start(upstream.url, slots=1)
    upstream.stalls_after = 2
    request = msgspec.structs.replace(unquoted(unit_requests(bundle, 1)[0]), deadline=time.monotonic() + 0.5)
    failures = await asyncio.gather(complete(engine, request), complete(engine, request), return_exceptions=True)
    assert [type(failure) for failure in failures] == [DeadlineExceeded] * 2
    assert engine.stats().finished["deadline"] == 2


async def test_a_full_queue_refuses(bundle: Bundle, upstream: StandIn, start: Start) -> None:
    engine = start(upstream.url, slots=1, waiting=1)
    upstream.stalls_after = 1
    request = unquoted(unit_requests(bundle, 1)[0])
    async with engine.submit(request) as running:
        await anext(aiter(running))
        async with engine.submit(request):
            with pytest.raises(EngineBusy):
                async with engine.submit(request):
                    pass


async def test_closing_ends_every_stream(bundle: Bundle, upstream: StandIn, start: Start) -> None:
    engine = start(upstream.url, slots=1)
    upstream.stalls_after = 1
    request = unquoted(unit_requests(bundle, 1)[0])
    async with engine.submit(request) as running, engine.submit(request) as waiting:
        await anext(aiter(running))
        await asyncio.to_thread(engine.close)
        for stream in (running, waiting):
            with pytest.raises(EngineClosed):
                await anext(aiter(stream))
    with pytest.raises(EngineClosed):
        async with engine.submit(request):
            pass
    engine.close()


async def test_a_request_that_nobody_takes_is_asked_again(
    bundle: Bundle, student: BatchingEngine, upstream: StandIn, start: Start
) -> None:
    engine = start(upstream.url)
    request = unquoted(unit_requests(bundle, 1)[0])
    upstream.refusals = [503, 429]
    assert await complete(engine, request) == await complete(student, request)
    assert len(upstream.asked) == 3
    upstream.refusals = [503] * ATTEMPTS
    with pytest.raises(EngineAway, match="not now"):
        await complete(engine, request)
    upstream.refusals = [400]
    with pytest.raises(EngineError, match="refuses the request") as refused:
        await complete(engine, request)
    assert not isinstance(refused.value, EngineAway), "to ask that again helps nobody"
    assert upstream.refusals == []


async def test_an_answer_that_breaks_off_is_no_answer(bundle: Bundle, upstream: StandIn, start: Start) -> None:
    upstream.breaks_after = 2
    tokens: list[Token] = []
    with pytest.raises(EngineAway):
        async with start(upstream.url).submit(unquoted(unit_requests(bundle, 1)[0])) as stream:
            async for token in stream:
                tokens.append(token)
    assert len(tokens) == 2


async def test_what_is_closed_in_the_moment_the_upstream_goes_away_ends(nf4_bundle: Bundle) -> None:
    """Nobody answers at port 1: a probe is asked for, and cancelled before it begins."""
    sampler = UpstreamSampler(nf4_bundle, "http://127.0.0.1:1/v1", None, None)
    await sampler.start()
    async with asyncio.timeout(30):
        with pytest.raises(EngineAway):
            await anext(sampler.sample(GenerationRequest([1], constrained=False), [1], 4))
        await sampler.close()


async def test_an_upstream_may_come_and_go(
    bundle: Bundle, student: BatchingEngine, upstream: StandIn, start: Start
) -> None:
    stand_in = StandIn(student, bundle.manifest.name, bundle.manifest.context_length)
    engine = start(stand_in.url)
    request = unquoted(unit_requests(bundle, 1)[0])
    assert engine.away is not None
    with pytest.raises(EngineAway):
        await complete(engine, request)
    with stand_in.running():
        await asyncio.to_thread(wait_until, lambda: engine.away is None)
        assert await complete(engine, request)
    await asyncio.to_thread(wait_until, lambda: engine.away is not None)
    assert engine.failure is None, "it may come again"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "another"}, "serves 'another', not 'tiny'"),
        ({"context": 512}, "--max-model-len 1024"),
        ({"key": "secret"}, "401"),
    ],
)
def test_an_upstream_that_serves_something_else_is_not_asked(
    upstream: StandIn, start: Start, change: dict[str, object], why: str
) -> None:
    for name, value in change.items():
        setattr(upstream, name, value)
    assert why in (start(upstream.url).away or "")


async def test_the_key_and_the_name_of_the_model_are_the_operators(
    bundle: Bundle, upstream: StandIn, start: Start, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("first\n")
    upstream.key, upstream.model = "first", "ours"
    engine = start(upstream.url, model="ours", key=key)
    request = msgspec.structs.replace(unquoted(unit_requests(bundle, 1)[0]), salt="tenant")
    assert await complete(engine, request)
    assert (upstream.asked[0]["model"], upstream.asked[0]["cache_salt"]) == ("ours", "tenant")
    upstream.key = "second"
    await asyncio.to_thread(wait_until, lambda: engine.away is not None)
    key.write_text("second\n")
    await asyncio.to_thread(wait_until, lambda: engine.away is None)
    assert await complete(engine, request)


def test_a_bundle_without_a_form_for_vllm_says_which_key_makes_one(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"export\.vllm"):
        UpstreamSampler(bundle, "http://127.0.0.1:1/v1", None, None)


@pytest.fixture
def nf4_folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle on disk with something where the upstream's weights would be."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    (folder / "nf4").mkdir()
    (folder / "nf4" / "model.safetensors").write_bytes(b"elsewhere")
    manifest = open_bundle(tiny_bundle).manifest
    exports = manifest.exports | {"nf4": Export(path="nf4", quantization="nf4")}
    write_manifest(folder, msgspec.structs.replace(manifest, exports=exports, files=describe_files(folder)))
    return folder


def test_a_server_is_as_ready_as_its_upstream(student: BatchingEngine, bundle: Bundle, nf4_folder: Path) -> None:
    stand_in = StandIn(student, bundle.manifest.name, bundle.manifest.context_length)

    def status(server: Server) -> int:
        return httpx.get(f"{server.url}/health/ready").status_code

    with (
        stand_in.running() as _,
        running_server(nf4_folder, "--engine", "vllm", "--upstream", stand_in.url, "--cache-bytes", "0") as server,
    ):
        body = {"code": CODE, "path": "prices.py", "min_confidence": 0}
        report = httpx.post(f"{server.url}/v1/analyze", json=body, timeout=60).json()
        assert (report["model"]["engine"], report["model"]["quantization"]) == ("vllm-upstream", "nf4")
        assert report["skipped"] == []
        assert report["usage"]["cached_tokens"] == 7
        stand_in.key = "locked out"
        wait_until(lambda: status(server) == 503)
        problem(httpx.get(f"{server.url}/health/ready"), 503, "engine-away")
        assert b"set --upstream-key" in server.written(), "the operator is told more than a client"
        refused = httpx.post(f"{server.url}/v1/analyze", json=body)
        problem(refused, 503, "engine-away")
        assert int(refused.headers["retry-after"]) > 0
        assert httpx.get(f"{server.url}/health/live").status_code == 200, "starting it again helps nobody"
        assert "deepcode_engine_up{" in httpx.get(f"{server.url}/metrics").text
        stand_in.key = None
        wait_until(lambda: status(server) == 200)
        assert httpx.post(f"{server.url}/v1/analyze", json=body, timeout=60).json()["findings"] == report["findings"]
