"""The KV cache: one array, in which every request owns a row of each layer's keys and values.

    [2 * layers, rows, kv_heads, capacity, head_dim]

All rows are as long as the longest needs to be now, not as long as the context is: the array grows when a row becomes
full, and shrinks a while after long rows have gone. Rows that lie side by side are one contiguous piece of memory in
each layer, which ONNX Runtime reads and appends to in place. That it is one array lets a row move in one call: numpy
lets go of the interpreter in each, and whoever serves HTTP takes it meanwhile.
"""

import math
import mmap
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime

from serve.engine.base import EngineUnavailable
from serve.engine.devices import array_module, is_on_cuda

ROW_STEP = 256
PATIENCE = 500
"""So many calls in a row must do with shorter rows before the array shrinks: a copy of all rows takes as long as
several steps of a small student, and where one long prompt came, another is likely."""
_PAST = "past_key_values."
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class KvCache:
    """The rows' memory, on the device of one session. The array is numpy's, or cupy's on CUDA."""

    def __init__(
        self, session: onnxruntime.InferenceSession, kv_heads: int, head_dim: int, slots: int, tokens: int, context: int
    ) -> None:
        """
        Args:
            session: the student's; its inputs name the layers.
            kv_heads: of each layer.
            head_dim: of each head.
            slots: the most rows there can be.
            tokens: the most tokens all rows may hold together.
            context: the most tokens one row can hold.

        Raises:
            EngineUnavailable: `tokens` are less than the shortest row.
        """
        self._xp: ModuleType = array_module(session)
        self._device = "cuda" if is_on_cuda(session) else "cpu"
        past = [entry for entry in session.get_inputs() if entry.name.startswith(_PAST)]
        self._names = [entry.name.removeprefix(_PAST) for entry in past]
        self._dtype = self._xp.dtype(_TYPES[past[0].type])
        self._heads, self._head_dim = kv_heads, head_dim
        self._slots, self._context = slots, context
        self.tokens = tokens
        self._prefix: Any = None
        if tokens < self.row_size(1):
            raise EngineUnavailable(
                f"a KV cache of {tokens} tokens holds no row: set --kv-tokens to {self.row_size(1)} or more, or to 0 "
                "for a whole context for each slot"
            )
        self.capacity = self.row_size(1)
        self._too_long = 0
        self._array = self._allocate(self.capacity)

    def row_size(self, tokens: int) -> int:
        """How long a row must be to hold `tokens`: whole steps, so that the array seldom changes."""
        return min(-(-tokens // ROW_STEP) * ROW_STEP, self._context)

    def holds(self, reservations: Iterable[int]) -> bool:
        """Whether rows of these many tokens may exist at once: all of them become as long as the longest."""
        sizes = [self.row_size(tokens) for tokens in reservations]
        return len(sizes) <= self._slots and len(sizes) * max(sizes, default=0) <= self.tokens

    def fit(self, lengths: Sequence[int], needed: int, reserved: int) -> bool:
        """Make the array as large as the next call needs.

        Args:
            lengths: how many tokens of each row in use are kept.
            needed: tokens the longest row will hold after the call.
            reserved: tokens the longest row may ever hold; at least `needed`.

        Returns:
            Whether it is another one now: what was bound to it must be bound again.
        """
        shortest, longest = self.row_size(needed), self.row_size(reserved)
        capacity = self.capacity
        if shortest > capacity:
            capacity = min(max(shortest, 2 * capacity), longest)
        elif capacity > longest or capacity >= 4 * shortest:
            self._too_long += 1
            if self._too_long > PATIENCE or len(lengths) > self._rows(capacity):
                # Twice what is needed, for else the next long row would have them grow again.
                capacity = min(2 * shortest, longest)
        else:
            self._too_long = 0
        if capacity == self.capacity:
            return False
        self._too_long = 0
        array = self._allocate(capacity)
        for row, length in enumerate(lengths):
            if length:  # there may be more rows now than there were
                array[:, row, :, :length] = self._array[:, row, :, :length]
        self._wait()
        self._array, self.capacity = array, capacity
        return True

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one row to another."""
        self._array[:, target, :, :length] = self._array[:, source, :, :length]
        self._wait()

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` tokens of two rows."""
        kept = self._array[:, one, :, :length].copy()
        self._array[:, one, :, :length] = self._array[:, other, :, :length]
        self._array[:, other, :, :length] = kept
        self._wait()

    def keep_prefix(self, row: int, length: int) -> None:
        """Keep a copy of the first `length` tokens of a row, for `put_prefix`."""
        self._prefix = self._array[:, row, :, :length].copy()
        self._wait()

    def put_prefix(self, row: int) -> None:
        """Begin a row with the kept prefix."""
        self._array[:, row, :, : self._prefix.shape[2]] = self._prefix
        self._wait()

    def bind(self, binding: onnxruntime.IOBinding, first: int, count: int) -> None:
        """Let a call read and append to the rows `first` to `first + count - 1` in place."""
        for name, array in zip(self._names, self._array, strict=True):
            view = array[first : first + count]
            address = view.data.ptr if self._device == "cuda" else view.ctypes.data
            memory = (self._device, 0, self._dtype.type, view.shape, address)
            binding.bind_input(f"{_PAST}{name}", *memory)
            binding.bind_output(f"present.{name}", *memory)

    def _allocate(self, capacity: int) -> Any:
        shape = (len(self._names), self._rows(capacity), self._heads, capacity, self._head_dim)
        if self._device == "cuda":
            return self._xp.zeros(shape, self._dtype)
        # Memory of its own: rows that nobody has written take none, and all of it goes back when the array does. What
        # numpy allocates stays with the process, and is taken in pages of 2 MB, which are many rows of one layer.
        return np.frombuffer(mmap.mmap(-1, math.prod(shape) * self._dtype.itemsize), self._dtype).reshape(shape)

    def _rows(self, capacity: int) -> int:
        return min(self._slots, self.tokens // capacity)

    def _wait(self) -> None:
        """ONNX Runtime computes in a stream of its own: copies must be complete before the next call."""
        if self._device == "cuda":
            self._xp.cuda.get_current_stream().synchronize()
