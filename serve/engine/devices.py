"""Where the student runs: which execution provider of ONNX Runtime, and whose arrays hold its KV cache."""

import logging
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import onnxruntime

from serve.engine.base import EngineUnavailable

Device = Literal["auto", "cpu", "cuda"]
CUDA = "CUDAExecutionProvider"

log = logging.getLogger(__name__)


def open_session(model: Path, device: Device, threads: int) -> onnxruntime.InferenceSession:
    """Load a graph where `device` says; `auto` takes CUDA if it works with this graph, else the CPU.

    Args:
        model: model.onnx.
        device: see above.
        threads: CPU threads a step may use; 0 lets ONNX Runtime take every core.

    Raises:
        EngineUnavailable: CUDA was asked for, and ONNX Runtime, the driver or the graph does not have it.
    """
    if device != "cpu":
        try:
            return _open_on_cuda(model, threads)
        except EngineUnavailable as unavailable:
            if device == "cuda":
                raise
            log.info("the student runs on the CPU: %s", unavailable)
    return onnxruntime.InferenceSession(str(model), _options(threads), providers=["CPUExecutionProvider"])


def is_on_cuda(session: onnxruntime.InferenceSession) -> bool:
    """Whether the session computes on a GPU."""
    return CUDA in session.get_providers()


def array_module(session: onnxruntime.InferenceSession) -> ModuleType:
    """numpy, or cupy where the session is on CUDA: the library whose arrays lie in the session's memory."""
    if not is_on_cuda(session):
        return np
    import cupy

    return cupy


def _open_on_cuda(model: Path, threads: int) -> onnxruntime.InferenceSession:
    if CUDA not in onnxruntime.get_available_providers():
        raise EngineUnavailable(
            f"this onnxruntime ({onnxruntime.__version__}) was built without CUDA; "
            "pip install 'deepcode-analyst[gpu]' in a fresh environment, or choose the device cpu"
        )
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        raise EngineUnavailable(
            f"cupy, which holds the KV cache on the GPU, does not load ({error}); "
            "pip install 'deepcode-analyst[gpu]', or choose the device cpu"
        ) from error
    onnxruntime.preload_dlls()
    # ONNX Runtime falls back to the CPU in silence where the driver or a library is missing: hence the look after.
    session = onnxruntime.InferenceSession(str(model), _options(threads), providers=[CUDA, "CPUExecutionProvider"])
    if not is_on_cuda(session):
        raise EngineUnavailable(
            "onnxruntime has CUDA, but it did not start: no GPU is visible (in a container: docker run --gpus 1), or a "
            "driver, CUDA or cuDNN library is missing or too old (see its messages above); mend that, or choose the "
            "device cpu"
        )
    if any(entry.type == "tensor(float)" for entry in session.get_inputs()):
        raise EngineUnavailable(
            f"{model} keeps its KV cache in float32, and CUDA's attention computes in 16 bits; "
            "export the student for CUDA, or choose the device cpu"
        )
    return session


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin after a call take the cores of the other graph's call, and of whoever brings the next requests.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return options
