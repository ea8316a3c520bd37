"""A verified bundle becomes an analyzer with its engine running."""

from tokenizers import Tokenizer

from bundle.manifest import Bundle
from bundle.prompt import Prompt
from serve.analysis.analyzer import Analyzer
from serve.engine.batching import BatchingEngine


def load_analyzer(bundle: Bundle, slots: int, requests_at_once: int, threads: int = 0) -> Analyzer:
    """Load the student and start its engine.

    Args:
        bundle: must hold an ONNX export.
        slots: units that are answered at once.
        requests_at_once: how many analyses the caller lets run side by side; each keeps at most `slots`
            units with the engine, so the engine's queue never overflows.
        threads: CPU threads for the student; 0 for every core.

    Raises:
        BundleError: the bundle has no ONNX export.
    """
    prompt = Prompt(bundle.prompt_template, bundle.catalogue, Tokenizer.from_file(str(bundle.tokenizer_file)))
    engine = BatchingEngine(bundle, prompt.prefix_ids, slots, slots * requests_at_once, threads)
    return Analyzer(bundle, prompt, engine, units_at_once=slots)
