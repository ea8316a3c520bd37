"""Greedy answers from a transformers checkpoint, many at a time, with each token's log-probability."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList

from compress.evaluation.generated import Generated


def computing_dtype() -> torch.dtype:
    """bf16 where the machine multiplies matrices of it natively; elsewhere it would be emulated, and slow."""
    if torch.cuda.is_available():
        return torch.bfloat16
    able = torch.cpu.get_capabilities()
    native = any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


class CheckpointLoop:
    """One loaded checkpoint, plain or NF4, that answers batches of prompts greedily."""

    def __init__(self, folder: Path, eos_token_id: int, pad_token_id: int, most: int) -> None:
        """
        Args:
            most: tokens of an answer, at most.
        """
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=computing_dtype(), device_map=self.device)
        self.model.eval()
        self.eos_token_id, self.pad_token_id = eos_token_id, pad_token_id
        # The checkpoint's own settings may sample, or penalise repetition: neither is greedy.
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            use_cache=True,
            max_new_tokens=most,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )

    @torch.no_grad()
    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Generated]:
        """The greedy continuation of each prompt, EOS included when it is reached."""
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        kept = _GreedyLogProbabilities()
        written = self.model.generate(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            logits_processor=LogitsProcessorList([kept]),
        )[:, width:].tolist()
        logprobs = torch.stack(kept.steps, dim=1).tolist()
        return [self._until_eos(*row) for row in zip(written, logprobs, strict=True)]

    def _until_eos(self, ids: list[int], logprobs: list[float]) -> Generated:
        length = ids.index(self.eos_token_id) + 1 if self.eos_token_id in ids else len(ids)
        return Generated(ids[:length], logprobs[:length], 0.0)


class _GreedyLogProbabilities(LogitsProcessor):
    """Keeps the likeliest token's log-probability of every step, [B] each: all logits would be [B, steps, V]."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        likeliest = scores.max(dim=-1).values - scores.logsumexp(dim=-1)
        self.steps.append(likeliest.float().clamp(max=0.0))
        return scores
