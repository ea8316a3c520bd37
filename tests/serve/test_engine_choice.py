"""Which engine answers: what a bundle must hold for it, and what is said where it can not run."""

import importlib.util
import subprocess
from pathlib import Path

import msgspec
import pytest

from bundle.manifest import Bundle, BundleError, Export
from serve.analysis.loading import load_prompt, make_cache, start_engine
from serve.engine.base import EngineUnavailable
from serve.engine.batching import BatchingEngine
from serve.engine.vllm import loadable_export
from serve.settings import Settings, SettingsError, load_settings
from tests.serve.conftest import serve_command

NF4 = Export(path="nf4", quantization="nf4")
W4A16 = Export(path="vllm", quantization="w4a16")


def holding(bundle: Bundle, **exports: Export) -> Bundle:
    return msgspec.structs.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, exports=exports))


def test_vllm_loads_nf4_where_it_can_and_w4a16_elsewhere(bundle: Bundle) -> None:
    both = holding(bundle, nf4=NF4, vllm=W4A16)
    assert loadable_export(both, frozenset({"bitsandbytes", "compressed-tensors"})) == NF4
    assert loadable_export(both, frozenset({"compressed-tensors"})) == W4A16
    assert loadable_export(holding(bundle, vllm=W4A16), frozenset({"bitsandbytes"})) == W4A16


@pytest.mark.parametrize("exports", [{"nf4": NF4}, {"onnx": Export(path="onnx", quantization="int4")}])
def test_a_bundle_without_a_form_for_vllm_says_which_key_makes_one(bundle: Bundle, exports: dict[str, Export]) -> None:
    with pytest.raises(BundleError, match=r"`export\.vllm: \{\}`"):
        loadable_export(holding(bundle, **exports), frozenset({"compressed-tensors"}))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_command_says_what_to_install(tiny_bundle: Path, bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailable, match=r"deepcode-analyst\[vllm\]"):
        start_engine(bundle, load_prompt(bundle), Settings(bundle=tiny_bundle, engine="vllm"), 1)
    done = subprocess.run(serve_command(str(tiny_bundle), "--engine", "vllm"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "deepcode-analyst[vllm]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"upstream": "http://vllm:8000/v1"}, "--upstream names vLLM servers: add --engine vllm"),
        ({"engine": "vllm", "upstream": "vllm:8000"}, "http://vllm:8000/v1"),
        ({"engine": "llama"}, "--engine='llama'"),
        ({"tensor_parallel": "0"}, "--tensor-parallel='0'"),
        ({"kv_tokens": "-1"}, "--kv-tokens='-1'"),
    ],
)
def test_settings_that_do_not_fit_are_named(flags: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"bundle": "here"} | flags, {})
    assert why in str(refused.value)


def test_a_kv_cache_too_small_for_any_row_is_refused_at_the_start(tiny_bundle: Path) -> None:
    done = subprocess.run(serve_command(str(tiny_bundle), "--kv-tokens", "100"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "set --kv-tokens to 256 or more" in done.stderr
    assert "Traceback" not in done.stderr


def test_answers_are_kept_apart_for_each_engine(bundle: Bundle) -> None:
    engine = BatchingEngine(bundle, (), 1, 1, threads=1, device="cpu")
    try:
        keys = []
        for name in ("onnx", "vllm"):
            engine.name = name
            cache = make_cache(bundle, engine, 1000)
            assert cache is not None
            keys.append(cache.key("", "unit"))
        assert keys[0] != keys[1]
        assert make_cache(bundle, engine, 0) is None
    finally:
        engine.close()
