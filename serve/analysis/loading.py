"""A verified bundle becomes an analyzer with its engine running."""

import hashlib

import msgspec
from tokenizers import Tokenizer

from bundle.manifest import Bundle
from bundle.prompt import Prompt
from serve.analysis.analyzer import Analyzer
from serve.analysis.asking import Observer
from serve.analysis.cache import AnswerCache, SharedStore
from serve.engine.batching import BatchingEngine
from serve.engine.devices import Device


def load_analyzer(
    bundle: Bundle,
    slots: int,
    requests_at_once: int,
    threads: int = 0,
    device: Device = "auto",
    cache: AnswerCache | None = None,
    observer: Observer | None = None,
) -> Analyzer:
    """Load the student and start its engine.

    Args:
        bundle: must hold an ONNX export.
        slots: units that are answered at once.
        requests_at_once: how many analyses the caller lets run side by side; each keeps at most `slots`
            units with the engine, so the engine's queue never overflows.
        threads: CPU threads for the student; 0 for every core.
        device: where the student runs.
        cache: where answers are kept; see `make_cache`.
        observer: told of every engine request.

    Raises:
        BundleError: the bundle has no ONNX export.
        EngineUnavailable: the student can not run on that device.
    """
    prompt = Prompt(bundle.prompt_template, bundle.catalogue, Tokenizer.from_file(str(bundle.tokenizer_file)))
    engine = BatchingEngine(bundle, prompt.prefix_ids, slots, slots * requests_at_once, threads, device)
    return Analyzer(bundle, prompt, engine, units_at_once=slots, cache=cache, observer=observer)


def make_cache(bundle: Bundle, engine: str, max_bytes: int, shared: SharedStore | None = None) -> AnswerCache | None:
    """A cache for the answers of exactly this bundle through this engine; None when nothing is to be kept.

    Args:
        bundle: its manifest names every file by its hash.
        engine: its name.
        max_bytes: memory for answers in this process.
        shared: a store that other servers use too.
    """
    if max_bytes == 0 and shared is None:
        return None
    identity = hashlib.sha256(msgspec.json.encode(bundle.manifest)).hexdigest()
    return AnswerCache(f"{engine}:{identity}", max_bytes, shared)
