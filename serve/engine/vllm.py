"""Answers from vLLM on this machine: its engine runs in processes of its own, on one GPU or several.

vLLM batches, pages the KV cache and keeps prefixes; the answer's grammar goes along as a logits processor
(`vllm_grammar`), so an answer is held to what the ONNX engine holds it to. Importing this needs neither vLLM nor torch.
"""

import importlib.util
import os
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from bundle.manifest import Bundle, BundleError, Export
from serve.engine.base import EngineCrashed, EngineUnavailable, GenerationRequest
from serve.engine.sampler import Piece

INSTALL = "pip install 'deepcode-analyst[vllm]' (scripts/install_vllm_cpu.sh makes an environment for CPUs)"

# vLLM reads these when it is imported. Nothing is reported to anybody or looked up on a hub, its log lines are ours,
# and its processes do not inherit threads.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class VllmSampler:
    """A `serve.engine.sampler.Sampler` over vLLM's AsyncLLM."""

    name = "vllm"
    begins_answers = True
    away = None

    def __init__(self, bundle: Bundle, slots: int, tensor_parallel: int = 1, dtype: str = "auto") -> None:
        """
        Args:
            bundle: holds a form of the student that the installed vLLM loads.
            slots: requests that run at once.
            tensor_parallel: GPUs of this machine that share the student's weights.
            dtype: of what is computed; `auto` is what the export's config says.

        Raises:
            BundleError: the bundle has no such form.
            EngineUnavailable: vLLM is not installed.
        """
        if importlib.util.find_spec("vllm") is None:
            raise EngineUnavailable(f"--engine vllm needs vLLM, which is not installed: {INSTALL}")
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._bundle, self._slots = bundle, slots
        self._tensor_parallel, self._dtype = tensor_parallel, dtype
        self._export = loadable_export(bundle, installed_quantizations())
        self.quantization = self._export.quantization
        self._llm: Any = None

    @property
    def failure(self) -> str | None:
        """See `Engine.failure`."""
        return "vLLM's engine process ended" if self._llm is not None and self._llm.errored else None

    @property
    def kv_tokens(self) -> int:
        """See `Sampler.kv_tokens`."""
        if self._llm is None:
            return 0
        cache = self._llm.vllm_config.cache_config
        return (cache.num_gpu_blocks or 0) * cache.block_size

    async def start(self) -> None:
        """See `Sampler.start`: the weights are loaded, which takes seconds to minutes."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        from serve.engine.vllm_grammar import BUNDLE, AnswerLogitsProcessor

        manifest = self._bundle.manifest
        told = {
            "tokenizer_file": str(self._bundle.tokenizer_file),
            "vocab_size": manifest.model.vocab_size,
            "eos_token_ids": list(manifest.eos_token_ids),
        }
        arguments = AsyncEngineArgs(
            model=str(self._bundle.root / self._export.path),
            skip_tokenizer_init=True,  # tokens go in and come out
            dtype=self._dtype,
            max_model_len=manifest.context_length,
            max_num_seqs=self._slots,
            tensor_parallel_size=self._tensor_parallel,
            enforce_eager=current_platform.is_cpu(),  # there, compiling takes longer than it saves
            enable_prefix_caching=True,
            logits_processors=[AnswerLogitsProcessor],
            additional_config={BUNDLE: told},
            disable_log_stats=True,
        )
        try:
            self._llm = AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            raise EngineUnavailable(
                f"vLLM does not start with {arguments.model} ({type(error).__name__}: {error}); the lines before this "
                "one say why. --engine onnx needs no GPU"
            ) from error

    async def sample(
        self, request: GenerationRequest, prompt: Sequence[int], max_tokens: int
    ) -> AsyncGenerator[Piece, None]:
        """See `Sampler.sample`. Leaving aborts the request within vLLM's step."""
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        from serve.engine.vllm_grammar import ANSWER

        eos = list(self._bundle.manifest.eos_token_ids)
        answer = {"rules": list(request.rules), "lines": list(request.lines)}
        parameters = SamplingParams(
            temperature=request.temperature,
            seed=request.seed if request.temperature > 0 else None,
            max_tokens=max_tokens,
            logprobs=0,  # of the chosen tokens alone
            stop_token_ids=eos,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={ANSWER: answer} if request.constrained else None,
        )
        asked = tokens_input(list(prompt), cache_salt=request.salt or None)
        try:
            outputs = self._llm.generate(asked, parameters, uuid.uuid4().hex)
            try:
                async for output in outputs:
                    (completion,) = output.outputs
                    chosen = zip(completion.token_ids, completion.logprobs or (), strict=True)
                    yield Piece(
                        [(token, logprobs[token].logprob) for token, logprobs in chosen],
                        output.num_cached_tokens or 0,
                        completion.finish_reason,
                    )
            finally:
                await outputs.aclose()
        except EngineDeadError as error:
            raise EngineCrashed(f"vLLM broke down: {error}; this process must be started again") from error

    async def close(self) -> None:
        """See `Sampler.close`."""
        if self._llm is not None:
            llm, self._llm = self._llm, None  # a process that was told to end is no failure
            llm.shutdown()


def installed_quantizations() -> frozenset[str]:
    """The quantisation methods that the installed vLLM loads here."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    methods = set(QUANTIZATION_METHODS)
    if importlib.util.find_spec("bitsandbytes") is None:
        methods.discard("bitsandbytes")
    return frozenset(methods)


def loadable_export(bundle: Bundle, quantizations: frozenset[str]) -> Export:
    """The export that a vLLM with these quantisation methods is to load: NF4 if it can, else W4A16.

    Raises:
        BundleError: the bundle has none of them.
    """
    exports = bundle.manifest.exports
    if "nf4" in exports and "bitsandbytes" in quantizations:
        return exports["nf4"]
    if "vllm" in exports:
        return exports["vllm"]
    if "nf4" in exports:
        raise BundleError(
            f"{bundle.root}: the installed vLLM can not load its `nf4` export: set `export.vllm: {{}}` in the recipe "
            "and run deepcode-compress again, or install vllm==0.27.1, the last one with bitsandbytes, and bitsandbytes"
        )
    raise BundleError(
        f"{bundle.root}: the bundle has no form that vLLM loads: set `export.vllm: {{}}` in the recipe, or "
        "`quantize: {}` for vLLM up to 0.27.1, and run deepcode-compress again"
    )
