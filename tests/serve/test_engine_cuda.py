"""The engine on a GPU. What needs none is in the other tests: there a CPU computes the graph that a GPU would."""

import asyncio
import shutil
from pathlib import Path

import msgspec
import onnxruntime
import pytest

from bundle.manifest import Bundle, BundleError, Export, describe_files, open_bundle, write_manifest
from compress.export.onnx_generate import OnnxLoop
from serve.engine.base import EngineUnavailable, GenerationRequest
from serve.engine.batching import BatchingEngine
from serve.engine.devices import require_cuda
from tests.serve.conftest import complete, random_ids


def missing() -> str | None:
    """What this machine lacks."""
    try:
        require_cuda()
    except EngineUnavailable as unavailable:
        return str(unavailable)
    return None


WITHOUT = missing()


@pytest.fixture(scope="module")
def both(tiny_bundle: Path, tiny_cuda_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a graph for CPUs and one for GPUs."""
    root = tmp_path_factory.mktemp("both") / "bundle"
    shutil.copytree(tiny_bundle, root)
    shutil.copytree(tiny_cuda_bundle / "onnx", root / "cuda")
    manifest = open_bundle(tiny_bundle).manifest
    exports = manifest.exports | {"cuda": Export(path="cuda", quantization="int4")}
    write_manifest(root, msgspec.structs.replace(manifest, exports=exports, files=describe_files(root)))
    return open_bundle(root)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is CUDA here")
def test_cuda_where_there_is_none_is_an_error_that_says_what_to_do(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailable, match=r"pip install 'deepcode-analyst\[gpu\]'.*or choose the device cpu"):
        BatchingEngine(bundle, (), 1, 1, device="cuda")
    BatchingEngine(bundle, (), 1, 1, threads=1, device="auto").close()


@pytest.mark.skipif(WITHOUT is None, reason="there is a GPU here")
def test_without_a_gpu_auto_takes_the_cpu_and_cuda_says_what_is_missing(both: Bundle) -> None:
    engine = BatchingEngine(both, (), 1, 1, threads=1, device="auto")
    engine.close()
    assert (engine.name, engine.quantization) == ("onnx", "int4")
    with pytest.raises(EngineUnavailable, match="or choose the device cpu"):
        BatchingEngine(both, (), 1, 1, device="cuda")


@pytest.mark.skipif(WITHOUT is not None, reason=f"no GPU: {WITHOUT}")
async def test_on_a_gpu_many_answers_at_once_are_those_of_the_plain_loop(both: Bundle) -> None:
    """All but one of them: 16 bits leave near ties, which another kernel may decide otherwise."""
    loop = OnnxLoop(both.export_folder("cuda"), both.manifest.model.head_dim)
    prompts = [random_ids(length, length) for length in (1, 2, 60, 256, 257, 258, 700, 90, 120, 30)]
    engine = BatchingEngine(both, (), 4, 64, device="auto")
    try:
        assert engine.name == "onnx-cuda"
        asked = [GenerationRequest(ids, constrained=False, max_tokens=24) for ids in prompts]
        answers = await asyncio.gather(*(complete(engine, each) for each in asked))
    finally:
        engine.close()
    (eos,) = both.manifest.eos_token_ids
    same = [
        [token.id for token in answer] == [token for token in loop.answer(list(ids), eos, 24).ids if token != eos]
        for ids, answer in zip(prompts, answers, strict=True)
    ]
    assert sum(same) >= 9


@pytest.mark.skipif(WITHOUT is not None, reason=f"no GPU: {WITHOUT}")
def test_a_bundle_without_a_graph_for_gpus_is_served_by_the_cpu_unless_cuda_is_asked_for(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    engine = BatchingEngine(bundle, (), 1, 1, threads=1, device="auto")
    engine.close()
    assert engine.name == "onnx"
    with pytest.raises(BundleError, match="no 'cuda' export"):
        BatchingEngine(bundle, (), 1, 1, device="cuda")
