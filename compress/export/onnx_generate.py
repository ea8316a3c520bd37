"""Greedy answers from an exported graph, one at a time: the plain loop that an engine must agree with.

It imports no torch, so that the memory it reports is what serving needs.
"""

import time
from pathlib import Path

import numpy as np
import onnxruntime

from bundle.grammar import AnswerMatcher
from compress.evaluation.generated import Generated


class OnnxLoop:
    """One session that answers one prompt after another."""

    def __init__(self, model: Path, head_dim: int, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.past = {
            entry.name: np.zeros((1, entry.shape[1], 0, head_dim), np.float32)
            for entry in self.session.get_inputs()
            if entry.name.startswith("past_key_values.")
        }
        self.outputs = [entry.name for entry in self.session.get_outputs()]

    def step(
        self, ids: list[int], past: dict[str, np.ndarray], length: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Feed `ids` after `length` cached tokens.

        Returns:
            Logits [V] after the last of them, and the cache that now holds them too.
        """
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, length + len(ids)), np.int64),
            **past,
        }
        results = dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))
        logits = results.pop("logits")
        present = {name.replace("present.", "past_key_values."): array for name, array in results.items()}
        return logits[0, -1], present

    def answer(
        self, prompt: list[int], eos_token_id: int, most: int, matcher: AnswerMatcher | None = None
    ) -> Generated:
        """The greedy continuation of one prompt, with each token's log-probability.

        Args:
            matcher: says what may be written, at the start of the answer; None: anything.
        """
        begun = time.perf_counter()
        logits, past = self.step(prompt, self.past, 0)
        ids: list[int] = []
        logprobs: list[float] = []
        aided = False
        while True:
            token = free = int(logits.argmax())
            if matcher is not None:
                token = int(np.where(matcher.allowed(), logits, -np.inf).argmax())
                matcher.consume(token)
                aided |= token != free
            shifted = logits - logits[free]
            logprobs.append(float(shifted[token] - np.log(np.exp(shifted).sum())))
            ids.append(token)
            if token == eos_token_id or len(ids) >= most or (matcher is not None and matcher.finished):
                break
            logits, past = self.step([token], past, len(prompt) + len(ids) - 1)
        return Generated(ids=ids, logprobs=logprobs, seconds=time.perf_counter() - begun, aided=aided)
