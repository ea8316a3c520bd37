"""vLLM's build for CPUs."""

from pathlib import Path
from typing import Literal

from bench.serving.models import Model
from bench.serving.peer import Peer


class Vllm(Peer):
    """The bf16 checkpoint, or the 4-bit one that a bundle's `vllm` export is."""

    environment = "vllm"
    install = "scripts/install_vllm_cpu.sh runs/bench-peers/vllm"

    def __init__(self, weights: Literal["bf16", "w4a16"]) -> None:
        self._weights = weights
        self.name = f"vllm-{weights}"
        self.title = f"vLLM (CPU), {'bf16' if weights == 'bf16' else 'W4A16'}"

    def prepare(self, model: Model, python: Path) -> Path:
        """Nothing for bf16. In 4 bits it is calibrated on random tokens: it is only measured for speed."""
        if self._weights == "bf16":
            return model.checkpoint
        out = model.forms / self.name
        if not out.is_dir():
            from bench.rows import RandomRows  # torch, which nobody waits for who needs nothing made
            from compress.export.vllm import export_vllm
            from compress.recipe import W4A16

            rows = RandomRows(count=8, length=256, answer=64, vocabulary=4096)
            export_vllm(model.checkpoint, rows, W4A16(calibration_examples=len(rows)), out)
        return out

    def command(self, model: Model, weights: Path, python: Path, port: int) -> list[str]:
        """Its OpenAI server, without the compilation that takes minutes."""
        server = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights)]
        server += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "bench", "--enforce-eager"]
        return [*server, "--dtype", "bfloat16", "--max-model-len", str(model.context)]

    def variables(self) -> dict[str, str]:
        """A KV cache that a small machine has; both cores for the model."""
        return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}
