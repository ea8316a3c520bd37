"""onnxruntime-genai's own engine over the graph that our engine runs; it has no server in Python."""

from pathlib import Path

from bench.serving.models import Model
from bench.serving.peer import Peer, convert


class OnnxRuntimeGenAI(Peer):
    """The same 4-bit weights as a bundle's."""

    name = "onnxruntime-genai"
    title = "onnxruntime-genai, int4"
    environment = "onnxruntime-genai"
    install = "scripts/bench_peers.sh runs/bench-peers onnxruntime-genai"

    def prepare(self, model: Model, python: Path) -> Path:
        """Built as `compress/export/onnx.py` does, in the form that its engine loads."""
        command = [str(python), "-m", "onnxruntime_genai.models.builder", "-i", str(model.checkpoint), "-o", "OUT"]
        command += ["-p", "int4", "-e", "cpu", "-c", str(model.forms / "cache"), "--extra_options"]
        command += ["accuracy_level=4", "block_size=32", "algo_config=k_quant"]
        command += ["matmul_mixed_precision=last_matmul:int8"]
        return convert(command, model.forms / self.name)

    def command(self, model: Model, weights: Path, python: Path, port: int) -> list[str]:
        """Our smallest server around it."""
        return [str(python), "-m", "bench.serving.servers.onnxruntime_genai_server", str(weights), str(port)]
