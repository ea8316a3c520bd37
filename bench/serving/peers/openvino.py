"""OpenVINO GenAI's ContinuousBatchingPipeline on the CPU; it has no server of its own in Python."""

from pathlib import Path
from typing import Literal

from bench.serving.models import Model
from bench.serving.peer import Peer, convert


class OpenVino(Peer):
    """Weights as optimum-intel exports them."""

    environment = "openvino"
    install = "scripts/bench_peers.sh runs/bench-peers openvino"

    def __init__(self, weights: Literal["int4", "int8"]) -> None:
        self._weights = weights
        self.name = f"openvino-{weights}"
        self.title = f"OpenVINO GenAI, {weights}"

    def prepare(self, model: Model, python: Path) -> Path:
        """Its intermediate representation."""
        command = [str(python.with_name("optimum-cli")), "export", "openvino", "--model", str(model.checkpoint)]
        command += ["--task", "text-generation-with-past", "--weight-format", self._weights, "OUT"]
        return convert(command, model.forms / self.name)

    def command(self, model: Model, weights: Path, python: Path, port: int) -> list[str]:
        """Our smallest server around it."""
        return [str(python), "-m", "bench.serving.servers.openvino_server", str(weights), str(port)]
