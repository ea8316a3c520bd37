"""The student in ONNX Runtime, with one KV array per layer that every request's row lives in.

The exporter's attention (GroupQueryAttention) reads each row's length from the attention mask and appends
to the past in place, so past and present are bound to the same memory and nothing is ever copied between
steps. Its limits decide the calls there are: several tokens over a past only for one row (prefill), and
one token each for many rows (decode).

    keys, values: [rows, kv_heads, max_length, head_dim] float32, one pair a layer
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the module loads: nobody is told what runs here
import onnxruntime
from numpy.typing import NDArray

from bundle.manifest import ModelShape


class OnnxStudent:
    """A loaded student and its KV rows. Not thread-safe: it belongs to the engine's thread."""

    def __init__(self, folder: Path, shape: ModelShape, rows: int, max_length: int, threads: int) -> None:
        """
        Args:
            folder: holds model.onnx.
            shape: the student's sizes.
            rows: how many KV rows to allocate.
            max_length: tokens a row can hold.
            threads: CPU threads a step may use; 0 lets ONNX Runtime take every core.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.max_length = max_length
        self._kv: dict[str, NDArray[np.float32]] = {
            f"{layer}.{part}": np.zeros((rows, shape.kv_heads, max_length, shape.head_dim), np.float32)
            for layer in range(shape.layers)
            for part in ("key", "value")
        }
        self._logits = np.zeros((rows, 1, shape.vocab_size), np.float32)
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    def prefill(self, row: int, start: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append `ids` to a row that already holds `start` tokens.

        Returns:
            [vocab_size] logits after the last of them; valid until the next call.
        """
        mask = np.ones((1, start + len(ids)), np.int64)
        return self._run(row, 1, np.array([ids], np.int64), mask)[0]

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """Append one token to each of the rows 0..n-1; row i holds `lengths[i]` tokens before.

        Returns:
            [n, vocab_size] logits; valid until the next call.
        """
        held = np.array(lengths)[:, None]
        mask = (np.arange(max(lengths) + 1) <= held).astype(np.int64)
        return self._run(0, len(ids), np.array(ids, np.int64)[:, None], mask)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one row to another."""
        for array in self._kv.values():
            array[target, :, :length] = array[source, :, :length]

    def _run(self, row: int, rows: int, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        binding = self._bindings.get((row, rows))
        if binding is None:
            binding = self._bindings[row, rows] = self._bind(row, rows)
        binding.bind_ortvalue_input("input_ids", onnxruntime.OrtValue.ortvalue_from_numpy(ids))
        binding.bind_ortvalue_input("attention_mask", onnxruntime.OrtValue.ortvalue_from_numpy(mask))
        self._session.run_with_iobinding(binding)
        return self._logits[:rows, 0]

    def _bind(self, row: int, rows: int) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, array in self._kv.items():
            # A view of contiguous rows is contiguous, so the OrtValue is this very memory.
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array[row : row + rows])
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(self._logits[:rows]))
        return binding
