"""The answer's grammar inside vLLM's worker: a logits processor that allows what `bundle.grammar` allows.

vLLM's own structured outputs know the answer's schema, but not that a finding quotes its line, and they mask out the
tokens that reach past a forced text. This is imported by vLLM's worker alone, and needs vLLM and torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from bundle.grammar import AnswerGrammar
from serve.engine.following import AnswerFollower

BUNDLE = "deepcode_bundle"
"""The member of vLLM's `additional_config` that says which tokenizer and vocabulary the student has."""
ANSWER = "deepcode_answer"
"""The member of a request's `extra_args` that says what its answer may name; without it, text is free."""


class AnswerLogitsProcessor(AdapterLogitsProcessor):
    """Makes a `_Answer` for every request that asks for one."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        told = vllm_config.additional_config[BUNDLE]
        eos = tuple(told["eos_token_ids"])
        self._grammar = AnswerGrammar(Path(told["tokenizer_file"]), told["vocab_size"], eos)
        self._eos = eos[0]

    def is_argmax_invariant(self) -> bool:
        """No: what is likeliest may not be allowed."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> "_Answer | None":
        """See `AdapterLogitsProcessor`."""
        told = (params.extra_args or {}).get(ANSWER)
        return None if told is None else _Answer(self._grammar, self._eos, told)


class _Answer:
    """One answer, from its first chosen token on: what it is forced to begin with stands in the prompt."""

    def __init__(self, grammar: AnswerGrammar, eos: int, told: dict[str, Any]) -> None:
        matcher = grammar.matcher(tuple(told["rules"]), tuple(told["lines"]))
        self._follower = AnswerFollower(matcher, grammar.token_bytes)
        for token in list(self._follower.forced):
            self._follower.follow(token)
        self._eos, self._followed = eos, 0
        self._broken = False

    def __call__(self, output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Leave only what may come next. `logits`: [vocabulary], perhaps padded."""
        self._catch_up(output_ids)
        ends = self._broken or self._follower.matcher.finished
        only = self._eos if ends else next(iter(self._follower.forced), None)
        if only is not None:
            kept = logits[only].clone()
            logits.fill_(-torch.inf)
            logits[only] = kept
            return logits
        allowed = torch.from_numpy(self._follower.matcher.allowed()).to(logits.device, non_blocking=True)
        logits[: len(allowed)].masked_fill_(~allowed, -torch.inf)
        logits[len(allowed) :] = -torch.inf
        return logits

    def _catch_up(self, output_ids: Sequence[int]) -> None:
        try:
            for token in output_ids[self._followed :]:
                self._follower.follow(token)
        except ValueError:
            # An exception here would end vLLM for everybody. This answer ends, and its reader sees where.
            self._broken = True
        self._followed = len(output_ids)
