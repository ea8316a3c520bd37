"""Where the student runs: which execution provider of ONNX Runtime, and whose arrays hold its KV cache."""

import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import onnxruntime

from bundle.manifest import MODEL_GRAPH, Bundle, BundleError
from serve.engine.base import EngineUnavailable

Device = Literal["auto", "cpu", "cuda"]
CUDA = "CUDAExecutionProvider"

log = logging.getLogger(__name__)


def open_on_cpu(graph: Path, threads: int, tiled: bool) -> onnxruntime.InferenceSession:
    """Load a graph.

    Args:
        graph: the file.
        threads: what a step may use; 0 lets ONNX Runtime take every core.
        tiled: attention never holds more than a tile of its scores, which long contexts need. It is slower where a step
            has one token of each answer: what ONNX Runtime's tiles do then is compiled for SSE.
    """
    os.environ["ORT_GQA_DISABLE_FLASH_ATTENTION"] = str(int(not tiled))  # read while a graph is loaded
    return onnxruntime.InferenceSession(str(graph), _options(threads), providers=["CPUExecutionProvider"])


def open_on_cuda(bundle: Bundle, device: Device) -> onnxruntime.InferenceSession | None:
    """Load the bundle's graph for GPUs, if that is what `device` says.

    `auto` takes CUDA where it works and the bundle has a graph for it.

    Returns:
        None where the student is to run on the CPU.

    Raises:
        EngineUnavailable: CUDA was asked for, and ONNX Runtime or the driver does not have it.
        BundleError: CUDA was asked for, and the bundle has no graph for it.
    """
    if device == "cpu":
        return None
    try:
        require_cuda()
        return _open_on_cuda(bundle.export_folder("cuda") / MODEL_GRAPH)
    except (EngineUnavailable, BundleError) as reason:
        if device == "cuda":
            raise
        log.info("the student runs on the CPU: %s", reason)
        return None


def is_on_cuda(session: onnxruntime.InferenceSession) -> bool:
    """Whether the session computes on a GPU."""
    return CUDA in session.get_providers()


def array_module(session: onnxruntime.InferenceSession) -> ModuleType:
    """numpy, or cupy where the session is on CUDA: the library whose arrays lie in the session's memory."""
    if not is_on_cuda(session):
        return np
    import cupy

    return cupy


def require_cuda() -> None:
    """Nothing where this ONNX Runtime can compute on a GPU of this machine.

    Raises:
        EngineUnavailable: it can not; the message says what is missing.
    """
    if CUDA not in onnxruntime.get_available_providers():
        raise EngineUnavailable(
            f"this onnxruntime ({onnxruntime.__version__}) was built without CUDA; "
            "pip install 'deepcode-analyst[gpu]' in a fresh environment, or choose the device cpu"
        )
    try:
        import cupy
    except ImportError as error:
        raise EngineUnavailable(
            f"cupy, which holds the KV cache on the GPU, does not load ({error}); "
            "pip install 'deepcode-analyst[gpu]', or choose the device cpu"
        ) from error
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise EngineUnavailable(
            f"no GPU is visible ({error}): in a container, docker run --gpus 1; else mend the driver, or choose the "
            "device cpu"
        ) from error


def _open_on_cuda(graph: Path) -> onnxruntime.InferenceSession:
    onnxruntime.preload_dlls()
    # ONNX Runtime falls back to the CPU in silence where the driver or a library is missing: hence the look after.
    session = onnxruntime.InferenceSession(str(graph), _options(threads=1), providers=[CUDA, "CPUExecutionProvider"])
    if not is_on_cuda(session):
        raise EngineUnavailable(
            "onnxruntime has CUDA, but it did not start: a CUDA or cuDNN library or the driver is missing or too old "
            "(see its messages above); mend that, or choose the device cpu"
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
