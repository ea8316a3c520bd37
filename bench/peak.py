"""The peak of memory a piece of work takes: of the GPU where there is one, else of this process (Linux)."""

import ctypes
from pathlib import Path

import torch


def forget_peak() -> int:
    """Start measuring the peak anew; bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and is kept for later would hide a part of the next peak
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The most bytes that were in use since `forget_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
