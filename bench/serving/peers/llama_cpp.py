"""llama.cpp's own server."""

from pathlib import Path

from bench.serving.models import Model
from bench.serving.peer import Peer, convert

SLOTS = 32


class LlamaCpp(Peer):
    """Q4_0, the form its CPU kernels are fastest with.

    It is sent token ids: GGUF has no way to say that an added token only counts as a word of its own, which the nano
    tokenizer's line numbers are, so text would be cut into other tokens.
    """

    name = "llama.cpp"
    title = "llama.cpp server, Q4_0"
    environment = "llama.cpp"
    needs = "llama-server"
    install = "scripts/bench_peers.sh runs/bench-peers llama.cpp"
    keeps_connections = False  # it closes each after a streamed answer, without saying so in the answer

    def prepare(self, model: Model, python: Path) -> Path:
        """A GGUF file in 16 bits, and llama.cpp's own quantisation of it."""
        converter = [str(python), "-m", "bench.serving.servers.to_gguf", str(model.checkpoint), "OUT"]
        whole = convert(converter, model.forms / "llama.cpp-f16.gguf")
        quantize = [str(python.with_name("llama-quantize")), str(whole), "OUT", "Q4_0"]
        return convert(quantize, model.forms / "llama.cpp-q4_0.gguf")

    def command(self, model: Model, weights: Path, python: Path, port: int) -> list[str]:
        """With 32 slots, and a whole context for each."""
        server = [str(python.with_name("llama-server")), "--model", str(weights), "--port", str(port), "--no-webui"]
        return [*server, "--parallel", str(SLOTS), "--ctx-size", str(SLOTS * model.context), "--threads", "2"]
