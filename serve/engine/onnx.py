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

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bundle.manifest import MODEL_GRAPH, PREFILL_GRAPH, Bundle
from serve.engine.devices import Device, open_on_cpu, open_on_cuda
from serve.engine.kv import KvCache

SMALL_PARAMETERS = 10_000_000
"""So few make matrices so small that a call's second thread mostly waits for the first."""
UNTILED_PARAMETERS = 10_000_000
"""Of so few, attention is a large part of the work, and heads and contexts that are few and short need no tiles."""


class OnnxStudent:
    """A loaded student and its KV rows.

    Not thread-safe: it belongs to the engine's thread. Only where it `reads_beside`, another thread may compute prompts
    meanwhile, in other rows, as long as `fit` is not called.
    """

    def __init__(self, bundle: Bundle, slots: int, kv_tokens: int, threads: int, device: Device) -> None:
        """
        Args:
            bundle: holds a graph for the device; on CPUs prompts go through prefill.onnx where there is one.
            slots: the most KV rows.
            kv_tokens: the most tokens all rows may hold together.
            threads: CPU threads a step may use; 0 lets ONNX Runtime take every core.
            device: where it runs; `auto` takes CUDA where it works and the bundle has a graph for it.

        Raises:
            BundleError: the bundle has no graph for the device.
            EngineUnavailable: it can not run there, or so few `kv_tokens` hold nothing.
        """
        shape = bundle.manifest.model
        self.parameters = shape.parameters
        self.reads_beside = False
        """Prompts may be computed while `decode` runs: each call takes one thread then."""
        on_cuda = open_on_cuda(bundle, device)
        self.export = "onnx" if on_cuda is None else "cuda"
        """The bundle's export that runs."""
        if on_cuda is None:
            folder = bundle.export_folder("onnx")
            reads = (folder / PREFILL_GRAPH).is_file()
            self.reads_beside = reads and shape.parameters <= SMALL_PARAMETERS and (threads or os.cpu_count() or 1) > 1
            tiled = shape.parameters > UNTILED_PARAMETERS
            threads = 1 if self.reads_beside else threads
            self._session = open_on_cpu(folder / MODEL_GRAPH, threads, tiled)
            self._prompts = open_on_cpu(folder / PREFILL_GRAPH, threads, tiled) if reads else self._session
        else:
            self._session = self._prompts = on_cuda
        context = bundle.manifest.context_length
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
        mask = _ones([len(prompt) for prompt in prompts])
        ids = np.zeros_like(mask)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        self._run(self._prompts, first, ids, mask)

    def decode(self, first: int, ids: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """Append one token to each of the rows `first`, `first` + 1, …; the i-th of them holds `lengths[i]` before.

        Returns:
            [n, vocab_size] logits after them; valid until the next call.
        """
        mask = _ones([length + 1 for length in lengths])
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


def _ones(lengths: Sequence[int]) -> NDArray[np.int64]:
    """[n, longest] an attention mask: so many ones at the beginning of each row.

    Row by row, because numpy lets go of the interpreter in calls for more than 500 numbers, and who serves HTTP takes
    it for longer than this takes.
    """
    mask = np.zeros((len(lengths), max(lengths)), np.int64)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = 1
    return mask
