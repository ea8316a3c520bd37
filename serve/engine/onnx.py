"""The student in ONNX Runtime: the calls that compute over the KV rows.

The exporter's attention (GroupQueryAttention) reads each row's length from the attention mask and appends to the
past in place, so nothing is copied between steps. Its limits decide the calls there are: several tokens over a past
only for one row, several rows of several tokens only without a past (padded on the right), and one token each for
many rows.

Padding leaves garbage behind a row's end, where later tokens overwrite it and no mask reaches. It also takes the
last position of each row, the only one whose logits the graph returns: prompts are therefore computed without their
last token, and that one is decoded like an answer's. No logits are needed of them, so that they may have a graph of
their own that computes none.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bundle.manifest import MODEL_GRAPH, PREFILL_GRAPH, ModelShape
from serve.engine.devices import Device, is_on_cuda, open_session
from serve.engine.kv import KvCache

SMALL_PARAMETERS = 10_000_000
"""So few make matrices so small that a call's second thread mostly waits for the first."""


class OnnxStudent:
    """A loaded student and its KV rows.

    Not thread-safe: it belongs to the engine's thread. Only where it `reads_beside`, prompts may be computed in another
    thread while `decode` runs, in other rows.
    """

    def __init__(
        self, folder: Path, shape: ModelShape, slots: int, kv_tokens: int, context: int, threads: int, device: Device
    ) -> None:
        """
        Args:
            folder: holds model.onnx, and on CPUs prompts go through prefill.onnx where there is one.
            shape: the student's sizes.
            slots: the most KV rows.
            kv_tokens: the most tokens all rows may hold together.
            context: the most tokens one row can hold.
            threads: CPU threads a step may use; 0 lets ONNX Runtime take every core.
            device: where it runs.

        Raises:
            EngineUnavailable: it can not run there, or so few `kv_tokens` hold nothing.
        """
        self.parameters = shape.parameters
        reads = (folder / PREFILL_GRAPH).is_file()
        self.reads_beside = reads and shape.parameters <= SMALL_PARAMETERS and (threads or os.cpu_count() or 1) > 1
        """Prompts may be computed while `decode` runs: each call takes one thread then."""
        threads = 1 if self.reads_beside else threads
        self._session = open_session(folder / MODEL_GRAPH, device, threads)
        self._prompts = self._session
        if reads and not is_on_cuda(self._session):
            self._prompts = open_session(folder / PREFILL_GRAPH, "cpu", threads)
        self.reads_beside &= self._prompts is not self._session
        self.kv = KvCache(self._session, shape.kv_heads, shape.head_dim, slots, kv_tokens, context)
        logits_type = np.float16 if self._session.get_outputs()[0].type == "tensor(float16)" else np.float32
        self._logits = np.zeros((slots, 1, shape.vocab_size), logits_type)
        self._bindings: dict[tuple[onnxruntime.InferenceSession, int, int], onnxruntime.IOBinding] = {}

    def fit(self, lengths: Sequence[int], needed: int, reserved: int) -> None:
        """See `KvCache.fit`."""
        if self.kv.fit(lengths, needed, reserved):
            self._bindings.clear()

    def prefill(self, row: int, start: int, ids: Sequence[int]) -> None:
        """Append `ids` to a row that holds `start` tokens."""
        self._run(self._prompts, row, np.array([ids], np.int64), np.ones((1, start + len(ids)), np.int64))

    def prefill_empty(self, first: int, prompts: Sequence[Sequence[int]]) -> None:
        """Begin the rows `first`, `first` + 1, … with these tokens, all in one call."""
        held = np.array([len(prompt) for prompt in prompts])[:, None]
        mask = np.arange(held.max()) < held
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate(prompts)
        self._run(self._prompts, first, ids, mask.astype(np.int64))

    def decode(self, first: int, ids: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """Append one token to each of the rows `first`, `first` + 1, …; the i-th of them holds `lengths[i]` before.

        Returns:
            [n, vocab_size] logits after them; valid until the next call.
        """
        held = np.array(lengths)[:, None]
        mask = (np.arange(max(lengths) + 1) <= held).astype(np.int64)
        self._run(self._session, first, np.array(ids, np.int64)[:, None], mask)
        return self._logits[: len(ids), 0].astype(np.float32, copy=False)

    def _run(
        self, session: onnxruntime.InferenceSession, first: int, ids: NDArray[np.int64], mask: NDArray[np.int64]
    ) -> None:
        rows = len(ids)
        binding = self._bindings.get((session, first, rows))
        if binding is None:
            binding = self._bindings[session, first, rows] = session.io_binding()
            self.kv.bind(binding, first, rows)
            if session is self._session:
                logits = onnxruntime.OrtValue.ortvalue_from_numpy(self._logits[:rows])
                binding.bind_ortvalue_output("logits", logits)
        binding.bind_ortvalue_input("input_ids", onnxruntime.OrtValue.ortvalue_from_numpy(ids))
        binding.bind_ortvalue_input("attention_mask", onnxruntime.OrtValue.ortvalue_from_numpy(mask))
        session.run_with_iobinding(binding)
