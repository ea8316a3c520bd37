"""Greedy answers from a transformers checkpoint, many at a time, with each token's log-probability."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList

from bundle.grammar import AnswerMatcher
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
    def answer(
        self, prompts: Sequence[Sequence[int]], matchers: Sequence[AnswerMatcher] | None = None
    ) -> list[Generated]:
        """The greedy continuation of each prompt, EOS included when it is reached.

        Args:
            matchers: one for each prompt, at the start of its answer, that says what may be written; without
                any, the model may write what it likes.
        """
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        kept = _GreedyChoices(matchers, self.eos_token_id)
        written = self.model.generate(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            logits_processor=LogitsProcessorList([kept]),
        )[:, width:].tolist()
        logprobs = torch.stack(kept.logprobs, dim=1).tolist()
        aided = torch.stack(kept.aided, dim=1).tolist()
        return [self._until_eos(*row) for row in zip(written, logprobs, aided, strict=True)]

    def _until_eos(self, ids: list[int], logprobs: list[float], aided: list[bool]) -> Generated:
        length = ids.index(self.eos_token_id) + 1 if self.eos_token_id in ids else len(ids)
        return Generated(ids[:length], logprobs[:length], 0.0, any(aided[:length]))


class _GreedyChoices(LogitsProcessor):
    """Leaves each row what its matcher allows, and keeps what became of every step: all logits would be [B, steps, V].

    `logprobs` of the chosen tokens and `aided`, whether the model's own choice was another: [B] for each step.
    """

    def __init__(self, matchers: Sequence[AnswerMatcher] | None, eos_token_id: int) -> None:
        self.matchers, self.eos_token_id = matchers, eos_token_id
        self.logprobs: list[Tensor] = []
        self.aided: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        left = scores if self.matchers is None else self._constrained(self.matchers, input_ids, scores)
        chosen = left.argmax(dim=-1, keepdim=True)
        logprobs = scores.gather(-1, chosen).squeeze(-1) - scores.logsumexp(dim=-1)
        self.logprobs.append(logprobs.float().clamp(max=0.0))
        self.aided.append(chosen.squeeze(-1) != scores.argmax(dim=-1))
        return left

    def _constrained(self, matchers: Sequence[AnswerMatcher], input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.logprobs:
            for matcher, token in zip(matchers, input_ids[:, -1].tolist(), strict=True):
                if not matcher.finished:
                    matcher.consume(token)
        allowed = np.zeros(scores.shape, dtype=bool)
        for row, matcher in enumerate(matchers):
            if matcher.finished:
                allowed[row, self.eos_token_id] = True
            else:
                allowed[row] = matcher.allowed()
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)
