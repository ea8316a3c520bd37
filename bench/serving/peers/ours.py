"""deepcode-serve, asked for analyses as its users do, and for completions as every other peer is."""

from pathlib import Path
from typing import Any

from bench.serving.models import Model
from bench.serving.peer import Peer
from bench.serving.workload import Question
from compress.recipe import Onnx

SLOTS = 128
QUEUE = 256


class Ours(Peer):
    """POST /v1/analyze: the function's code in, a report out; the answer is held to the grammar and checked."""

    name = "ours"
    title = "DeepCode-Analyst, ONNX int4, /v1/analyze"
    environment = "ours"
    install = "make demo"
    health = "/health/ready"
    path = "/v1/analyze"

    def prepare(self, model: Model, python: Path) -> Path:
        """The bundle as it is."""
        return model.bundle

    def command(self, model: Model, weights: Path, python: Path, port: int) -> list[str]:
        """As an operator starts it, with room for every client."""
        server = [str(python), "-m", "serve.cli", str(weights), "--port", str(port)]
        return [*server, "--slots", str(SLOTS), "--max-queue", str(QUEUE)]

    def body(self, model: Model, question: Question) -> dict[str, Any]:
        """The function as a file of its own."""
        return {"code": question.code, "path": "function.py"}


class OurCompletions(Ours):
    """POST /v1/completions: what the peers do, nothing more."""

    name = "ours-completions"
    title = "DeepCode-Analyst, ONNX int4, /v1/completions"
    path = "/v1/completions"

    def body(self, model: Model, question: Question) -> dict[str, Any]:
        """It takes text."""
        return Peer.body(self, model, question) | {"model": model.name, "prompt": question.prompt}


class OurCompletionsIn8Bits(OurCompletions):
    """The same weights in the export for many answers at once; the bundle's own is for few, and small students."""

    name = "ours-completions-int8"
    title = "DeepCode-Analyst, ONNX int8, /v1/completions"

    def prepare(self, model: Model, python: Path) -> Path:
        """A bundle of the checkpoint with `export.onnx.precision: int8`."""
        bundle = model.forms / self.name
        if not bundle.is_dir():
            from bench.serving.making import make_bundle  # torch, which nobody waits for who needs nothing made

            make_bundle(model.checkpoint, Onnx(precision="int8"), model.name, bundle)
        return bundle
