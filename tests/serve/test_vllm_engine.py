"""The engine over vLLM, really run: beside the ONNX engine on the same weights, and on the forms a bundle has.

Skipped without vLLM; scripts/install_vllm_cpu.sh makes an environment that has it.
"""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from bundle.answer import parse_answer
from bundle.manifest import MANIFEST_FILE, Bundle, Export, Manifest, describe_files, open_bundle, write_manifest
from bundle.units import cut_units
from compress.data.examples import natural_example
from compress.data.tokens import TokenDataset
from compress.export.vllm import export_vllm
from compress.quantize import nf4_config
from compress.recipe import W4A16
from serve.engine.base import DeadlineExceeded, EngineCrashed, GenerationRequest, Token
from serve.engine.batching import BatchingEngine
from serve.engine.sampled import SampledEngine
from serve.engine.upstream import UpstreamSampler
from serve.engine.vllm import VllmSampler
from tests.serve.conftest import SOURCE, complete, open_prompt, random_ids, unit_requests, wait_until
from tests.support.server_process import free_port
from tests.support.tiny_bundle import make_tiny_bundle, make_tiny_checkpoint

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment that has it",
)

ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
SLOTS = 4
HEADS = 2
"""So that a head is 32 wide: vLLM's attention on CPUs knows no narrower ones."""


@pytest.fixture(scope="module", autouse=True)
def small_vllm() -> Iterator[None]:
    """A small KV cache, and threads that the tests beside this one can use."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "checkpoint"
    make_tiny_checkpoint(folder, heads=HEADS)
    return folder


@pytest.fixture(scope="module")
def float_bundle(checkpoint: Path) -> Bundle:
    """ONNX and vLLM's form of it are both the float32 weights."""
    folder = make_tiny_bundle(checkpoint, checkpoint.with_name("bundle"), "fp32")
    shutil.copytree(checkpoint, folder / "vllm")
    return with_export(folder, "vllm", "fp32")


def with_export(folder: Path, kind: str, quantization: str) -> Bundle:
    """A bundle that lists its new folder `kind`."""
    manifest = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes(), type=Manifest)
    exports = manifest.exports | {kind: Export(path=kind, quantization=quantization)}
    write_manifest(folder, msgspec.structs.replace(manifest, exports=exports, files=describe_files(folder)))
    return open_bundle(folder)


@pytest.fixture(scope="module")
def student(float_bundle: Bundle) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(float_bundle, (), SLOTS, 64, threads=1, device="cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(float_bundle: Bundle, small_vllm: None) -> Iterator[SampledEngine]:
    with vllm_engine(float_bundle, "float32") as started:
        yield started


@contextlib.contextmanager
def vllm_engine(bundle: Bundle, dtype: str = "auto") -> Iterator[SampledEngine]:
    started = SampledEngine(bundle, VllmSampler(bundle, SLOTS, dtype=dtype), SLOTS, 64)
    try:
        yield started
    finally:
        started.close()


def assert_same(answers: list[list[Token]], expected: list[list[Token]]) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert [(token.id, token.data, token.forced) for token in answer] == [
            (token.id, token.data, token.forced) for token in other
        ]
        assert np.allclose([token.logprob for token in answer], [token.logprob for token in other], atol=1e-3)


async def test_greedy_answers_are_the_onnx_engines(
    float_bundle: Bundle, engine: SampledEngine, student: BatchingEngine
) -> None:
    """With quotes held to their lines, forced tokens and log-probabilities; side by side, short and cut off."""
    requests = unit_requests(float_bundle, 6)
    requests.append(msgspec.structs.replace(requests[0], max_tokens=5))
    requests.append(msgspec.structs.replace(requests[1], until=b'],"summary":"'))
    requests.append(GenerationRequest(random_ids(1, 40), constrained=False, max_tokens=30))
    answers = await asyncio.gather(*(complete(engine, request) for request in requests))
    assert_same(answers, [await complete(student, request) for request in requests])


async def test_a_prefix_that_was_computed_is_not_computed_again_but_for_another_salt(
    float_bundle: Bundle, engine: SampledEngine
) -> None:
    request = GenerationRequest(random_ids(7, 400), constrained=False, max_tokens=2, salt="one")
    cached = []
    for salt in ("one", "one", "two"):
        async with engine.submit(msgspec.structs.replace(request, salt=salt)) as stream:
            assert len([token async for token in stream]) == 2
        cached.append(stream.cached_tokens)
    assert cached[0] == 0
    assert cached[1] > 0
    assert cached[2] == 0


async def test_chance_comes_from_the_seed_alone(float_bundle: Bundle, engine: SampledEngine) -> None:
    request = msgspec.structs.replace(unit_requests(float_bundle, 1)[0], max_tokens=30, temperature=1.5)
    drawn = [msgspec.structs.replace(request, seed=seed) for seed in (1, 2, 1)]
    one, two, again = await asyncio.gather(*(complete(engine, each) for each in drawn))
    assert [token.id for token in one] == [token.id for token in again]
    assert [token.id for token in one] != [token.id for token in two]


async def test_leaving_and_deadlines_end_requests(float_bundle: Bundle, engine: SampledEngine) -> None:
    request = GenerationRequest(random_ids(3, 40), constrained=False)
    before = engine.stats()
    async with engine.submit(request) as stream:
        await anext(aiter(stream))
        assert engine.stats().running == 1
        assert 0 < engine.stats().kv_tokens_used <= engine.stats().kv_tokens
    with pytest.raises(DeadlineExceeded):
        await complete(engine, msgspec.structs.replace(request, deadline=time.monotonic() + 0.05))
    await asyncio.to_thread(wait_until, lambda: engine.stats().running == 0)
    after = engine.stats()
    assert after.finished["cancelled"] == before.finished["cancelled"] + 1
    assert after.finished["deadline"] == before.finished["deadline"] + 1


async def test_a_vllm_that_dies_is_a_failure_and_nobody_hangs(float_bundle: Bundle) -> None:
    before = set(psutil.Process().children(recursive=True))
    engine = SampledEngine(float_bundle, VllmSampler(float_bundle, SLOTS, dtype="float32"), SLOTS, 64)
    try:
        assert engine.failure is None
        async with engine.submit(GenerationRequest(random_ids(3, 40), constrained=False)) as stream:
            tokens = aiter(stream)
            await anext(tokens)
            for process in set(psutil.Process().children(recursive=True)) - before:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            with pytest.raises(EngineCrashed):
                async for _ in tokens:
                    pass
        await asyncio.to_thread(wait_until, lambda: engine.failure is not None)
        with pytest.raises(EngineCrashed):
            await complete(engine, GenerationRequest(random_ids(3, 40), constrained=False))
    finally:
        await asyncio.to_thread(engine.close)


async def test_nf4_answers_are_answers_about_their_units(checkpoint: Path, float_bundle: Bundle) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    folder = shutil.copytree(float_bundle.root, checkpoint.with_name("nf4-bundle"))
    AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=nf4_config(), dtype=torch.bfloat16, device_map="cpu"
    ).save_pretrained(folder / "nf4")
    await assert_answers_fit(with_export(folder, "nf4", "nf4"), "nf4")


async def test_w4a16_answers_are_answers_about_their_units(checkpoint: Path, float_bundle: Bundle) -> None:
    folder = shutil.copytree(float_bundle.root, checkpoint.with_name("w4a16-bundle"))
    (eos,) = float_bundle.manifest.eos_token_ids
    examples = [natural_example("ours", "units.py", unit, []) for unit in cut_units(SOURCE.read_text())]
    dataset = TokenDataset(examples, open_prompt(float_bundle), eos, max_tokens=512)
    export_vllm(checkpoint, dataset, W4A16(group_size=32, calibration_examples=8), folder / "vllm")
    await assert_answers_fit(with_export(folder, "vllm", "w4a16"), "w4a16")


async def assert_answers_fit(bundle: Bundle, quantization: str) -> None:
    """Each parses, names what it may, and quotes the line it names."""
    requests = unit_requests(bundle, 4)
    with vllm_engine(bundle) as engine:
        assert engine.quantization == quantization
        answers = await asyncio.gather(*(complete(engine, request) for request in requests))
    findings = 0
    for request, answer in zip(requests, answers, strict=True):
        written = parse_answer(b"".join(token.data for token in answer).decode())
        for finding in written.findings:
            findings += 1
            assert finding.rule in bundle.catalogue.ids
            assert finding.at.strip() in request.lines[finding.line - 1] or not request.lines[finding.line - 1].strip()
    assert findings > 0, "a random student finds something"


@pytest.fixture(scope="module")
def upstream_url(float_bundle: Bundle, small_vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own server, started as docs/serve.md says."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", float_bundle.root / "vllm"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", float_bundle.manifest.name]
    command += ["--max-model-len", str(float_bundle.manifest.context_length), "--dtype", "float32", "--enforce-eager"]
    command += ["--enable-prompt-tokens-details", "--max-num-seqs", str(SLOTS)]
    command += ["--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}']
    log = (tmp_path_factory.mktemp("upstream") / "log").open("w+b")
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "1"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        log.seek(0)
        assert process.poll() is None, log.read().decode()[-5000:]
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health").status_code == 200
        return False

    try:
        wait_until(is_up)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait()
        log.close()


async def test_a_vllm_server_answers_as_an_upstream(
    float_bundle: Bundle, student: BatchingEngine, upstream_url: str
) -> None:
    """Free text is the ONNX engine's; answers fit their schema, whichever way vLLM cuts them into tokens."""
    engine = SampledEngine(float_bundle, UpstreamSampler(float_bundle, upstream_url, None, None), SLOTS, 64)
    try:
        assert engine.away is None
        free = GenerationRequest(random_ids(1, 400), constrained=False, max_tokens=30)
        assert_same([await complete(engine, free)], [await complete(student, free)])
        requests = unit_requests(float_bundle, 4)
        requests.append(msgspec.structs.replace(requests[1], until=b'],"summary":"'))
        answers = await asyncio.gather(*(complete(engine, request) for request in requests))
        texts = [b"".join(token.data for token in answer).decode() for answer in answers]
        for request, text in zip(requests[:-1], texts[:-1], strict=True):
            for finding in parse_answer(text).findings:
                assert finding.rule in request.rules
                assert 1 <= finding.line <= len(request.lines)
        assert texts[-1] == texts[1].partition('],"summary":"')[0] + '],"summary":"'
        for answer in answers:
            assert answer[0].forced and answer[0].logprob == 0.0
            assert all(token.logprob <= 0.0 for token in answer)
        async with engine.submit(free) as stream:
            assert [token async for token in stream]
        assert stream.cached_tokens > 0
    finally:
        await asyncio.to_thread(engine.close)
