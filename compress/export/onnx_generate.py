"""Greedy answers from an exported graph, one at a time: the plain loop that an engine must agree with.

It imports no torch, so that the memory it reports is what serving needs.
"""

import time
from pathlib import Path

import numpy as np
import onnxruntime

from bundle.grammar import AnswerMatcher
from bundle.manifest import MODEL_GRAPH, PREFILL_GRAPH
from compress.evaluation.generated import Generated

Cache = dict[str, np.ndarray]
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxLoop:
    """One student that answers one prompt after another."""

    def __init__(self, folder: Path, head_dim: int, threads: int = 0) -> None:
        """
        Args:
            folder: an ONNX export.
            head_dim: numbers in a key of one head.
            threads: of a step; 0: every core.
        """
        self.student = _Graph(folder / MODEL_GRAPH, threads)
        prompts = folder / PREFILL_GRAPH
        self.reader = _Graph(prompts, threads) if prompts.is_file() else self.student
        self.past: Cache = {
            entry.name: np.zeros((1, entry.shape[1], 0, head_dim), _TYPES[entry.type])
            for entry in self.student.session.get_inputs()
            if entry.name.startswith("past_key_values.")
        }

    def step(self, ids: list[int], past: Cache, length: int) -> tuple[np.ndarray, Cache]:
        """Feed `ids` after `length` cached tokens.

        Returns:
            Logits [V] after the last of them, and the cache that now holds them too.
        """
        results = self.student.run(ids, past, length)
        return results["logits"][0, -1].astype(np.float32, copy=False), _as_past(results)

    def read(self, prompt: list[int]) -> tuple[np.ndarray, Cache]:
        """Logits and cache after a prompt, all but the last token of which are computed in one call."""
        if len(prompt) <= 2:
            return self.step(prompt, self.past, 0)
        past = _as_past(self.reader.run(prompt[:-1], self.past, 0))
        return self.step(prompt[-1:], past, len(prompt) - 1)

    def answer(
        self, prompt: list[int], eos_token_id: int, most: int, matcher: AnswerMatcher | None = None
    ) -> Generated:
        """The greedy continuation of one prompt, with each token's log-probability.

        Args:
            matcher: says what may be written, at the start of the answer; None: anything.
        """
        begun = time.perf_counter()
        logits, past = self.read(prompt)
        ids: list[int] = []
        logprobs: list[float] = []
        aided = False
        while True:
            token = free = int(logits.argmax())
            if matcher is not None:
                if not matcher.permits(free):
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


class _Graph:
    """One graph in a session of its own."""

    def __init__(self, file: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Its threads would go on spinning between runs, on the cores that the other graph's threads need.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.outputs = [entry.name for entry in self.session.get_outputs()]

    def run(self, ids: list[int], past: Cache, length: int) -> dict[str, np.ndarray]:
        """All that it gives for `ids` after `length` cached tokens, by name."""
        mask = np.ones((1, length + len(ids)), np.int64)
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": mask, **past}
        return dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))


def _as_past(present: dict[str, np.ndarray]) -> Cache:
    return {name.replace("present.", "past_key_values."): array for name, array in present.items() if name != "logits"}
