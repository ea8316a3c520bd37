"""What an analyzer is made of: a verified bundle's prompt, its engine running, and a cache."""

import hashlib

import msgspec
from tokenizers import Tokenizer

from bundle.manifest import Bundle
from bundle.prompt import Prompt
from serve.analysis.cache import AnswerCache, SharedStore
from serve.engine.base import Engine
from serve.engine.batching import BatchingEngine
from serve.engine.sampled import SampledEngine
from serve.settings import Settings


def load_prompt(bundle: Bundle) -> Prompt:
    """How the bundle's student is asked."""
    return Prompt(bundle.prompt_template, bundle.catalogue, Tokenizer.from_file(str(bundle.tokenizer_file)))


def start_engine(bundle: Bundle, prompt: Prompt, settings: Settings, requests_at_once: int) -> Engine:
    """Start what runs the student.

    Args:
        bundle: must hold an export for it.
        prompt: of the bundle.
        settings: which engine, and how many units it answers at once.
        requests_at_once: how many analyses the caller lets run side by side; each keeps at most `slots`
            units with the engine, so the engine's queue never overflows.

    Raises:
        BundleError: the bundle has no export for the engine.
        EngineUnavailable: the engine can not start on this machine.
    """
    slots, most_waiting = settings.slots, settings.slots * requests_at_once
    if settings.engine == "onnx":
        return BatchingEngine(
            bundle,
            prompt.prefix_ids,
            slots,
            most_waiting,
            settings.threads,
            settings.device,
            settings.kv_tokens or None,
        )
    if settings.upstream is None:
        from serve.engine.vllm import VllmSampler

        return SampledEngine(bundle, VllmSampler(bundle, slots, settings.tensor_parallel), slots, most_waiting)
    from serve.engine.upstream import UpstreamSampler  # its HTTP client takes longer to import than a server to start

    upstream = UpstreamSampler(bundle, settings.upstream, settings.upstream_model, settings.upstream_key)
    return SampledEngine(bundle, upstream, slots, most_waiting)


def make_cache(bundle: Bundle, engine: Engine, max_bytes: int, shared: SharedStore | None = None) -> AnswerCache | None:
    """A cache for the answers of exactly this bundle through this engine; None when nothing is to be kept.

    Args:
        bundle: its manifest names every file by its hash.
        engine: who answers.
        max_bytes: memory for answers in this process.
        shared: a store that other servers use too.
    """
    if max_bytes == 0 and shared is None:
        return None
    identity = hashlib.sha256(msgspec.json.encode(bundle.manifest)).hexdigest()
    return AnswerCache(f"{engine.name}/{engine.quantization}:{identity}", max_bytes, shared)
