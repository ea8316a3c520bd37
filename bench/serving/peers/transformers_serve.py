"""`transformers serve`."""

from pathlib import Path
from typing import Any

from bench.serving.models import Model
from bench.serving.peer import Peer
from bench.serving.workload import Question

SLOTS = 32
BLOCK_TOKENS = 256
BATCH_TOKENS = 512


class TransformersServe(Peer):
    """The bf16 checkpoint, with its continuous batching."""

    name = "transformers"
    title = "transformers serve, bf16"
    environment = "transformers"
    needs = "transformers"
    install = "scripts/bench_peers.sh runs/bench-peers transformers"

    def prepare(self, model: Model, python: Path) -> Path:
        """Nothing."""
        return model.checkpoint

    def command(self, model: Model, weights: Path, python: Path, port: int) -> list[str]:
        """With a cache for 32 whole contexts: left to itself it takes nine tenths of the memory."""
        server = [str(python.with_name("transformers")), "serve", str(weights), "--continuous-batching"]
        server += ["--cb-num-blocks", str(SLOTS * model.context // BLOCK_TOKENS)]
        server += ["--cb-max-batch-tokens", str(BATCH_TOKENS)]
        return [*server, "--device", "cpu", "--dtype", "bfloat16", "--host", "127.0.0.1", "--port", str(port)]

    def body(self, model: Model, question: Question) -> dict[str, Any]:
        """It takes text, and sends its usage unasked."""
        body = super().body(model, question) | {"model": str(model.checkpoint), "prompt": question.prompt}
        del body["stream_options"]
        return body
